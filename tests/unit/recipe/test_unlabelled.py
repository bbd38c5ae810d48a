"""`distillation.unlabelled`: what loads, what is refused, and what enters cache keys."""

import pytest

from toolkit.core.errors import UserError
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.pipeline.cache_keys import data_hashes, section_values
from toolkit.pipeline.missing_inputs import require_inputs
from toolkit.recipe.load import dump_recipe, load_recipe

RECIPE = """\
name: small
model: {source: some/model}
ready: {student: some/model}
tasks:
  toy: {train: train.tsv, dev: dev.tsv, columns: [one, two], labels: [a, b]}
transfer:
  distillation:
    train: {steps: 4, criterion: {KnowledgeDistillationLoss: {loss_weights: [0, 1]}}}
"""
MORE = "    unlabelled: {files: [logs/*.tsv], pairs: 5}\n"


def test_files_are_found_beside_the_recipe(write):
    path = write(RECIPE + MORE)
    (path.parent / "logs").mkdir()
    for name in ("a", "b"):
        (path.parent / "logs" / f"{name}.tsv").write_text(f"one\ttwo\n{name}\t{name}\n")
    recipe = load_recipe(path)
    found = recipe.transfer.distillation.unlabelled
    assert found.files == tuple(str(path.parent / "logs" / f"{name}.tsv") for name in ("a", "b"))
    assert found.pairs == 5
    assert load_recipe(write(dump_recipe(recipe), "again.yaml")) == recipe
    own = RECIPE.replace("[a, b]", "[a, b], transfer: {distillation: {unlabelled: {pairs: 2}}}")
    assert load_recipe(write(own, "own.yaml")).section("transfer", "toy").distillation.unlabelled.pairs == 2


def test_contents_enter_cache_keys_and_paths_do_not(write):
    plain = load_recipe(write(RECIPE)).transfer
    assert "unlabelled" not in section_values("transfer", plain)["distillation"]
    path = write(RECIPE + MORE.replace("logs/*.tsv", "logs.tsv"))
    (path.parent / "logs.tsv").write_text("one\ttwo\na\tb\n")
    section = load_recipe(path).transfer
    assert section_values("transfer", section)["distillation"]["unlabelled"] == {"pairs": 5}
    hashes, roles = data_hashes({"transfer": section}, ResolvedInputs())
    assert roles["unlabelled"] == [hashes[str(path.parent / "logs.tsv")]]
    assert not data_hashes({"transfer": plain}, ResolvedInputs())[1]


def test_a_missing_file_is_reported_with_the_others(write):
    recipe = load_recipe(write(RECIPE + MORE))
    with pytest.raises(UserError, match="3 inputs") as error:
        require_inputs(recipe, (), ResolvedInputs())
    assert "logs/*.tsv" in error.value.what


CRITERION = "transfer.distillation.train.criterion"


@pytest.mark.parametrize(
    ("old", "new", "where", "what", "instead"),
    [
        ("[0, 1]", "[0.1, 0.9]", f"{CRITERION}.KnowledgeDistillationLoss.loss_weights", "have no labels", "[0, 1]"),
        (
            "{KnowledgeDistillationLoss: {loss_weights: [0, 1]}}",
            "{IntermediateLayersKnowledgeDistillationLoss: {add_origin_loss: true}}",
            f"{CRITERION}.IntermediateLayersKnowledgeDistillationLoss.add_origin_loss",
            "have no labels",
            "false",
        ),
        ("{files: [logs/*.tsv], pairs: 5}", "{}", "transfer.distillation.unlabelled", "adds no examples", "pairs: 5"),
        ("[one, two]", "[one]", "transfer.distillation.unlabelled.pairs", "'toy' has no second text", "files:"),
        (
            "labels: [a, b]",
            "kind: reranking",
            "transfer.distillation.unlabelled",
            "a task of reranking; examples without labels are for classification, regression, multi_label",
            "remove the key",
        ),
    ],
)
def test_what_cannot_be_labelled_by_the_teacher_is_refused(write, old, new, where, what, instead):
    text = RECIPE + MORE
    assert old in text
    with pytest.raises(UserError, match=what) as error:
        load_recipe(write(text.replace(old, new)))
    assert where in error.value.what
    assert instead in error.value.instead
