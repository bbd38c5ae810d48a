"""A transfer that starts from kept weights computed again for the task teacher."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.recipes import SMALL
from tests.integration.test_whole import tiny_recipe
from toolkit.core.artifacts import Context, NullProgress
from toolkit.core.errors import UserError
from toolkit.data.batches import model_inputs, pad
from toolkit.data.tasks import load_task
from toolkit.models.load import load_task_model, load_tokenizer, prunable_matrices
from toolkit.pipeline.run import Run
from toolkit.recipe import Task
from toolkit.recipe.load import parse_recipe
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.pruners import PatternLock
from toolkit.training.reconstruction import ReconstructedLock

STEPS = {"steps": 6, "batch_size": 8, "checkpoint_every": 2}


@pytest.fixture
def parts(tiny_bert, tiny_task_files, tmp_path):
    """A sparse model and a teacher of the same task, whose weights have moved, and the task."""
    tokenizer = load_tokenizer(tiny_bert)
    section = Task(train=str(tiny_task_files.train), dev=str(tiny_task_files.dev), max_seq_length=16)
    task = load_task("tiny", section, tokenizer)
    torch.manual_seed(0)
    teacher = load_task_model(tiny_bert, task.kind, task.labels, fitted=False).eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter) if parameter.numel() > 1 else 0)
    matrices = prunable_matrices(student)
    masks = {n: torch.rand_like(m.weight) < 0.4 for n, m in matrices.items()}
    lock = PatternLock(SparsityMask(masks))
    lock.attach(matrices)
    context = Context(folder=tmp_path, work=tmp_path / "w", cache=tmp_path / "c", seed=0, progress=NullProgress())
    return student, teacher, lock, task, tokenizer, context


def distance(student: Any, teacher: Any, task: Any, pad_id: int) -> float:
    batch = model_inputs(pad([task.dev[i] for i in range(32)], pad_id))
    with torch.no_grad():
        own, other = (model.base_model(**batch).last_hidden_state for model in (student, teacher))
    return float((own - other)[batch["attention_mask"].bool()].square().mean())


def test_outputs_come_nearer_to_the_teachers_and_zeros_stay(parts):
    student, teacher, lock, task, tokenizer, context = parts
    sparsifier = ReconstructedLock(lock, student, teacher, task.train, 200, tokenizer.pad_token_id, context)
    student.eval()
    before = distance(student, teacher, task, tokenizer.pad_token_id)
    assert sparsifier.before_step(0)
    assert distance(student, teacher, task, tokenizer.pad_token_id) < 0.5 * before
    weights = dict(student.named_parameters())
    for name, kept in sparsifier.mask.tensors.items():
        assert not weights[name][~kept].any()
    taken = [n for n, p in teacher.named_parameters() if torch.equal(p, weights[n])]
    assert any("embeddings" in name for name in taken)
    assert any("classifier" in name for name in taken)
    assert not any(".layer." in name and name.endswith("weight") and "LayerNorm" not in name for name in taken)
    now = {name: parameter.clone() for name, parameter in weights.items()}
    assert not sparsifier.before_step(1)  # a resumed run does not repeat it
    assert all(torch.equal(now[name], parameter) for name, parameter in student.named_parameters())
    errors = sparsifier.metrics()["matrices"].values()
    assert all(e["after"] < e["before"] for e in errors)
    last = sparsifier.metrics()["last_layer"]
    assert sparsifier.metrics()["taken"]
    assert last["after"] < 0.5 * last["before"]


def test_a_student_that_is_closer_to_the_teacher_keeps_its_weights(parts):
    student, teacher, lock, task, tokenizer, context = parts
    lock.after_optimizer_step()
    teacher.load_state_dict(student.state_dict())
    own = {name: parameter.clone() for name, parameter in student.named_parameters()}
    sparsifier = ReconstructedLock(lock, student, teacher, task.train, 200, tokenizer.pad_token_id, context)
    sparsifier.before_step(0)
    found = sparsifier.metrics()
    assert not found["taken"]
    assert found["last_layer"]["after"] >= found["last_layer"]["before"]
    assert all(torch.equal(own[name], parameter) for name, parameter in student.named_parameters())


def test_examples_are_held_out_beside_those_that_were_asked_for(parts):
    student, teacher, lock, task, tokenizer, context = parts
    assert len(task.train) > 330
    for count in (200, len(task.train) - 64):
        sparsifier = ReconstructedLock(lock, student, teacher, task.train, count, tokenizer.pad_token_id, context)
        assert sparsifier.examples == count
    every = ReconstructedLock(lock, student, teacher, task.train, 10_000, tokenizer.pad_token_id, context)
    assert every.examples == len(task.train) - 64


def test_the_errors_survive_a_checkpoint(parts):
    student, teacher, lock, task, tokenizer, context = parts
    sparsifier = ReconstructedLock(lock, student, teacher, task.train, 200, tokenizer.pad_token_id, context)
    sparsifier.before_step(0)
    other = ReconstructedLock(lock, student, teacher, task.train, 200, tokenizer.pad_token_id, context)
    other.load_state_dict(sparsifier.state_dict())
    assert other.metrics() == sparsifier.metrics()


def test_too_few_examples_are_refused(parts):
    student, teacher, lock, task, tokenizer, context = parts
    with pytest.raises(UserError, match="columns of the widest matrix") as error:
        ReconstructedLock(lock, student, teacher, task.train, 2, tokenizer.pad_token_id, context)
    assert error.value.where == "transfer.reconstruction.examples"


def test_another_teacher_is_refused(parts, tiny_bert):
    student, teacher, lock, task, tokenizer, context = parts
    teacher.base_model.encoder.layer = teacher.base_model.encoder.layer[:1]
    with pytest.raises(UserError, match="different parameters"):
        ReconstructedLock(lock, student, teacher, task.train, 200, tokenizer.pad_token_id, context)


def test_the_stage_records_it(tiny_bert, tiny_task_files, tiny_text, tmp_path):
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    distillation = {"train": STEPS | {"criterion": {"KnowledgeDistillationLoss": {"loss_weights": [0, 1]}}}}
    recipe = tiny_recipe(
        tiny_bert, task, tiny_text, transfer={"distillation": distillation, "reconstruction": {"examples": 200}}
    )
    recipe = recipe.model_copy(update={"quantize": None, "export": None, "benchmark": None})
    found = {m.stage: m for m in Run(recipe, tmp_path, lambda step: nullcontext(NullProgress()))()}
    recorded = found["transfer"].metrics["reconstruction"]
    assert recorded["examples"] == 200
    assert len(recorded["matrices"]) == len(found["student"].metrics["per_matrix"])
    weights = load_file(tmp_path / "tasks" / next(iter(recipe.tasks)) / "transfer" / "model.safetensors")
    zeros = found["student"].metrics["per_matrix"]
    assert all(float((weights[name] == 0).float().mean()) == pytest.approx(zeros[name]) for name in zeros)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("transfer:\n  reconstruction: {}\n  pruning: {train: {steps: 10}}\n", "needs a task teacher"),
        (
            "transfer:\n  reconstruction: {}\n  distillation: {train: {steps: 10}}\n"
            "  pruning: {approach: {weight_compression: {pruners: [{prune_type: magnitude}]}}}\n",
            "needs the patterns of all matrices locked",
        ),
        (
            "transfer:\n  reconstruction: {}\n  distillation: {train: {steps: 10}}\n",
            "needs a student with all layers of its teacher",
        ),
    ],
)
def test_what_a_recipe_cannot_do_is_refused(changed, message):
    text = SMALL.split("transfer:")[0].replace("student:\n", "student:\n  layers: 3\n") + changed
    with pytest.raises(UserError, match=message):
        parse_recipe(text, "recipe.yaml")
