"""`student.pruning.reconstruction`: what loads, what is refused, and what enters cache keys."""

import pytest

from tests.helpers.recipes import SMALL
from toolkit.core.errors import UserError
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.pipeline.cache_keys import section_values
from toolkit.pipeline.graph import check_graph
from toolkit.pipeline.requirements import extra_for
from toolkit.recipe.load import dump_recipe, load_recipe

ONE_SHOT = """\
name: small
model: {source: some/model}
corpus: {files: [text.txt]}
student:
  pruning:
    approach: {weight_compression: {target_sparsity: 0.8, pruners: [{prune_type: magnitude}]}}
    reconstruction: {}
"""


def test_a_recipe_without_the_key_keeps_its_cache_key(write):
    student = load_recipe(write(SMALL)).student
    assert "reconstruction" not in section_values("student", student)["pruning"]
    assert "reconstruction" not in dump_recipe(load_recipe(write(SMALL)))


def test_a_student_needs_no_training_if_it_is_reconstructed(write):
    recipe = load_recipe(write(ONE_SHOT))
    check_graph(recipe, ResolvedInputs())
    assert recipe.student.train is None
    assert extra_for(recipe.student) == ""
    values = section_values("student", recipe.student)["pruning"]["reconstruction"]
    assert (values["method"], values["error_correction"]) == ("admm", True)
    assert load_recipe(write(dump_recipe(recipe), "again.yaml")) == recipe


@pytest.mark.parametrize("compression", ["end_step: 0", "end_step: 50, update_frequency_on_step: 10"])
def test_reconstruction_can_come_before_or_during_distillation(write, compression):
    text = ONE_SHOT.replace("target_sparsity: 0.8", f"target_sparsity: 0.8, {compression}")
    assert load_recipe(write(text + "  distillation: {train: {steps: 100}}\n")).student.train.steps == 100


def test_sparse_gpt_is_reconstruction_by_obs(write):
    text = ONE_SHOT.replace("    reconstruction: {}\n", "").replace("magnitude", "sparse_gpt")
    pruning = load_recipe(write(text)).student.pruning
    assert pruning.reconstruction.method == "obs"
    assert pruning.approach.weight_compression.pruners[0].prune_type == "magnitude"


PRUNERS = "approach.weight_compression.pruners[0].prune_type"


@pytest.mark.parametrize(
    ("old", "new", "key", "words", "instead"),
    [
        ("prune_type: magnitude", "prune_type: snip", PRUNERS, "snip cannot be combined", "magnitude"),
        ("prune_type: magnitude", "prune_type: retrain_free", PRUNERS, "heads and channels", "magnitude"),
        ("reconstruction: {}", "reconstruction: {method: best}", "method", "must be one of admm, obs", ""),
        ("reconstruction: {}", "reconstruction: {calibration: {sequences: 0}}", "sequences", "an integer > 0", ""),
        ("reconstruction: {}", "backend: magnitude\n    reconstruction: {}", "backend", "has no effect", "remove"),
        ("    reconstruction: {}", "", "distillation", "is missing", "reconstruction: {}"),
        ("target_sparsity: 0.8", "end_step: 5", "end_step", "without `distillation` there are no steps", "remove"),
        ("prune_type: magnitude", "end_epoch: 5", "end_epoch", "without `distillation` there are no steps", "remove"),
        (
            "target_sparsity: 0.8",
            "start_epoch: 0",
            "start_epoch",
            "without `distillation` there are no steps",
            "remove",
        ),
        ("target_sparsity: 0.8", "update_frequency: 1", "update_frequency", "there are no steps", "remove"),
    ],
)
def test_what_cannot_work_is_refused(write, old, new, key, words, instead):
    assert old in ONE_SHOT
    with pytest.raises(UserError) as raised:
        load_recipe(write(ONE_SHOT.replace(old, new)))
    assert key in raised.value.what
    assert words in raised.value.what
    assert instead in raised.value.instead


def test_sparse_gpt_with_another_method_is_refused(write):
    text = ONE_SHOT.replace("prune_type: magnitude", "prune_type: sparse_gpt").replace("{}", "{method: admm}")
    with pytest.raises(UserError, match="reconstruction by obs, not by 'admm'"):
        load_recipe(write(text))


def test_sparse_gpt_beside_a_reconstruction_that_is_no_section_is_refused(write):
    text = ONE_SHOT.replace("prune_type: magnitude", "prune_type: sparse_gpt").replace("{}", "[1]")
    with pytest.raises(UserError, match=r"student\.pruning\.reconstruction"):
        load_recipe(write(text))


@pytest.mark.parametrize("kind", ["sparse_gpt", "retrain_free"])
def test_a_task_is_pruned_by_neither_name_of_inc_3(write, kind):
    pruning = f"  pruning:\n    approach: {{weight_compression: {{pruners: [{{prune_type: {kind}}}]}}}}\n"
    with pytest.raises(UserError) as raised:
        load_recipe(write(SMALL.replace("transfer:\n", f"transfer:\n{pruning}")))
    assert kind in raised.value.what
    assert "reconstruction: {" in raised.value.instead
