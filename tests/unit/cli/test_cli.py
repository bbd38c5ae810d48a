"""What a person sees of the command line when something is wrong: a message, an exit code, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from toolkit import __version__
from toolkit.cli.run import _seconds
from toolkit.core.errors import UserError


def pruneofa(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "toolkit", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
    )


def recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_version_is_printed():
    assert pruneofa("--version").stdout.strip() == __version__


def test_init_copies_a_recipe_and_never_overwrites(tmp_path):
    target = tmp_path / "mine.yaml"
    assert pruneofa("init", str(target)).returncode == 0
    text = target.read_text()
    again = pruneofa("init", str(target))
    assert again.returncode == 2
    assert "file already exists" in again.stderr
    assert target.read_text() == text


@pytest.mark.parametrize("command", [["init"], ["scoreboard", "--markdown"], ["scoreboard", "--html"]])
def test_a_file_is_written_into_a_folder_that_was_not_there(tmp_path, command):
    target = tmp_path / "new" / "folder" / "file"
    result = pruneofa(*command, str(target))
    assert result.returncode == 0, result.stderr
    assert target.stat().st_size


@pytest.mark.parametrize("command", ["--markdown", "--html"])
def test_a_folder_in_the_place_of_a_file_to_write_is_named_with_exit_code_2(tmp_path, command):
    result = pruneofa("scoreboard", command, str(tmp_path))
    assert (result.returncode, result.stderr) == (2, f"pruneofa: {tmp_path}: is a directory\n")


def test_a_file_in_the_place_of_a_folder_to_write_into_is_named_with_exit_code_2(tmp_path):
    (tmp_path / "file").write_text("")
    result = pruneofa("init", str(tmp_path / "file" / "mine.yaml"))
    assert (result.returncode, result.stderr) == (2, f"pruneofa: {tmp_path / 'file'}: file exists\n")


def test_schema_is_json_with_the_stage_sections():
    import json

    assert {"teacher", "student", "transfer", "quantize"} <= set(json.loads(pruneofa("schema").stdout)["properties"])


def test_doctor_names_versions_and_isa():
    shown = pruneofa("doctor").stdout
    assert "openvino" in shown
    assert "isa" in shown.lower()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x\nmodel: {source: nowhere/at/all/}\n", "nowhere/at/all"),
        ("name: x\nmodel: {sauce: a}\n", "source"),
        ("name: x\nmodel: {source: a}\n  bad: indent\n", "recipe.yaml:3"),
    ],
)
def test_a_bad_recipe_gets_one_message_and_exit_code_2(tmp_path, text, expected):
    result = pruneofa("check", recipe(tmp_path, text))
    assert result.returncode == 2, result.stdout + result.stderr
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_recipe_is_named(tmp_path):
    result = pruneofa("check", str(tmp_path / "no.yaml"))
    assert result.returncode == 2
    assert "no.yaml" in result.stderr


def test_from_and_only_together_are_refused(tmp_path):
    result = pruneofa("run", "--from", "student", "--only", "student")
    assert result.returncode == 2
    assert "one of them" in result.stderr


def test_inspecting_an_empty_folder_says_what_to_give(tmp_path):
    result = pruneofa("inspect", str(tmp_path))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["pack", "unpack", "bench"])
def test_a_missing_ir_or_bundle_gets_one_message_and_exit_code_2(command, tmp_path):
    result = pruneofa(command, str(tmp_path / "nothing"))
    assert result.returncode == 2
    assert "nothing" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("option", ["--batch", "--length", "--rounds", "--seconds", "--threads", "--streams"])
def test_bench_takes_no_zero(tmp_path, option):
    result = pruneofa("bench", str(tmp_path), option, "0")
    assert result.returncode == 2
    assert option in result.stderr
    assert "Traceback" not in result.stderr


def test_recommending_takes_one_run_folder(tmp_path):
    result = pruneofa("bench", "--recommend", str(tmp_path), str(tmp_path))
    assert result.returncode == 2
    assert "pruneofa bench --recommend runs/<name>" in result.stderr


def test_the_kernels_path_is_printed_once_it_is_built(monkeypatch, tmp_path):
    built = pruneofa("kernels", "build")
    assert pruneofa("kernels", "path").stdout == built.stdout
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    missing = pruneofa("kernels", "path")
    assert missing.returncode == 2
    assert "pruneofa kernels build" in missing.stderr


def test_a_name_that_looks_like_markup_or_an_emoji_is_printed_as_it_is(tmp_path):
    folder = tmp_path / "[red]a :cat:"
    folder.mkdir()
    save_file({"[/x] :dog:": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    result = pruneofa("inspect", folder.name, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "[/x] :dog:" in result.stdout
    assert "[red]a :cat:" in result.stdout


def test_a_character_that_the_terminal_does_not_have_is_printed_as_its_code(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    save_file({"größe": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    result = pruneofa("inspect", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "gr\\xf6\\xdfe" in result.stdout


@pytest.mark.parametrize("text", ["0s", "90", "1.5h", "30m1h", "-5m", "ever", ""])
def test_a_time_limit_that_is_no_duration_is_refused(text):
    with pytest.raises(UserError, match=r"--max-time: .* is not a duration\n  Instead: e\.g\. 90s"):
        _seconds(text)


def test_durations_add_up_their_hours_minutes_and_seconds():
    durations = {"90s": 90, "150m": 9000, "2h": 7200, "1h30m": 5400, "1h1m1s": 3661}
    assert {text: _seconds(text) for text in durations} == durations


@pytest.mark.parametrize("option", ["--from", "--only"])
def test_a_time_limit_cannot_be_combined_with_what_makes_finished_stages_again(option, tmp_path):
    done = pruneofa("run", option, "student", "--max-time", "1h", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{option} and --max-time cannot be used together" in done.stderr
