"""What a recipe may say about an embedding task, and what is refused by key."""

import pytest

from toolkit.core.errors import UserError
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.pipeline.graph import check_graph
from toolkit.recipe import Recipe
from toolkit.recipe.load import dump_recipe, parse_recipe
from toolkit.recipe.task import settings_for_keys

TEXTS = "columns: [text], dev_columns: [one, two], dev_label: score"
PAIRS = "columns: [one, two]"
SCORED = "columns: [one, two], label: score"
TRIPLETS = "columns: [one, two, three]"
ALONE = "{distillation: {train: {steps: 1, criterion: {KnowledgeDistillationLoss: {loss_weights: [0, 1]}}}}}"
BOTH = "{distillation: {train: {steps: 1}}}"


def recipe(keys: str, transfer: str = ALONE, more: str = "") -> Recipe:
    task = f"{{kind: embedding, train: a.tsv, dev: b.tsv, {keys}}}"
    head = "name: e\nmodel: {source: some/model}\nready: {student: a/student}\n"
    return parse_recipe(f"{head}tasks:\n  toy: {task}\ntransfer: {transfer}\n{more}", "e")


def test_without_labels_the_dense_model_teaches_as_it_is():
    made = recipe(TEXTS, more="task_teacher: {train: {steps: 1}}")  # which is that of other tasks
    assert made.tasks["toy"].ready == {"task_teacher": "some/model"}
    assert made.tasks["toy"].label is None
    check_graph(made, ResolvedInputs())
    assert parse_recipe(dump_recipe(made), "again") == made


@pytest.mark.parametrize("keys", [PAIRS, SCORED, TRIPLETS])
def test_with_labels_a_teacher_is_fitted_if_the_recipe_has_the_section(keys):
    assert recipe(keys, BOTH).tasks["toy"].ready == {"task_teacher": "some/model"}
    assert recipe(keys, BOTH, "task_teacher: {train: {steps: 1}}").tasks["toy"].ready == {}


@pytest.mark.parametrize(
    ("keys", "metrics"),
    [
        (TEXTS, ("spearman_cosine", "dense_cosine", "dense_cosine_p1")),
        (SCORED, ("spearman_cosine", "dense_cosine", "dense_cosine_p1")),
        ("preset: stsb", ("spearman_cosine", "dense_cosine", "dense_cosine_p1")),
        (TRIPLETS, ("cosine_accuracy", "dense_cosine", "dense_cosine_p1")),
        (PAIRS, ("dense_cosine", "dense_cosine_p1")),
        ("columns: [text]", ("dense_cosine", "dense_cosine_p1")),
        (f"{SCORED}, metrics: [pearson_cosine]", ("pearson_cosine",)),
    ],
)
def test_the_metrics_are_those_that_the_dev_rows_allow(keys, metrics):
    assert recipe(keys).tasks["toy"].metrics == metrics


@pytest.mark.parametrize(
    ("keys", "transfer", "words"),
    [
        ("columns: [text], label: score", ALONE, "label: a score is that of a pair, and a row has 1 text"),
        ("columns: [text], prompts: {query: 'q '}, default_prompt: doc", ALONE, "'doc' is none of the prompts"),
        ("columns: [a, b, c], label: score", ALONE, "label: a score is that of a pair, and a row has 3 text"),
        ("columns: [text], dev_label: score", ALONE, "dev_label: a score is that of a pair"),
        ("columns: [one, one]", ALONE, "columns: a column cannot be used twice"),
        ("columns: [a, b], label: score, labels: [x, y]", ALONE, "an embedding task has no classes"),
        ("columns: [text], metrics: [spearman_cosine]", ALONE, "compares cosines with scores, and dev has none"),
        (f"{PAIRS}, metrics: [cosine_accuracy]", ALONE, "is that of triplets, and dev has none"),
        (f"{SCORED}, metrics: [accuracy]", ALONE, "accuracy is not supported for embedding"),
        (f"{SCORED}, pooling: max", ALONE, "pooling must be one of mean, cls"),
        (TEXTS, BOTH, "KnowledgeDistillationLoss.loss_weights: 'toy' has no labels"),
        (TEXTS, "{pruning: {train: {steps: 1}}}", "transfer.pruning.train: 'toy' has no labels to train with"),
        (f"{TEXTS}, task_teacher: {{train: {{steps: 1}}}}", ALONE, "task_teacher: needs labels"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys, transfer, words):
    with pytest.raises(UserError, match="(?s)" + words.replace("[", r"\[")):
        recipe(keys, transfer)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("pooling: cls", "only embedding tasks have `pooling`"),
        ("normalize: false", "only embedding tasks have `normalize`"),
        ("dev_columns: [other]", "only embedding tasks have `dev_columns`"),
        ("columns: [a, b, c]", "columns.2.: must be at most 2 for classification"),
    ],
)
def test_other_tasks_have_none_of_the_keys(keys, words):
    with pytest.raises(UserError, match=words):
        parse_recipe(f"name: e\nmodel: {{source: m/m}}\ntasks: {{toy: {{train: a.tsv, dev: b.tsv, {keys}}}}}", "e")


def test_the_new_keys_are_part_of_a_cache_key_only_if_they_are_set():
    task = recipe("columns: [one, two], label: score").tasks["toy"]
    assert {"pooling", "normalize", "dev_columns", "dev_label"}.isdisjoint(settings_for_keys(task))
    assert settings_for_keys(recipe(f"{SCORED}, pooling: cls").tasks["toy"])["pooling"] == "cls"
