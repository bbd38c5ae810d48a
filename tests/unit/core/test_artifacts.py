"""A manifest is written only if it can be read back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.core.artifacts import Artifact, Check, Manifest, artifact_hash, read_manifest, write_manifest
from toolkit.core.errors import UserError
from toolkit.core.files import content_hash, write_atomic


def manifest(**values):
    artifact = Artifact(kind="task", path="student", sha256="00")
    defaults = {"stage": "student", "key": "k", "config": {}, "inputs": {}, "seed": 1, "artifact": artifact}
    return Manifest(**defaults | {"started": "now", "seconds": 1.0} | values)


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"metrics": {"dev": {"accuracy": NAN}}}, r"metrics\.dev\.accuracy is nan"),
        ({"metrics": {"trials": [{"loss": 1.0}, {"loss": -INFINITE}]}}, r"metrics\.trials\.1\.loss is -inf"),
        ({"history": ({"step": 1.0, "loss": INFINITE},)}, r"history\.0\.loss is inf"),
        ({"checks": (Check(name="off by", ok=False, measured=NAN, limit=0.1),)}, r"checks\.off by is nan"),
    ],
)
def test_a_manifest_with_a_value_that_is_not_finite_is_not_written(tmp_path, values, words):
    with pytest.raises(UserError, match=words):
        write_manifest(tmp_path, manifest(**values))
    assert not list(tmp_path.iterdir())


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    written = manifest(metrics={"dev": {"accuracy": 0.5}, "note": "NaN", "n": 3, "tuning": None})
    write_manifest(tmp_path, written)
    assert read_manifest(tmp_path) == written


def test_a_card_and_a_manifest_are_no_part_of_an_ir_and_a_card_is_of_a_checkpoint(tmp_path):
    (tmp_path / "dense-fp32").mkdir()
    (tmp_path / "dense-fp32" / "openvino_model.xml").write_text("<net/>")
    kinds = ("ir", "task")
    before = [artifact_hash(kind, tmp_path) for kind in kinds]
    assert before[0] == before[1] == content_hash(tmp_path)
    (tmp_path / "dense-fp32" / "manifest.json").write_text("{}")
    assert [artifact_hash(kind, tmp_path) for kind in kinds] == before
    (tmp_path / "dense-fp32" / "README.md").write_text("# Card")
    assert artifact_hash("ir", tmp_path) == before[0]
    assert artifact_hash("task", tmp_path) != before[1]
    (tmp_path / "dense-fp32" / "openvino_model.xml").write_text("<net />")
    assert artifact_hash("ir", tmp_path) != before[0]


def test_texts_are_written_in_utf_8_whatever_the_locale_is(tmp_path):
    code = "import sys; from toolkit.core.files import write_atomic, Path; write_atomic(Path(sys.argv[1]), chr(0x2212))"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True, env=os.environ | plain)
    assert (tmp_path / "a").read_bytes() == b"\xe2\x88\x92"


def test_two_processes_that_write_the_same_file_do_not_disturb_each_other(tmp_path, monkeypatch):
    path, replace = tmp_path / "a", Path.replace

    def after_another(temporary, target):
        monkeypatch.setattr(Path, "replace", replace)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: -1)
            write_atomic(path, "other")
        return replace(temporary, target)

    monkeypatch.setattr(Path, "replace", after_another)
    write_atomic(path, "mine")
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
