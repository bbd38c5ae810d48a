"""`pruneofa push` against a stand-in for the hub: what arrives, and what is refused, always without a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.hub import OWNER, READ_ONLY, TOKEN, serving

FILES = {
    "openvino_model.xml": b"<net/>",
    "openvino_model.bin": bytes(range(256)) * 40,
    "config.json": b"{}",
    "README.md": b"---\nlibrary_name: pruneofa\n---\n\n# A card \xe2\x80\x93 of text\n",
    "manifest.json": b"{}",
    "1_Pooling/config.json": b'{"a": 1}',
}


@pytest.fixture(scope="module")
def hub():
    with serving() as found:
        yield found


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, content in FILES.items():
        (tmp_path / "ir" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ir" / name).write_bytes(content)
    (tmp_path / "ir" / ".hidden").write_text("not to be seen")
    return tmp_path / "ir"


def push(folder: Path, *args: str, hub: str, token: str = TOKEN, **more: str) -> subprocess.CompletedProcess:
    code = "import sys; sys.argv[0] = 'pruneofa'; from toolkit.cli import main; main()"
    command = [sys.executable, "-c", code, "push", str(folder), *args]
    own = {"HF_ENDPOINT": hub, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    own |= {"HF_HOME": str(folder.parent / "home"), "NO_PROXY": "127.0.0.1"} | more
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | own)


def refused(done: subprocess.CompletedProcess, words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_what_arrives_is_what_was_shown_byte_for_byte(folder, hub):
    done = push(folder, f"{OWNER}/first", hub=hub.address)
    assert done.returncode == 0, done.stderr
    assert hub.repos[f"{OWNER}/first"] == FILES
    assert hub.private[f"{OWNER}/first"] is True
    assert hub.large, "the .bin file takes the way of large files"
    assert all(name in done.stdout for name in FILES)
    assert ".hidden" not in done.stdout
    assert f"to {OWNER}/first, private" in done.stdout
    assert f"Uploaded: {hub.address}/{OWNER}/first" in done.stdout


def test_the_document_has_files_and_target(folder, hub):
    done = push(folder, "second", "--public", "--json", hub=hub.address)
    found = json.loads(done.stdout)
    assert (found["repo"], found["private"], found["commit"]) == (f"{OWNER}/second", False, "c0ffee")
    assert {row["file"]: row["bytes"] for row in found["files"]} == {name: len(data) for name, data in FILES.items()}
    assert found["bytes"] == sum(map(len, FILES.values()))


def test_nothing_is_sent_by_a_dry_run(folder, hub):
    before = list(hub.requests)
    done = push(folder, f"{OWNER}/third", "--dry-run", hub=hub.address, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "openvino_model.bin" in done.stdout
    assert hub.requests == before


def test_a_public_repository_gets_nothing_unless_asked_for(folder, hub):
    hub.repos[f"{OWNER}/open"], hub.private[f"{OWNER}/open"] = {}, False
    refused(push(folder, f"{OWNER}/open", hub=hub.address), "this repository exists and is public")
    assert hub.repos[f"{OWNER}/open"] == {}


@pytest.mark.parametrize(
    ("name", "token", "words"),
    [
        ("x", "hf_wrong", "the hub does not accept the token (401"),
        ("x", READ_ONLY, "the token has no right to write here (403"),
        ("x", "", "no token for http"),
        ("reserved", TOKEN, "refuses the upload (400: This name is reserved"),
        ("bad name!", TOKEN, "not a name of a repository"),
    ],
)
def test_a_token_or_a_name_that_is_refused_is_a_message(name, token, words, folder, hub):
    refused(push(folder, f"{OWNER}/{name}", hub=hub.address, token=token), words)
    assert f"{OWNER}/{name}" not in hub.repos


@pytest.mark.parametrize(
    ("card", "words"), [(b"---\nlicense: [mit]\n---\n", '"license" must be a string'), (b"\xff\xfe", "utf-8")]
)
def test_a_card_that_the_hub_refuses_is_a_message_and_leaves_no_repository(card, words, folder, hub):
    (folder / "README.md").write_bytes(card)
    done = push(folder, f"{OWNER}/card", hub=hub.address)
    refused(done, "the hub does not accept the card")
    assert words in " ".join(done.stderr.split())
    assert f"{OWNER}/card" not in hub.repos


def test_a_folder_without_a_card_is_uploaded(folder, hub):
    (folder / "README.md").unlink()
    done = push(folder, f"{OWNER}/plain", hub=hub.address)
    assert done.returncode == 0, done.stderr
    assert "Without a model card" in done.stdout
    assert set(hub.repos[f"{OWNER}/plain"]) == set(FILES) - {"README.md"}


def test_a_hub_that_cannot_be_reached_and_offline_mode_are_messages(folder, hub):
    refused(push(folder, f"{OWNER}/far", hub="http://127.0.0.1:9"), "http://127.0.0.1:9 cannot be reached")
    offline = push(folder, f"{OWNER}/far", "--json", hub=hub.address, HF_HUB_OFFLINE="1")
    assert offline.returncode == 2
    assert "HF_HUB_OFFLINE" in json.loads(offline.stdout)["error"]["what"]


def test_a_folder_without_an_ir_is_refused(folder, hub, tmp_path):
    refused(push(tmp_path / "none", "a/b", hub=hub.address), "no such folder")
    (folder / "openvino_model.bin").unlink()
    refused(push(folder, "a/b", hub=hub.address), "no openvino_model.bin in this folder")
