"""Tasks of a recipe: public ones by name, kinds and their metrics, and sections of a task's own."""

import pytest
from pydantic import ValidationError

from toolkit.core.errors import UserError
from toolkit.recipe import Task
from toolkit.recipe.load import dump_recipe, parse_recipe
from toolkit.recipe.presets import PRESETS

RECIPE = """
name: r
model: {source: m}
ready: {student: s}
tasks:
  sst2: {preset: sst2}
  squad:
    preset: squad
    transfer: {distillation: {train: {epoch: 8, batch_size: 12}}}
transfer:
  distillation:
    train:
      steps: 100
      batch_size: 32
      optimizer: {AdamW: {learning_rate: 1e-4}}
"""


@pytest.mark.parametrize("preset", PRESETS)
def test_every_public_task_is_whole_by_its_name_alone(preset):
    task = Task(preset=preset)
    assert task.train.startswith("hub:")
    assert task.hold_out or task.dev.startswith("hub:")
    assert (task.kind in ("classification", "token_classification")) == bool(task.labels)


def test_what_a_recipe_says_wins_over_the_preset():
    task = Task(preset="mnli", train="t.tsv", dev="d.tsv", max_seq_length=64)
    assert (task.train, task.dev, task.max_seq_length) == ("t.tsv", "d.tsv", 64)
    assert task.more_dev == {}  # the public mismatched split does not belong to another dev file
    assert task.columns == ("premise", "hypothesis")
    assert Task(preset="mnli", train="t.tsv").more_dev.keys() == {"mismatched"}
    assert Task(preset="rte", train="t.tsv", hold_out={"column": "group"}).dev is None
    assert Task(preset="msmarco", dev="d.jsonl").hold_out is None


def test_metric_is_that_of_the_kind_where_none_is_said():
    assert Task(train="t", dev="d").metrics == ("accuracy",)
    assert Task(train="t", dev="d", kind="regression").metrics == ("pearson",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{preset: sst2, metrics: [pearson]}", "pearson is not supported for classification"),
        ("{preset: stsb, metrics: [accuracy]}", "accuracy is not supported for regression"),
        ("{preset: stsb, labels: [a, b]}", "has no classes"),
        ("{preset: squad, columns: [text]}", "needs 2 columns, in this order"),
        ("{preset: squad, max_seq_length: 190}", "windows would not advance"),
        ("{preset: sst2, max_seq_length: 7}", "tasks.t.max_seq_length must be an integer >= 8"),
        ("{preset: qnli, max_seq_length: true}", "tasks.t.max_seq_length must be an integer >= 8"),
        ("{preset: sst3}", "must be one of sst2, mnli"),
        ("{preset: [sst2]}", "must be one of sst2, mnli"),
        ("{kind: classification, dev: d}", "`tasks.t.train` is missing"),
    ],
)
def test_task_that_does_not_fit_its_kind_is_refused_in_words(line, message):
    with pytest.raises(UserError) as error:
        parse_recipe(f"name: r\nmodel: {{source: m}}\ntasks:\n  t: {line}\n", "r.yaml")
    assert message in str(error.value)


def test_own_sections_are_laid_over_the_recipes_key_by_key():
    recipe = parse_recipe(RECIPE, "r.yaml")
    own, common = recipe.section("transfer", "squad").train, recipe.section("transfer", "sst2").train
    assert (common.steps, common.epoch, common.batch_size) == (100, None, 32)
    assert (own.steps, own.epoch, own.batch_size) == (None, 8, 12)  # epoch stands in place of steps
    assert own.optimizer.settings.learning_rate == 1e-4
    assert recipe.section("transfer") is recipe.transfer


def test_dumped_recipe_with_own_sections_loads_back_equal():
    recipe = parse_recipe(RECIPE, "r.yaml")
    assert parse_recipe(dump_recipe(recipe), "again") == recipe


def test_override_means_the_recipes_section_and_a_tasks_own_by_its_full_name():
    changes = ["transfer.batch_size=4", "tasks.squad.transfer.distillation.train.batch_size=2"]
    recipe = parse_recipe(RECIPE, "r.yaml", changes)
    assert [recipe.section("transfer", t).train.batch_size for t in ("sst2", "squad")] == [4, 2]


def test_a_stage_that_only_one_task_has_runs_for_it_alone():
    own = "    task_teacher: {train: {epoch: 1}}\n    transfer:"
    recipe = parse_recipe(RECIPE.replace("    transfer:", own, 1), "r.yaml")
    assert recipe.section("task_teacher", "sst2") is None
    assert recipe.section("task_teacher", "squad").train.epoch == 1


def test_lock_without_a_sparse_model_is_refused_where_it_is_asked_for():
    own = "transfer: {distillation: {train: {epoch: 1}}}"
    text = f"name: r\nmodel: {{source: m}}\ntasks:\n  t:\n    preset: rte\n    {own}\n"
    with pytest.raises(UserError) as error:
        parse_recipe(text, "r.yaml")
    assert "tasks.t.transfer: needs a sparse model" in str(error.value)


def test_mistake_in_an_own_section_is_told_at_its_key():
    with pytest.raises(UserError) as error:
        parse_recipe(RECIPE.replace("epoch: 8", "epochs: 8"), "r.yaml")
    assert "unknown key `tasks.squad.transfer.distillation.train.epochs`" in str(error.value)
    assert "epoch" in error.value.instead


@pytest.mark.parametrize("kind", ["stsb", "squad"])
def test_distance_that_a_kind_has_not_is_refused(kind):
    text = RECIPE.replace("preset: sst2", f"preset: {kind}").replace(
        "steps: 100", "criterion: {KnowledgeDistillationLoss: {loss_types: [CE, MSE]}}\n      steps: 100"
    )
    if kind == "stsb":  # a number has no distribution: the squared difference is what there is
        assert parse_recipe(text.replace("squad", "mrpc"), "r.yaml").tasks["sst2"].kind == "regression"
        return
    with pytest.raises(UserError) as error:
        parse_recipe(text, "r.yaml")
    assert "MSE compares logits one by one" in str(error.value)


@pytest.mark.parametrize("train", [[], [{}], [["a"]], [None], {"a": "b"}, True])
@pytest.mark.parametrize("more", [[], True, "a", {"a": "b"}, [None]])
def test_training_files_of_other_types_are_refused(train, more):
    with pytest.raises(ValidationError):
        Task(train=train, more_train=more, dev="d.tsv")
