"""Changes to a recipe from the command line: which key they mean, and what they are refused for."""

from pathlib import Path

import pytest

from tests.helpers.recipes import SMALL
from toolkit.core.errors import UserError
from toolkit.recipe.load import dump_recipe, load_recipe


def complaint(path: Path, *overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return caught.value


def test_override_by_any_part_of_the_path_that_ends_in_the_key(write):
    path = write(SMALL)
    for name in ("pruning.target_sparsity", "target_sparsity", "student.target_sparsity"):
        recipe = load_recipe(path, [f"{name}=0.85"])
        assert recipe.student.pruning.approach.weight_compression.target_sparsity == 0.85
    assert load_recipe(
        path, ["student.learning_rate=1e-4"]
    ).student.distillation.train.optimizer.AdamW.learning_rate == (1e-4)


def test_override_of_a_key_that_is_not_written_is_known(write):
    recipe = load_recipe(write(SMALL), ["backend=nncf", "pack=false", "sst2.metrics=[accuracy, f1]"])
    assert recipe.student.pruning.backend == "nncf"
    assert recipe.corpus.pack is False
    assert recipe.tasks["sst2"].metrics == ("accuracy", "f1")


def test_override_with_the_full_path_wins_over_longer_keys(write):
    assert load_recipe(write(SMALL), ["name=other"]).name == "other"
    assert load_recipe(write(SMALL + "ready: {student: x}\n"), ["student=null"]).student is None


def test_override_of_steps_takes_the_place_of_epoch_and_back(write):
    path = write(SMALL)
    assert load_recipe(path, ["student.steps=10"]).student.distillation.train.epoch is None
    assert load_recipe(path, ["transfer.epoch=2"]).transfer.distillation.train.steps is None
    criterion = load_recipe(path, ["relative=0.5", "absolute=0.02"]).quantize.tuning.accuracy_criterion
    assert (criterion.relative, criterion.absolute) == (None, 0.02)
    recipe = load_recipe(path, ["transfer.tuning.accuracy_criterion.absolute=0.1"])
    assert recipe.transfer.tuning.accuracy_criterion.floor(0.9) == pytest.approx(0.8)
    assert recipe.quantize.tuning.accuracy_criterion.relative == 0.01


def test_override_wins_over_the_value_of_a_pruner(write):
    path = write(SMALL.replace("end_step: 50", "end_step: 50\n        pruners: [!Pruner {target_sparsity: 0.5}]"))
    schedule = load_recipe(path, ["target_sparsity=0.7"]).student.pruning.approach.weight_compression
    assert schedule.resolve()[0].target_sparsity == 0.7


def test_override_of_an_optimizer_means_the_one_that_is_written(write):
    path = write(SMALL.replace("epoch: 3", "epoch: 3\n      optimizer: {SGD: {learning_rate: 0.1}}"))
    settings = load_recipe(path, ["student.learning_rate=0.2"]).student.distillation.train.optimizer.settings
    assert settings.learning_rate == 0.2
    assert settings.momentum == 0


def test_override_of_pruning_means_the_student_unless_the_stage_is_said(write):
    recipe = load_recipe(write(SMALL), ["pattern=tile_pattern_4x1", "transfer.backend=nncf"])
    assert recipe.student.pruning.approach.weight_compression.pattern == "tile_pattern_4x1"
    assert recipe.transfer.pruning.backend == "nncf"


def test_later_override_wins(write):
    assert load_recipe(write(SMALL), ["seed=1", "seed=2"]).seed == 2


def test_ambiguous_override_lists_what_it_can_mean(write):
    error = complaint(write(SMALL), "steps=10")
    assert error.where == "override 'steps=10'"
    for stage in ("student", "transfer", "quantize"):
        assert f"{stage}.distillation.train.steps" in error.instead


def test_unknown_override_names_the_nearest_key(write):
    error = complaint(write(SMALL), "pruning.target_sparcity=0.8")
    assert error.instead == "student.pruning.approach.weight_compression.target_sparsity"


def test_override_of_a_stage_that_is_not_there_is_refused(write):
    assert "no key `benchmark.iteration`" in complaint(write(SMALL), "benchmark.iteration=3").what


@pytest.mark.parametrize("text", ["seed", "seed=", "=3"])
def test_override_without_key_or_value_is_refused(write, text):
    assert "key=value" in complaint(write(SMALL), text).what


def test_wrong_value_in_an_override_is_told_as_the_override(write):
    error = complaint(write(SMALL), "student.steps=many")
    assert error.where == "override 'student.steps=many'"
    assert "must be an integer > 0, not 'many'" in error.what
    assert complaint(write(SMALL), "note=[").where == "override 'note=['"


def test_mistakes_in_the_file_come_before_those_in_overrides(write):
    message = str(complaint(write(SMALL.replace("source:", "sorce:")), "stps=3"))
    assert message.index("sorce") < message.index("stps")


def test_files_in_overrides_are_left_as_the_shell_has_them(write, tmp_path):
    (tmp_path / "train.tsv").write_text("x")
    assert load_recipe(write(SMALL), ["tasks.sst2.train=train.tsv"]).tasks["sst2"].train == "train.tsv"


TWO_TASKS = SMALL.replace(
    "tasks:",
    "tasks:\n  own: {train: t.tsv, dev: d.tsv, transfer: {distillation: {train: {epoch: 2, batch_size: 8}}}}",
)


def test_an_override_of_a_stage_holds_for_tasks_with_a_section_of_their_own(write):
    path = write(TWO_TASKS)
    before = load_recipe(path)
    assert before.section("transfer", "own").train.epoch == 2
    recipe = load_recipe(path, ["transfer.steps=7"])
    for task in ("own", "sst2"):
        assert (recipe.section("transfer", task).train.steps, recipe.section("transfer", task).train.epoch) == (7, None)
    assert recipe.section("transfer", "own").train.batch_size == 8, "what is not said of stays"
    assert load_recipe(path, ["transfer=null"]).section("transfer", "own") is None


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("general", ["transfer.steps=7", "transfer.epoch=7", "transfer.distillation.train={steps: 7}"])
def test_what_is_said_of_one_task_on_the_command_line_stays(write, first, general):
    said = ["tasks.own.transfer.steps=3", general]
    recipe = load_recipe(write(TWO_TASKS), said if first else said[::-1])
    own, other = (recipe.section("transfer", task).train for task in ("own", "sst2"))
    assert (own.steps, own.epoch) == (3, None)
    assert 7 in (other.steps, other.epoch)


def test_an_override_of_a_stage_wins_over_pruners_of_a_task(write):
    pruners = (
        "{approach: {weight_compression: {end_step: 5, pruners: [{prune_type: magnitude, target_sparsity: 0.5}]}}}"
    )
    path = write(TWO_TASKS.replace("transfer: {dist", f"transfer: {{pruning: {pruners}, dist"))
    recipe = load_recipe(path, ["transfer.pruning.approach.weight_compression.target_sparsity=0.8"])
    compression = recipe.section("transfer", "own").pruning.approach.weight_compression
    assert [p.target_sparsity for p in compression.resolve()] == [0.8]


def test_a_bad_override_is_told_once_and_at_the_override(write):
    with pytest.raises(UserError) as caught:
        load_recipe(write(TWO_TASKS), ["transfer.steps=many"])
    assert str(caught.value).count("many'") == 2, "the override, and what is wrong with it"
    assert "override 'transfer.steps=many'" in str(caught.value)
    assert "2 errors" not in str(caught.value)


COMPRESSION = "transfer.pruning.approach.weight_compression"


@pytest.mark.parametrize(
    "key",
    ["target_sparsity=0.9", "target_sparsity=0.95", "end_step=10", "initial_sparsity=0", "pattern=2:4", "end_epoch=1"],
)
def test_a_schedule_beside_a_locked_pattern_is_refused_whatever_its_value(write, key):
    error = complaint(write(SMALL), f"transfer.{key}")
    assert error.where == f"override 'transfer.{key}'"
    assert "has no effect: the pattern is locked" in error.what
    assert "prune_type: magnitude" in error.instead
    gradual = f"{COMPRESSION}.pruners=[{{prune_type: magnitude}}]"
    assert load_recipe(write(SMALL), [gradual, "transfer.target_sparsity=0.95", "transfer.end_step=10"])


def test_a_schedule_that_only_one_task_uses_is_accepted_and_one_of_another_task_refused(write):
    path = write(TWO_TASKS)
    gradual = f"tasks.own.{COMPRESSION}.pruners=[{{prune_type: magnitude}}]"
    assert load_recipe(path, [gradual, "transfer.target_sparsity=0.7"])
    assert load_recipe(path, [gradual, "tasks.own.transfer.target_sparsity=0.7"])
    error = complaint(
        path,
        f"{COMPRESSION}.pruners=[{{prune_type: magnitude}}]",
        f"tasks.own.{COMPRESSION}.pruners=[{{prune_type: pattern_lock}}]",
        "tasks.own.transfer.target_sparsity=0.7",
    )
    assert error.where == "override 'tasks.own.transfer.target_sparsity=0.7'"


def test_rewinding_with_a_locked_pattern_is_refused(write):
    assert "has no effect" in complaint(write(SMALL), "transfer.learning_rate_rewinding=true").what


def test_a_saved_recipe_with_a_locked_pattern_loads_again_and_takes_no_schedule(write):
    path = write(dump_recipe(load_recipe(write(SMALL))), "saved.yaml")
    assert load_recipe(path) == load_recipe(write(SMALL))
    assert "has no effect" in complaint(path, "transfer.target_sparsity=0.95").what


@pytest.mark.parametrize("pruner", ["prune_type: pattern_lock, target_sparsity: 0.5", "parameters: {alpha: 0.1}"])
def test_keys_of_a_pruner_that_its_type_does_not_use_are_refused(write, pruner):
    text = SMALL + f"  pruning: {{approach: {{weight_compression: {{pruners: [{{{pruner}}}]}}}}}}\n"
    text = (
        text.replace("quantize:", "quantize_:").replace("transfer:\n", "quantize:\n").replace("quantize_:", "transfer:")
    )
    assert "has no" in complaint(write(text)).what


def test_steps_and_epochs_of_a_schedule_exclude_each_other(write):
    path = write(SMALL.replace("end_step: 50", "end_step: 50\n        end_epoch: 2"))
    assert complaint(path).what.endswith("end_step: cannot be combined with `end_epoch`")
    compression = load_recipe(path, ["end_step=40"]).student.pruning.approach.weight_compression
    assert (compression.end_step, compression.end_epoch) == (40, None)


def test_an_override_of_a_stage_that_a_checkpoint_replaces_is_refused(write):
    path = write(SMALL + "ready: {student: x}\n")
    error = complaint(path, "student.steps=3")
    assert error.where == "override 'student.steps=3'"
    assert "does not run, because a checkpoint is used instead" in error.what
    assert load_recipe(path, ["ready={}", "student.steps=3"]).student.distillation.train.steps == 3


def test_windows_of_a_task_whose_texts_are_not_split_are_refused(write):
    assert "has no effect" in complaint(write(SMALL), "tasks.sst2.windows.stride=3").what


@pytest.mark.parametrize("value", ["true", "false"])
def test_options_of_static_quantization_are_refused_with_another_approach(write, value):
    path = write(SMALL)
    error = complaint(path, f"quantize.smooth_quant={value}")
    assert "smooth_quant: has no effect: quant_aware_training does not use it" in error.what
    static = ["quantize.distillation=null", "quantize.approach=post_training_static_quant"]
    assert load_recipe(path, [*static, f"quantize.smooth_quant={value}"])
    assert load_recipe(write(dump_recipe(load_recipe(path)), "saved.yaml")) == load_recipe(path)
