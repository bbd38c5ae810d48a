"""A stage whose checks fail: the report is written all the same, and the message names what to change."""

import pytest

from tests.helpers.models import load_classifier
from toolkit.cli.run import execute
from toolkit.core.errors import CheckFailed, CompressionFailed
from toolkit.models.load import load_tokenizer, save_checkpoint
from toolkit.pipeline.stages import export
from toolkit.recipe import Recipe


@pytest.fixture
def recipe(tiny_bert, tiny_task_files, tmp_path):
    folder = tmp_path / "model"
    save_checkpoint(load_classifier(tiny_bert, ("negative", "positive")), load_tokenizer(tiny_bert), folder)
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    return Recipe.model_validate(
        {
            "name": "failing",
            "model": {"source": str(tiny_bert)},
            "tasks": {"toy": task | {"ready": {"transfer": str(folder)}}},
            "export": {"variants": ["dense-fp32"]},
        }
    )


def test_a_report_is_written_when_a_check_fails(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "FP32_TOLERANCE", -1.0)
    with pytest.raises(CheckFailed) as caught:
        execute(recipe, tmp_path / "run")
    assert not isinstance(caught.value, CompressionFailed)
    said = str(caught.value)
    assert said.startswith("toy/export: 1 check(s) failed\n  dense-fp32: largest |IR - torch| logit")
    assert "\n    Instead: no key changes this limit" in said
    markdown = (tmp_path / "run/report/report.md").read_text()
    assert markdown.startswith("# toy: export failed 1 check\n")
    assert "| failed |" in markdown
    assert "toy: export failed 1 check." in capsys.readouterr().out
    assert not (tmp_path / "run/tasks/toy/export").exists(), "the stage is not finished"
    monkeypatch.undo()
    (done,) = execute(recipe, tmp_path / "run")
    assert all(check.ok for check in done.checks)
