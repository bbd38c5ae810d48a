"""What a recipe may say about tags of words, and what is refused by key."""

import pytest

from toolkit.core.errors import UserError
from toolkit.recipe import Recipe, Task
from toolkit.recipe.load import dump_recipe, parse_recipe
from toolkit.recipe.task import settings_for_keys


def recipe(keys: str = "", more: str = "", kind: str = "token_classification") -> Recipe:
    head = "name: e\nmodel: {source: some/model}\nready: {student: a/student}\n"
    task = f"{{kind: {kind}, train: a.conll, dev: b.conll, {keys}}}"
    return parse_recipe(f"{head}tasks:\n  toy: {task}\n{more}", "e")


def test_the_defaults_are_those_of_its_files():
    task = recipe().tasks["toy"]
    assert (task.columns, task.label, task.metrics) == (("tokens",), "tags", ("f1",))
    assert (task.windows.stride, task.least_length) == (16, 18)
    assert parse_recipe(dump_recipe(recipe("windows: {stride: 8}")), "again") == recipe("windows: {stride: 8}")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ("[PER, LOC]", ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")),
        ("[PER]", ("O", "B-PER", "I-PER")),
        ("[O, B-LOC, I-LOC, B-PER, I-PER]", ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")),
        ("[O, U-LOC, B-PER, I-PER, L-PER]", ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")),
        ("[B-cell, virus]", ("O", "B-B-cell", "I-B-cell", "B-virus", "I-virus")),
    ],
)
def test_labels_are_types_or_tags(labels, classes):
    assert recipe(f"labels: {labels}").tasks["toy"].classes == classes


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("scheme: IOB", "scheme"),
        ("columns: [a, b]", "columns[1]: must be at most 1 for token classification"),
        ("metrics: [accuracy]", "accuracy is not supported for token classification"),
        ("labels: [O]", "labels: has no type of entity"),
        ("labels: [O, PER]", "labels[1]: 'PER' is not a tag"),
        ("labels: [B-PER, I-PER]", "labels: has no O"),
        ("labels: [PER, PER]", "labels: must be two or more distinct names"),
        ("max_seq_length: 18", "max_seq_length: too short for an overlap of 16 tokens"),
        ("windows: {n_best: 3}", "windows.n_best: has no effect"),
        ("drop_unanswerable: true", "drop_unanswerable: has no effect"),
        ("dev_label: score", "dev_label: has no effect"),
    ],
)
def test_what_does_not_fit_is_refused_by_key(keys, words):
    with pytest.raises(UserError) as error:
        recipe(keys)
    assert words in str(error.value)


def test_other_kinds_have_no_scheme_and_their_cache_keys_do_not_know_it():
    with pytest.raises(UserError, match=r"scheme: has no effect"):
        recipe("scheme: IOB2", kind="classification")
    assert "scheme" not in settings_for_keys(Task(train="a.tsv", dev="b.tsv"))
    one = Task(kind="token_classification", train="a", dev="b", scheme="IOB2")
    assert settings_for_keys(one)["scheme"] == "IOB2"


def test_logits_of_words_may_be_compared_one_by_one():
    criterion = "{KnowledgeDistillationLoss: {loss_types: [CE, MSE]}}"
    more = f"transfer: {{distillation: {{train: {{steps: 1, criterion: {criterion}}}}}}}"
    assert recipe(more=more).transfer is not None


def test_pairs_of_a_corpus_need_the_length_of_its_windows():
    corpus = "corpus: {sources: [{tasks: [toy], shape: pairs, max_seq_length: 18}]}"
    with pytest.raises(UserError, match="too short for the windows of 'toy'"):
        recipe(more=corpus)
