"""Tuning on a model that INT8 everywhere breaks: the few matrices to blame go back to FP32, and nothing else."""

import json
from contextlib import nullcontext

import pytest
import torch

from tests.helpers.models import load_classifier
from toolkit.core.artifacts import Context, NullProgress
from toolkit.data.tasks import load_task
from toolkit.models.load import load_tokenizer, save_checkpoint
from toolkit.pipeline.run import Run
from toolkit.recipe import Recipe, Task, Train
from toolkit.training.datasets import task_data
from toolkit.training.distillation import TaskLoss
from toolkit.training.loop import fit, seed_everything

HOSTILE = {f"bert.encoder.layer.{i}.attention.output.dense" for i in (0, 1)} | {"bert.pooler.dense"}


@pytest.fixture(scope="module")
def hostile(tiny_bert, tiny_task_files, tmp_path_factory):
    """A toy classifier, good in FP32, in which the inputs of three matrices have one huge value that nothing reads.

    One scale for a whole tensor must cover that value too, so that 8 bits leave nothing of the others.
    """
    folder = tmp_path_factory.mktemp("hostile")
    tokenizer = load_tokenizer(tiny_bert)
    section = Task(train=str(tiny_task_files.train), dev=str(tiny_task_files.dev), max_seq_length=16)
    task = load_task("toy", section, tokenizer)
    seed_everything(0)
    model = load_classifier(tiny_bert, task.labels)
    settings = {"steps": 150, "batch_size": 16, "optimizer": {"AdamW": {"learning_rate": 3e-3}}}
    train = Train.model_validate(settings)
    data = task_data(task.train, tokenizer.pad_token_id, train, 0)
    fit(model, data, train, TaskLoss("classification"), Context(folder, folder / "work", 0))
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.value.bias[0] = 1e5
            layer.attention.output.dense.weight[:, 0] = 0.0
        model.bert.encoder.layer[1].output.LayerNorm.bias[0] = 1e5
        model.bert.pooler.dense.weight[:, 0] = 0.0
    save_checkpoint(model, tokenizer, folder / "model")
    return folder / "model"


def recipe(model, files, **quantize) -> Recipe:
    """Post-training quantization of a dense ready model, without what would move outliers away beforehand."""
    static = {
        "approach": "post_training_static_quant",
        "recipes": {"smooth_quant": False, "fast_bias_correction": False},
        "calibration": {"sampling_size": 16},
    }
    task = {
        "train": str(files.train),
        "dev": str(files.dev),
        "max_seq_length": 16,
        "ready": {"transfer": str(model)},
    }
    values = {
        "name": "tuned",
        "model": {"source": str(model)},
        "tasks": {"toy": task},
        "quantize": {"quantization": static, "tuning": {"accuracy_criterion": {"relative": 0.02}}} | quantize,
        "export": {"variants": ["sparse-fp32", "sparse-int8"]},
    }
    return Recipe.model_validate(values)


def run(chosen: Recipe, folder) -> dict:
    manifests = Run(chosen, folder, lambda step: nullcontext(NullProgress()))()
    return {m.stage: m for m in manifests}


@pytest.fixture(scope="module")
def tuned(hostile, tiny_task_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    return folder, run(recipe(hostile, tiny_task_files), folder)


def test_a_model_that_8_bits_break_is_recovered_by_the_matrices_to_blame(tuned):
    _, manifests = tuned
    found = manifests["quantize"].metrics["tuning"]
    assert not found["trials"][0]["met"]
    assert found["trials"][0]["loss"] > 0.1
    assert found["met"]
    assert len(found["returned"]) >= 2
    assert set(found["returned"]) <= HOSTILE
    assert len(found["sensitivity"]) > 4 * len(HOSTILE)
    assert found["trials"][found["kept"]]["loss"] <= found["limit"]
    assert found["examples"] == 48
    assert found["limit"] == pytest.approx(1 / 48 / found["reference"])  # one example, which is more than 2 %


def test_the_ir_has_the_returned_matrices_in_fp32_and_all_others_in_8_bits(tuned):
    _, manifests = tuned
    matmuls = manifests["export"].metrics["variants"]["dense-int8"]["matmuls"]
    returned = set(manifests["quantize"].metrics["tuning"]["returned"])
    assert {m["module"] for m in matmuls if m["stored_type"] == "f32"} == returned
    assert all(m["input_fake_quantized"] for m in matmuls if m["module"] not in returned)
    assert all(check.ok for m in manifests.values() for check in m.checks)


def test_dev_scores_of_the_tuned_model_are_close_to_fp32(tuned):
    _, manifests = tuned
    exported = manifests["export"].metrics["variants"]
    lost = exported["dense-fp32"]["ir"]["accuracy"] - exported["dense-int8"]["ir"]["accuracy"]
    assert lost <= 0.05


def test_an_interrupted_search_goes_on_without_repeating_a_trial(
    tuned, hostile, tiny_task_files, tmp_path, monkeypatch
):
    from toolkit.pipeline.stages import quantize_trials
    from toolkit.quantization.tuning import Trial

    made = []
    make = quantize_trials.Trials.make

    def stop_at_two(self, number, returned):
        made.append(number)
        if number == 2 and made.count(2) == 1:
            raise KeyboardInterrupt
        return make(self, number, returned)

    monkeypatch.setattr(quantize_trials.Trials, "make", stop_at_two)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(hostile, tiny_task_files), tmp_path / "run")
    manifests = run(recipe(hostile, tiny_task_files), tmp_path / "run")
    assert made.count(0) == made.count(1) == 1
    ours, whole = manifests["quantize"].metrics["tuning"], tuned[1]["quantize"].metrics["tuning"]
    assert [t["metric"] for t in ours["trials"]] == [t["metric"] for t in whole["trials"]]
    assert ours["returned"] == whole["returned"]
    assert Trial(**ours["trials"][0]).number == 0


