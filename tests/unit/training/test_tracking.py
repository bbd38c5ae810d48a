"""Training curves in other tools: the Trainer's own callbacks get each point, and results stay the same."""

import importlib.util
import sys

import pytest
import torch

from tests.helpers.trackers import mlflow_calls, wandb_calls
from tests.unit.training.conftest import STEPS
from toolkit.core.artifacts import Tracking
from toolkit.core.errors import UserError
from toolkit.pipeline.requirements import TRACKERS, require_tracker
from toolkit.training import distributed

NAME = "mine: toy/transfer"


@pytest.fixture
def mlflow(monkeypatch):
    return mlflow_calls(monkeypatch)


@pytest.fixture
def wandb(monkeypatch):
    return wandb_calls(monkeypatch)


def weights(done):
    return {name: value.clone() for name, value in done.model.state_dict().items()}


def test_mlflow_gets_each_point_of_the_curve_in_one_run_per_training(mlflow, lesson, tmp_path):
    plain = lesson("plain")
    assert mlflow == []
    done = lesson("one", tracking=Tracking("mlflow", NAME, tmp_path / "log"))
    assert [run["run_name"] for run in mlflow.of("start_run")] == [NAME]
    points = [call for call in mlflow.of("log_metrics") if "loss" in call["metrics"]]
    assert [call["step"] for call in points] == list(range(1, STEPS + 1))
    assert [call["metrics"]["loss"] for call in points] == [row["loss"] for row in done.fitted.history]
    assert points[-1]["metrics"]["sparsity"] == pytest.approx(0.8, abs=0.01)
    assert len(mlflow.of("end_run")) == 1
    assert done.fitted.history == plain.fitted.history
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(done).items())


def test_wandb_has_a_new_run_for_each_training(wandb, lesson, tmp_path):
    for name in ("first", "second"):
        lesson(name, tracking=Tracking("wandb", name, tmp_path / "log"))
    assert [call["name"] for call in wandb.of("init")] == ["first", "second"]
    assert [name for name, _ in wandb if name in ("init", "finish")] == ["init", "finish"] * 2
    assert wandb.of("finish") == [{}, {}]
    steps = [call[0]["train/global_step"] for call in wandb.of("log") if "train/loss" in call[0]]
    assert steps == [*range(1, STEPS + 1)] * 2


@pytest.mark.parametrize("unreachable", [False, True])
def test_a_run_of_wandb_fails_with_a_training_that_fails(wandb, lesson, tmp_path, monkeypatch, unreachable):
    if unreachable:
        finish = sys.modules["wandb"].finish
        monkeypatch.setattr(sys.modules["wandb"], "finish", lambda **named: [finish(**named), 1 / 0])
    with pytest.raises(UserError, match="has diverged"):
        lesson(optimizer={"AdamW": {"learning_rate": 1e25}}, tracking=Tracking("wandb", NAME, tmp_path / "log"))
    assert wandb.of("finish") == [{"exit_code": 1}]


def test_only_the_first_process_reports(mlflow, lesson, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with pytest.raises(distributed.WorkerDone):
        lesson(tracking=Tracking("mlflow", NAME, tmp_path / "log"))
    assert mlflow == []


def test_tensorboard_writes_into_the_folder_of_the_stage(lesson, tmp_path):
    lesson(tracking=Tracking("tensorboard", NAME, tmp_path / "log"))
    (events,) = (tmp_path / "log").glob("events.*")
    assert b"train/loss" in events.read_bytes()


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tool_that_is_not_installed_is_named_with_its_command(name, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else find(module))
    with pytest.raises(UserError, match=f"{name} is not installed") as error:
        require_tracker(name)
    assert error.value.instead.endswith(f"'.[{name}]'")


def test_a_tool_that_is_not_known_is_refused():
    with pytest.raises(UserError, match="'neptune' is no tool"):
        require_tracker("neptune")
