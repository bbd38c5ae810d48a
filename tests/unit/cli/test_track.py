"""`run --track`: refused before anything starts, and no part of a result."""

import pytest

from tests.helpers.trackers import mlflow_calls
from tests.integration.test_whole import tiny_recipe
from toolkit.cli.run import execute
from toolkit.core.errors import UserError


@pytest.fixture(scope="module")
def recipe(tiny_bert, tiny_task_files, tiny_text):
    """A recipe with one stage, of three steps."""
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    left_out = dict.fromkeys(["corpus", "teacher", "student", "transfer", "quantize", "export", "benchmark"])
    return tiny_recipe(tiny_bert, task, tiny_text, **left_out, task_teacher={"train": {"steps": 3, "log_every": 1}})


def test_a_tool_that_is_missing_ends_the_command_before_anything_is_written(recipe, tmp_path):
    with pytest.raises(UserError, match="'paper' is no tool for training curves"):
        execute(recipe, tmp_path / "run", track="paper")
    assert not (tmp_path / "run").exists()


def test_a_tracked_stage_is_named_in_the_tool_and_reused_without_it(recipe, tmp_path, monkeypatch):
    calls = mlflow_calls(monkeypatch)
    (tracked,) = execute(recipe, tmp_path / "run", track="mlflow")
    assert [call["run_name"] for call in calls.of("start_run")] == ["tiny: toy/task_teacher"]
    points = [call["metrics"]["loss"] for call in calls.of("log_metrics") if "loss" in call["metrics"]]
    assert points == [row["loss"] for row in tracked.history]
    assert execute(recipe, tmp_path / "run") == [tracked], "tracking is no part of the cache key"
    assert "mlflow" not in tracked.model_dump_json()