@pytest.mark.parametrize("objective", ["performance", "modelsize", "footprint"])
def test_the_objective_is_measured_on_every_model_that_meets_the_criterion(
    hostile, tiny_task_files, tmp_path, objective, monkeypatch
):
    from toolkit.pipeline.stages import quantize as stage

    def three(attempt, rank, section):
        everywhere = attempt(0, ())
        first, second = rank()[:2]
        return everywhere, attempt(1, (first, second)), attempt(2, (first,))

    monkeypatch.setattr(stage, "search", three)
    wanted = {"accuracy_criterion": {"absolute": 0.99}, "objective": objective}
    chosen = recipe(hostile, tiny_task_files, tuning=wanted)
    found = run(chosen.model_copy(update={"export": None}), tmp_path / "run")["quantize"].metrics["tuning"]
    costs = {int(number): cost for number, cost in found["costs"].items()}
    assert costs.keys() == {0, 1, 2}
    assert costs[found["kept"]] == min(costs.values())
    if objective == "modelsize":
        assert costs[0] < costs[2] < costs[1]


def test_retraining_gives_each_trial_its_own_budget(hostile, tiny_task_files, tmp_path, monkeypatch):
    from toolkit.pipeline.stages import quantize as stage

    monkeypatch.setattr(stage, "search", lambda attempt, rank, _: (attempt(0, ()), attempt(1, tuple(rank()[:1]))))
    monkeypatch.setattr(stage, "select", lambda trials, *_: trials[1])
    quantize = {
        "quantization": {"train": {"steps": 4, "batch_size": 8, "log_every": 2}, "calibration": {"sampling_size": 8}},
        "tuning": {"retrain_steps": 3},
    }
    chosen = recipe(hostile, tiny_task_files, **quantize).model_copy(update={"export": None})
    manifest = run(chosen, tmp_path / "run")["quantize"]
    assert manifest.metrics["tuning"]["kept"] == 1
    assert manifest.metrics["retrain_steps"] == 3
    assert [row["step"] for row in manifest.history] == [2, 4, 4 + 2, 4 + 3]


def test_the_trials_are_told_in_the_terminal_and_the_report(tuned, tmp_path):
    from rich.console import Console

    from toolkit import reporting

    _, manifests = tuned
    page = reporting.build([list(manifests.values())], tmp_path / "report")
    assert page.is_file()
    assert json.loads((tuned[0] / "tasks/toy/quantize/tuning.json").read_text())["met"]
    console = Console(record=True, width=100)
    console.print(reporting.console([list(manifests.values())]))
    assert "checks passed" in console.export_text()


def test_a_search_without_success_says_so_with_both_scores(hostile, tiny_task_files, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(NullProgress, "message", lambda self, text: said.append(text))
    chosen = recipe(hostile, tiny_task_files, tuning={"exit_policy": {"max_trials": 1}})
    found = run(chosen.model_copy(update={"export": None}), tmp_path / "run")["quantize"].metrics["tuning"]
    assert not found["met"]
    trial, last = said[-2:]
    assert trial.startswith("trial 0, all in INT8: accuracy 0.")
    assert " (FP32: 0.9" in trial or " (FP32: 1.0" in trial
    assert last.startswith("no trial meets the criterion on ")
    assert last.endswith(" tuning examples: going on with trial 0, whose score is best")
