"""Training and evaluation on a GPU against the same recipe on the CPU; `pytest -m gpu` runs these tests alone."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.helpers.models import load_classifier
from tests.integration.test_processes import manifest
from toolkit.data.tasks import load_task
from toolkit.models.load import load_tokenizer
from toolkit.recipe import Task
from toolkit.training.evaluation import predict

pytestmark = pytest.mark.gpu
TRAINED = ("teacher", "student", "task_teacher", "transfer")


@pytest.fixture(scope="module")
def runs(recipe_file, tmp_path_factory):
    """Device and precision -> run folder of the recipe up to `transfer`; its model has no dropout."""
    found = {}
    for name, visible, precision in (("cpu", "", "fp32"), ("gpu", None, "fp32"), ("gpu in bf16", None, "bf16")):
        folder = tmp_path_factory.mktemp(name)
        command = [sys.executable, "-m", "toolkit", "run", str(recipe_file), "quantize=null", "--runs", str(folder)]
        command += [f"{stage}.precision={precision}" for stage in TRAINED]
        hidden = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        done = subprocess.run(command, env=os.environ | hidden, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[name] = folder / "tiny"
    return found


@pytest.mark.parametrize(("run", "tolerance"), [("gpu", 1e-3), ("gpu in bf16", 3e-2)])
@pytest.mark.parametrize("stage", TRAINED)
def test_the_losses_of_every_training_are_those_of_the_cpu(runs, run, tolerance, stage):
    cpu, gpu = manifest(runs["cpu"], stage), manifest(runs[run], stage)
    for name in ("loss", "task_loss", "kd_loss"):
        values = [row[name] for row in cpu["history"] if name in row]
        found = [row[name] for row in gpu["history"] if name in row]
        # The distance from the teacher is nearly 0 where both models are alike: rounding is large beside it.
        assert found == pytest.approx(values, rel=tolerance, abs=tolerance / 100)
    assert gpu["metrics"].get("bf16", False) == (run == "gpu in bf16")


@pytest.mark.parametrize(("run", "tolerance"), [("gpu", 1e-3), ("gpu in bf16", 3e-2)])
def test_what_evaluation_measures_is_what_the_cpu_measures(runs, run, tolerance):
    cpu, gpu = (manifest(runs[name], "student")["metrics"] for name in ("cpu", run))
    for name in ("mlm_loss_before", "mlm_loss"):
        assert gpu[name] == pytest.approx(cpu[name], rel=tolerance)
    cpu, gpu = (manifest(runs[name], "transfer")["metrics"] for name in ("cpu", run))
    assert gpu["sparsity"] == pytest.approx(cpu["sparsity"], abs=0.01)
    assert gpu["dev"]["accuracy"] == pytest.approx(
        cpu["dev"]["accuracy"], abs=3 / gpu["dev_n"] if run == "gpu" else 0.1
    )


def test_zeros_are_exact_on_the_gpu(runs):
    for run in ("gpu", "gpu in bf16"):
        for stage in ("student", "transfer"):
            assert all(check["ok"] for check in manifest(runs[run], stage)["checks"])


def test_a_model_that_evaluation_has_moved_can_be_trained(tiny_bert, tiny_task_files):
    task = load_task(
        "t", Task(train=str(tiny_task_files.train), dev=str(tiny_task_files.dev)), load_tokenizer(tiny_bert)
    )
    model = load_classifier(tiny_bert, task.labels)
    expected = torch.tensor(predict(model, task.dev, 0))
    assert next(model.parameters()).is_cuda
    inputs = {"input_ids": torch.tensor([task.dev[0]["input_ids"]], device="cuda")}
    model.train()(**inputs).logits.sum().backward()
    assert all(p.grad is None or p.grad.is_cuda for p in model.parameters())
    assert any(p.grad is not None for p in model.parameters())
    assert len(expected) == len(task.dev)


def test_the_recipe_has_a_precision_in_every_training(recipe_file, runs):
    """Else `<stage>.precision=bf16` above would change nothing."""
    for stage in TRAINED:
        assert "bf16" in json.dumps(manifest(runs["gpu in bf16"], stage)["config"])
