"""The losses of a criterion, alone and together, and students of fewer layers."""

import json
from types import SimpleNamespace

import pytest

from tests.helpers.recipes import SMALL
from toolkit.core.artifacts import Context
from toolkit.core.errors import UserError
from toolkit.pipeline.cache_keys import section_values
from toolkit.pipeline.stages.student import _kept_layers
from toolkit.recipe import IntermediateSettings
from toolkit.recipe.load import dump_recipe, load_recipe, parse_recipe

SMALL_PRUNING = """\
  pruning:
    approach:
      weight_compression:
        target_sparsity: 0.9
        end_step: 50
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "epoch: 3",
            "epoch: 3\n      criterion: {IntermediateLayersKnowledgeDistillationLoss: {loss_types: [MSE, L1]}}",
            "has 2 values for all pairs of layers: there are no layer_mappings",
        ),
        (
            "epoch: 3",
            "epoch: 3\n      criterion: {KnowledgeDistillationLoss: {}, "
            "IntermediateLayersKnowledgeDistillationLoss: {add_origin_loss: true}}",
            "is a part of KnowledgeDistillationLoss already",
        ),
        ("student:\n", "student:\n  layers: [3, 1]\n", "one or more numbers in increasing order"),
        ("student:\n", "student:\n  layers: []\n", "one or more numbers in increasing order"),
        (SMALL_PRUNING, "  pruning: null\n", "the student would be a copy of its teacher"),
        (
            f"{SMALL_PRUNING}  distillation:\n    train:\n      epoch: 3\ntransfer:\n",
            "  layers: 2\n  pruning: null\n  distillation:\n    train:\n      epoch: 3\ntransfer:\n"
            "  pruning: {approach: {weight_compression: {pruners: [{prune_type: pattern_lock, names: [a]}]}}}\n",
            "selects matrices to lock, but the student is dense",
        ),
    ],
)
def test_losses_and_layers_that_make_no_sense_are_refused(write, old, new, words):
    assert old in SMALL
    with pytest.raises(UserError) as caught:
        load_recipe(write(SMALL.replace(old, new)))
    assert words in caught.value.what


LOGITS, LAYERS = "KnowledgeDistillationLoss", "IntermediateLayersKnowledgeDistillationLoss"


def test_both_losses_of_a_section_are_kept_and_one_that_is_set_over_another_replaces_it(write):
    both = SMALL.replace("train: {steps: 10}", f"train: {{steps: 10, criterion: {{{LOGITS}: {{}}, {LAYERS}: {{}}}}}}")
    task = "    dev: dev.tsv\n    transfer: {distillation: {train: {criterion: {%s: {}}}}}\n"

    def losses(text: str, *overrides: str) -> tuple[bool, bool]:
        criterion = load_recipe(write(text), overrides).section("transfer", "sst2").train.criterion
        return criterion.logits is not None, criterion.layers is not None

    assert losses(both) == losses(both, "transfer.temperature=3") == (True, True)
    assert load_recipe(write(both), ["transfer.temperature=3"]).transfer.train.criterion.logits.temperature == 3
    assert losses(SMALL) == (True, False)
    assert losses(SMALL, f"transfer.{LAYERS}={{}}") == (False, True)
    assert losses(SMALL, f"transfer.criterion={{{LOGITS}: {{}}, {LAYERS}: {{}}}}") == (True, True)
    assert losses(both.replace("    dev: dev.tsv\n", task % LOGITS)) == (True, True)
    assert losses(SMALL.replace("    dev: dev.tsv\n", task % LAYERS)) == (False, True)


def test_a_dense_student_loads_again_from_its_saved_recipe_and_shares_no_cache_key(write):
    recipe = load_recipe(write(SMALL.replace(SMALL_PRUNING, "  layers: 2\n  pruning: null\n")))
    assert recipe.student.pruning is None
    assert parse_recipe(dump_recipe(recipe), "saved") == recipe
    plain = load_recipe(write(SMALL)).student
    assert "layers" not in section_values("student", plain)
    assert section_values("student", recipe.student)["layers"] == 2


def test_weights_and_types_are_one_per_pair_or_shared_by_all():
    def pairs(**settings):
        return IntermediateSettings.model_validate(settings).pairs(lambda: [("a", "b"), ("c", "d")])

    assert pairs() == [("a", 0, "b", 0, "MSE", 0.5), ("c", 0, "d", 0, "MSE", 0.5)]
    shared = pairs(loss_types=["SquareHead"], loss_weights=[3])
    assert shared == [("a", 0, "b", 0, "SquareHead", 1.5), ("c", 0, "d", 0, "SquareHead", 1.5)]
    own = pairs(layer_mappings=[["x", 1, "y", 0], ["c", "d"]], loss_types=["L1", "KL"], loss_weights=[1, 2])
    assert own == [("x", 1, "y", 0, "L1", 1.0), ("c", 0, "d", 0, "KL", 2.0)]


def test_layers_are_chosen_once_and_read_by_a_resumed_run_and_by_the_other_processes(tmp_path):
    context = Context(tmp_path, tmp_path / "work", 0)
    config = {"model_type": "bert", "num_hidden_layers": 4}
    teacher = SimpleNamespace(config=SimpleNamespace(to_dict=lambda: config))
    (tmp_path / "work").mkdir()
    (tmp_path / "work/layers.json").write_text(json.dumps([0, 2]))
    assert _kept_layers(2, teacher, None, 0, context) == [0, 2]
    assert _kept_layers((1, 3), teacher, None, 0, context) == [1, 3]
    with pytest.raises(UserError, match="5 layers of a model that has 4"):
        _kept_layers(5, teacher, None, 0, context)
