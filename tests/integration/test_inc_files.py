"""Every INC file that ships, and INC's own minimal ones, from YAML to OpenVINO IR on a tiny model."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from tests.helpers.models import load_classifier
from toolkit.core import paths
from toolkit.core.artifacts import Context, NullProgress
from toolkit.data.tasks import load_task
from toolkit.models.load import load_tokenizer, prunable_matrices, save_checkpoint
from toolkit.pipeline import preflight
from toolkit.pipeline.run import Run
from toolkit.recipe import LOCK, VARIANTS, Task, Train
from toolkit.recipe.inc import IncFlags, explain, read_inc
from toolkit.recipe.load import parse_recipe
from toolkit.sparsity.mask import SparsityMask
from toolkit.training.datasets import task_data
from toolkit.training.distillation import TaskLoss
from toolkit.training.loop import fit

CONFIGS = paths.RECIPES / "inc"
SHIPPED = sorted(CONFIGS.glob("*.yaml"))

# INC's own files for Prune-OFA: that little is in them, the rest were flags of a script.
INC_PRUNE = """\
model:
  name: bert_prune
  framework: pytorch_fx

pruning:
  approach:
    weight_compression:
      start_epoch: 0
      pruners:
        - !Pruner
            prune_type: pattern_lock

tuning:
  accuracy_criterion:
    relative:  0.1
  exit_policy:
    timeout: 0
  random_seed: 9527
"""
INC_QAT = """\
model:
  name: bert_qat
  framework: pytorch_fx

quantization:
  approach: quant_aware_training

tuning:
  random_seed: 9527
"""
INC_DISTILLATION = """\
model:
  name: bert_distillation
  framework: pytorch_fx

distillation:
  train:
    criterion:
      KnowledgeDistillationLoss:
        temperature: 1.0
        loss_types: ['CE', 'CE']
        loss_weights: [0.5, 0.5]

tuning:
  random_seed: 9527
