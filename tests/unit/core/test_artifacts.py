"""A manifest is written only if it can be read back."""

import pytest

from toolkit.core.artifacts import Artifact, Check, Manifest, artifact_hash, read_manifest, write_manifest
from toolkit.core.errors import UserError
from toolkit.core.files import content_hash


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
