"""What a recipe may say about a multi-label and a reranking task, and what is refused by key."""

import pytest

from toolkit.core.errors import UserError
from toolkit.recipe import Recipe
from toolkit.recipe.load import dump_recipe, parse_recipe
from toolkit.recipe.task import settings_for_keys

PAIR = "kind: reranking"
NEGATIVES = "kind: reranking, columns: [query, positive, negatives]"


def recipe(keys: str) -> Recipe:
    return parse_recipe(f"name: e\nmodel: {{source: m/m}}\ntasks: {{toy: {{train: a.tsv, dev: b.tsv, {keys}}}}}", "e")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("kind: multi_label", {"label": "label", "labels": (), "metrics": ("f1_micro",)}),
        ("kind: multi_label, label_columns: [a, b]", {"label": None, "labels": ("a", "b")}),
        (PAIR, {"columns": ("query", "passage"), "label": "label", "metrics": ("ndcg@10",)}),
        (NEGATIVES, {"columns": ("query", "positive", "negatives"), "label": None}),
    ],
)
def test_missing_keys_are_those_of_the_kind_and_a_dumped_recipe_loads_again(keys, expected):
    made = recipe(keys)
    assert {key: getattr(made.tasks["toy"], key) for key in expected} == expected
    assert parse_recipe(dump_recipe(made), "again") == made


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("kind: multi_label, label: tags, label_columns: [a, b]", "label: has no effect beside `label_columns`"),
        ("kind: multi_label, label_columns: [a, b], labels: [x, y]", "labels: the classes are named after"),
        ("kind: multi_label, label_columns: [a, sentence]", "columns: 'sentence' is the column of a class"),
        ("kind: multi_label, labels: [a, b|c]", "separator: a class has '|' in its name"),
        ("kind: multi_label, threshold: 1", "threshold must be a number > 0 and < 1"),
        ("kind: multi_label, threshold: 0", "threshold must be a number > 0 and < 1"),
        ("kind: multi_label, metrics: [accuracy]", "accuracy is not supported for multi label"),
        ("threshold: 0.4", "only multi-label tasks have `threshold`"),
        ("separator: ','", "only multi-label tasks have `separator`"),
        ("label_columns: [a, b]", "only multi-label tasks have `label_columns`"),
        (f"{PAIR}, columns: [query]", "columns: needs a query and a passage"),
        (f"{PAIR}, columns: [query, query]", "columns: needs a query and a passage"),
        (f"{NEGATIVES}, label: score", "label: a label is that of one pair"),
        (f"{PAIR}, metrics: [accuracy]", "accuracy is not supported for reranking"),
        (f"{PAIR}, labels: [a, b]", "a reranking task has no classes"),
        (f"{PAIR}, ranking: {{group: 0}}", "ranking.group must be an integer > 0"),
        (f"{PAIR}, ranking: {{loss: hinge}}", "ranking.loss must be one of bce, mse"),
        ("ranking: {group: 2}", "ranking.group: has no effect: only reranking tasks"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys, words):
    with pytest.raises(UserError) as caught:
        recipe(keys)
    assert words in str(caught.value)


def test_the_candidates_of_a_query_cannot_be_held_out_apart():
    text = "train: a.tsv, kind: reranking, hold_out: {column: %s}"
    head = "name: e\nmodel: {source: m/m}\ntasks: {toy: {%s}}"
    parse_recipe(head % (text % "query"), "e")
    with pytest.raises(UserError, match=r"hold_out\.column: the candidates of a query must be in the same split"):
        parse_recipe(head % (text % "topic"), "e")


def test_the_new_keys_are_part_of_a_cache_key_only_if_they_are_set():
    new = {"label_columns", "separator", "threshold", "ranking"}
    assert new.isdisjoint(settings_for_keys(recipe("kind: multi_label").tasks["toy"]))
    assert settings_for_keys(recipe("kind: multi_label, threshold: 0.3").tasks["toy"])["threshold"] == 0.3
    task = recipe(f"{PAIR}, ranking: {{group: 2}}").tasks["toy"]
    assert settings_for_keys(task)["ranking"]["group"] == 2
    assert "ranking" not in settings_for_keys(task, texts_only=True)  # the texts of a corpus are the same
    fewer = recipe(f"{PAIR}, ranking: {{group: 2, bm25: 9}}").tasks["toy"]
    assert settings_for_keys(fewer, texts_only=True)["ranking"] == {"loss": "bce", "group": 1, "bm25": 9}
