"""Effect of a larger pruning budget: compared only between runs that differ in nothing else."""

from typing import Any

import pytest

from tests.helpers.manifests import run_manifests
from toolkit.core import paths
from toolkit.core.artifacts import Manifest
from toolkit.pipeline.cache_keys import section_values, sections_of
from toolkit.pipeline.graph import STAGES
from toolkit.recipe.load import load_recipe
from toolkit.reporting.budgets import budget_gains

QUICKSTART = paths.RECIPES / "quickstart.yaml"
TRAIN, SCHEDULE = "student.distillation.train", "student.pruning.approach.weight_compression"


def run_of(*overrides: str, changes: dict[str, dict[str, Any]] | None = None) -> list[Manifest]:
    """A run of the quickstart's recipe with these overrides; its benchmark scores the same in every one of them.

    Args:
        changes: Stage -> further changes of its manifest.
    """
    recipe = load_recipe(QUICKSTART, ("ready={}", f"{SCHEDULE}.end_step=90", *overrides))
    train = recipe.student.distillation.train
    run = []
    for m in run_manifests(("reviews",), steps=train.steps or int(100 * train.epoch)):
        sections = sections_of(recipe, next(s.sections for s in STAGES if s.name == m.stage), m.task)
        digest = f"{m.stage} of {overrides}"
        values = {
            "config": {name: section_values(name, value) for name, value in sections.items()},
            "seed": recipe.seed,
            "artifact": m.artifact.model_copy(update={"sha256": digest}),
            "data": {"reviews.csv": {"sha256": "ab" * 32}, "note": "made up"},
        }
        if m.stage in ("transfer", "quantize"):
            from_stage = "student" if m.stage == "transfer" else "transfer"
            values["inputs"] = {name: f"{name} of {overrides}" for name in (from_stage, "task_teacher")}
        run.append(m.model_copy(update=values | (changes or {}).get(m.stage, {})))
    return run


LONGER = f"{TRAIN}.steps=1000"


@pytest.mark.parametrize(
    "also",
    [
        f"{SCHEDULE}.end_step=600",
        f"{SCHEDULE}.start_step=10",
        f"{SCHEDULE}.update_frequency_on_step=100",
        f"{SCHEDULE}.update_frequency=0.5",
        f"{TRAIN}.log_every=100",
        f"{TRAIN}.checkpoint_every=100",
        "transfer.distillation.train.log_every=100",
        "tasks.reviews.note=a larger budget",
    ],
)
def test_more_steps_are_compared_where_only_what_comes_with_them_differs(also):
    (gain,) = budget_gains([run_of(), run_of(LONGER, also)])
    assert (gain.task, gain.steps) == ("reviews", (150, 1000))


def test_more_steps_are_compared_where_they_are_said_in_epochs():
    (gain,) = budget_gains([run_of(), run_of(f"{TRAIN}.epoch=10", f"{SCHEDULE}.end_epoch=5")])
    assert gain.steps == (150, 1000)


@pytest.mark.parametrize(
    "also",
    [
        f"{TRAIN}.batch_size=256",
        f"{TRAIN}.optimizer.AdamW.learning_rate=9e-4",
        f"{TRAIN}.criterion.IntermediateLayersKnowledgeDistillationLoss.loss_types=[MSE]",
        f"{SCHEDULE}.prune_domain=global",
        f"{SCHEDULE}.target_sparsity=0.85",
        "student.distillation.positions=all",
        "corpus.limit=1000",
        "task_teacher.train.steps=151",
        "task_teacher.train.optimizer.AdamW.learning_rate=9e-4",
        "transfer.distillation.train.steps=201",
        "transfer.distillation.train.batch_size=8",
        "quantize.distillation.train.steps=41",
        "quantize.quantization.model_wise.weight.bit=7",
        "tasks.reviews.max_seq_length=64",
        "seed=7",
    ],
)
def test_nothing_is_said_of_more_steps_where_another_setting_differs(also):
    assert budget_gains([run_of(), run_of(LONGER, also)]) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"student": {"inputs": {"teacher": "34" * 32}}},
        {"student": {"data": {"corpus.txt": {"sha256": "cd" * 32}}}},
        {"transfer": {"data": {"reviews.csv": {"sha256": "cd" * 32}}}},
        {"transfer": {"inputs": {"student": "made before this one"}}},
        {"quantize": {"inputs": {"task_teacher": "a ready one"}}},
        {"quantize": {"seed": 7}},
    ],
)
def test_nothing_is_said_of_more_steps_where_data_or_what_a_stage_was_made_from_differs(changes):
    assert budget_gains([run_of(), run_of(LONGER, changes=changes)]) == []


def test_nothing_is_said_of_more_steps_where_one_run_lacks_a_stage():
    short = [m for m in run_of() if m.stage != "task_teacher"]
    assert budget_gains([short, run_of(LONGER)]) == []