"""


@pytest.fixture(scope="module")
def sources(tiny_bert, tiny_task_files, tmp_path_factory):
    """Folders of a dense classifier and of a sparse one that knows nothing yet, and a small task: 80 rows to learn."""
    folder = tmp_path_factory.mktemp("inc")
    tokenizer = load_tokenizer(tiny_bert)
    torch.manual_seed(0)
    dense = load_classifier(tiny_bert, ["0", "1"])
    weights = {name: module.weight for name, module in prunable_matrices(dense).items()}
    SparsityMask({name: torch.rand_like(weight) >= 0.9 for name, weight in weights.items()}).apply_(weights)
    save_checkpoint(dense, tokenizer, folder / "sparse")
    rows = tiny_task_files.train.read_text().splitlines()[:81]
    (folder / "train.tsv").write_text("\n".join(rows) + "\n")
    (folder / "dev.tsv").write_text("\n".join(tiny_task_files.dev.read_text().splitlines()[:41]) + "\n")
    # The dense model is a teacher, which must know the task.
    section = Task(train=str(tiny_task_files.train), dev=str(folder / "dev.tsv"), max_seq_length=16)
    task, dense = load_task("toy", section, tokenizer), load_classifier(tiny_bert, ["0", "1"])
    train = Train.model_validate({"steps": 120, "batch_size": 16, "optimizer": {"AdamW": {"learning_rate": 1e-3}}})
    data = task_data(task.train, tokenizer.pad_token_id, train, 0)
    fit(dense, data, train, TaskLoss(task.kind), Context(folder, folder / "work", 0))
    save_checkpoint(dense, tokenizer, folder / "dense")
    return folder


def recipe_of(files: list[Path], sources: Path, *, model: str, teacher: bool, overrides=()):
    flags = IncFlags(
        model=str(sources / model),
        teacher=str(sources / "dense") if teacher else None,
        task="toy",
        train_file=str(sources / "train.tsv"),
        validation_file=str(sources / "dev.tsv"),
        max_seq_length=16,
        per_device_train_batch_size=8,
    )
    plan = read_inc(files, flags)
    return parse_recipe(explain(plan), "explained", overrides), plan


def run(recipe, folder: Path):
    preflight.check_recipe(recipe)
    manifests = Run(recipe, folder, lambda step: nullcontext(NullProgress()))()
    return {m.stage: m for m in manifests}


def shorter(recipe) -> list[str]:
    """Overrides that make any of the files quick on a tiny model: few steps, no timing, a small calibration."""
    changes = ["export.metric_tolerance=0.2", "benchmark=null"]
    if recipe.quantize:
        changes.append("calibration.sampling_size=8")
        if recipe.quantize.train:
            changes.append("quantize.steps=6")
        changes.append("max_trials=2")
        changes.append("quantize.timeout=0")
    compression = recipe.transfer.pruning.approach.weight_compression if recipe.transfer else None
    if compression is not None and recipe.transfer.pruning.only_locks:
        changes.append("transfer.steps=8")
    elif compression is not None and not compression.in_epochs():
        changes += ["transfer.steps=24", "transfer.start_step=2", "transfer.end_step=16", "update_frequency_on_step=2"]
    return changes


def is_taught(path: Path) -> bool:
    return "distillation" in path.read_text().split("#", 1)[-1] and "\ndistillation:" in path.read_text()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_inc_file_runs_to_ir(path, sources, tmp_path):
    text = path.read_text()
    locks = "pattern_lock" in text and not any(f"prune_type: {t}" in text for t in ("basic_magnitude", "magnitude"))
    model = "sparse" if locks or "\npruning:" not in text else "dense"
    first, _ = recipe_of([path], sources, model=model, teacher=is_taught(path))
    recipe, _ = recipe_of([path], sources, model=model, teacher=is_taught(path), overrides=shorter(first))
    manifests = run(recipe, tmp_path / "run")
    assert all(check.ok for m in manifests.values() for check in m.checks)
    assert manifests["export"].metrics["variants"]
    if recipe.transfer and not recipe.transfer.pruning.only_locks:
        assert manifests["transfer"].metrics["sparsity"] > 0.3
    if recipe.quantize:
        kinds = {m["stored_type"] for m in manifests["export"].metrics["variants"]["sparse-int8"]["matmuls"]}
        assert "i8" in kinds


def write(folder: Path, **texts: str) -> list[Path]:
    paths = []
    for name, text in texts.items():
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(text)
    return paths


def test_incs_own_files_for_prune_ofa_run_unchanged_and_keep_exactly_the_zeros(sources, tmp_path):
    files = write(tmp_path, prune=INC_PRUNE, qat=INC_QAT, distillation=INC_DISTILLATION)
    overrides = [
        "transfer.steps=8",
        "quantize.steps=6",
        "benchmark=null",
        "export.metric_tolerance=0.2",
        "max_trials=1",
    ]
    recipe, _ = recipe_of(files, sources, model="sparse", teacher=True, overrides=overrides)
    assert recipe.seed == 9527
    assert [p.prune_type for p in recipe.transfer.pruning.approach.weight_compression.pruners] == [LOCK]
    manifests = run(recipe, tmp_path / "run")
    assert [m.stage for m in manifests.values()] == ["transfer", "quantize", "export"]
    assert set(manifests["export"].metrics["variants"]) == set(VARIANTS)

    tokenizer = load_tokenizer(sources / "sparse")
    assert load_task("toy", recipe.tasks["toy"], tokenizer).labels == ("0", "1")
    start = load_classifier(sources / "sparse", ["0", "1"])
    zeros = {name: module.weight == 0 for name, module in prunable_matrices(start).items()}
    transferred = load_classifier(tmp_path / "run/tasks/toy/transfer", ["0", "1"])
    for name, module in prunable_matrices(transferred).items():
        assert torch.equal(module.weight == 0, zeros[name])
    final = SparsityMask.load(tmp_path / "run/tasks/toy/quantize/mask.safetensors")
    assert all(torch.equal(~kept, zeros[name]) for name, kept in final.tensors.items())


def test_the_recipe_that_is_explained_can_be_saved_and_is_the_one_that_runs(sources, tmp_path):
    from toolkit.recipe.load import load_recipe

    files = write(tmp_path, prune=INC_PRUNE, qat=INC_QAT)
    recipe, plan = recipe_of(files, sources, model="sparse", teacher=True)
    saved = tmp_path / "recipe.yaml"
    saved.write_text(explain(plan))
    assert load_recipe(saved) == recipe
