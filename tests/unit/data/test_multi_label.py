"""Rows with several classes or none: their forms, refusals by row, and metrics counted by hand."""

import json

import numpy as np
import pytest

from toolkit.core.errors import UserError
from toolkit.data.kinds.multi_label import LabelSets
from toolkit.data.task_rows import check_rows, read_task
from toolkit.data.tasks import load_task
from toolkit.models.load import load_tokenizer
from toolkit.recipe import Task

NAMES = ["a", "b", "c"]
SETS = [["a"], ["a", "b"], [], ["c"]] * 2  # one per row


@pytest.fixture
def task(tmp_path):
    def made(rows, suffix="jsonl", dev=None, **keys):
        for name, table in (("train", rows), ("dev", dev or rows)):
            if suffix == "jsonl":
                text = "".join(json.dumps({"sentence": "the story"} | row) + "\n" for row in table)
            else:
                text = "sentence\t" + "\t".join(table[0]) + "\n"
                text += "".join("the story\t" + "\t".join(map(str, row.values())) + "\n" for row in table)
            (tmp_path / f"{name}.{suffix}").write_text(text)
        files = {name: str(tmp_path / f"{name}.{suffix}") for name in ("train", "dev")}
        return Task.model_validate({"kind": "multi_label", "tuning_examples": 0} | files | keys)

    return made


FORMS = {
    "lists": ([{"label": found} for found in SETS], "jsonl", {}),
    "numbers": ([{"label": ["abc".index(x) for x in found]} for found in SETS], "jsonl", {"labels": NAMES}),
    "texts": ([{"label": "|".join(found)} for found in SETS], "tsv", {}),
    "commas": ([{"label": " , ".join(found)} for found in SETS], "tsv", {"separator": ","}),
    "columns": ([{n: int(n in found) for n in NAMES} for found in SETS], "tsv", {"label_columns": NAMES}),
    "truth values": ([{n: n in found for n in NAMES} for found in SETS], "jsonl", {"label_columns": NAMES}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_rows_is_the_same_indicators(form, task, tiny_bert):
    rows, suffix, keys = FORMS[form]
    section = task(rows, suffix, **keys)
    assert "classes a (4), b (2), c (2)" in check_rows("toy", section)
    data = load_task("toy", section, load_tokenizer(tiny_bert))
    assert data.labels == tuple(NAMES)
    assert data.train.truth.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]] * 2
    assert data.train[1]["labels"] == [1.0, 1.0, 0.0]


def test_metrics_are_those_counted_by_hand():
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]], dtype=np.float32)
    chances = np.array([[0.9, 0.2, 0.1], [0.4, 0.6, 0.1], [0.8, 0.1, 0.1], [0.1, 0.7, 0.3]])
    logits = np.log(chances / (1 - chances))

    def scores(threshold, truth=truth):
        examples = LabelSets([("x",)] * 4, {"input_ids": [[1]] * 4}, truth, threshold)
        return {name: measure(truth, examples.predicted(list(logits))) for name, measure in LabelSets.metrics.items()}

    # At 0.5: a has 1 hit, 1 false, 1 missed; b 1 hit, 1 false; c 1 missed.
    at_half = scores(0.5)
    assert at_half["f1_micro"] == pytest.approx(2 * 2 / (2 * 2 + 2 + 2))
    assert at_half["f1_macro"] == pytest.approx((2 / 4 + 2 / 3 + 0) / 3)
    # a: ranks 1 and 3 of (0.9, 0.8, 0.4); b: rank 2; c: rank 1.
    assert at_half["average_precision"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2 + 1) / 3)
    lower = scores(0.25)  # a 2 hits, 1 false; b 1 hit, 1 false; c 1 hit
    assert lower["f1_micro"] == pytest.approx(2 * 4 / (2 * 4 + 2))
    assert lower["average_precision"] == at_half["average_precision"]
    assert scores(0.5, 0 * truth)["average_precision"] == 0
    without = truth * [1, 1, 0]  # a class that does not occur has no average precision
    assert scores(0.5, without)["average_precision"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


LISTS = [{"label": found} for found in SETS]
COLUMNS = {"label_columns": ["a", "b"]}


@pytest.mark.parametrize(
    ("row", "suffix", "keys", "expected"),
    [
        ({"label": "['a', 'b']"}, "tsv", {}, r"train.tsv:10: .*\['a', 'b'\].* is not a list of classes"),
        ({"label": 3}, "jsonl", {}, r"train.jsonl:9: the label in column 'label' 3 is not a list"),
        ({"label": None}, "jsonl", {}, r"train.jsonl:9: the label in column 'label' is missing"),
        ({"label": ["a", ["b"]]}, "jsonl", {}, r"train.jsonl:9: .*a list with \['b'\], which is no class"),
        ({"label": ["a", float("nan")]}, "jsonl", {}, r"train.jsonl:9: .*a list with nan"),
        ({"label": "a||b"}, "jsonl", {}, r"train.jsonl:9: .*an empty name"),
        ({"label": ["1" * 5000]}, "jsonl", {}, r"train.jsonl:9: .*a number of 5,000 digits"),
        ({"label": ["a\ud800"]}, "jsonl", {}, r"train.jsonl:9: .*unpaired surrogate"),
        ({"label": ["x"]}, "jsonl", {"labels": NAMES}, r"train.jsonl:9: the label 'x' is not one of the task's"),
        (
            {"a": 2, "b": 0},
            "jsonl",
            {"label_columns": ["a", "b"]},
            r"train.jsonl:1: column 'a' has 2, which is neither",
        ),
        ({"a": 1, "b": ""}, "jsonl", COLUMNS, r"train.jsonl:1: column 'b' has '', which is"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(row, suffix, keys, expected, task):
    others = [] if keys.get("label_columns") else LISTS
    rows = [{"label": "|".join(r["label"])} for r in others] if suffix == "tsv" else others
    with pytest.raises(UserError, match=expected):
        check_rows("toy", task([*rows, row], suffix, **keys))


@pytest.mark.parametrize(
    ("row", "suffix", "keys", "expected"),
    [
        ({"a": 1, "b": 0}, "tsv", {}, r"no column 'label', which `label` names; the file has sentence, a, b"),
        ({"a": 1}, "jsonl", COLUMNS, r"no column 'b', which `label_columns` names; the file has sentence, a"),
    ],
)
def test_a_missing_column_of_classes_names_the_key_and_what_to_write(row, suffix, keys, expected, task):
    with pytest.raises(UserError, match=expected) as error:
        check_rows("toy", task([row], suffix, **keys))
    assert error.value.instead.startswith("label_columns: [<a column of 0 and 1 for each class>], or label: <")
    assert f"train.{suffix}" in error.value.where
    with pytest.raises(UserError, match=r"no column 'body'$|no column 'body'\n"):  # which is no column of classes
        check_rows("toy", task([row], suffix, **keys, columns=["body"]))


def test_a_rare_class_may_be_among_the_rows_that_are_set_aside_for_tuning(task):
    rows = [{"label": [f"rare {n}"] if n < 20 else ["a", "b"][: n % 3]} for n in range(200)]
    section = task(rows, tuning_examples=1000)
    found = read_task("toy", section)
    tuned, trained = ({label for row in rows for label in row.label} for rows in (found.tune, found.train))
    assert tuned - trained
    assert "200 training rows" in check_rows("toy", section)


@pytest.mark.parametrize(
    ("train", "dev", "keys", "expected"),
    [
        (LISTS, [{"label": ["a", "d"]}], {}, "dev.jsonl:1: the label 'd' is not one of the task's"),
        ([*LISTS, {"label": ["c", "d"]}], LISTS, {}, "train.jsonl:9: label 'd' occurs in 1 training row but in no"),
        (LISTS, LISTS, {"labels": [*NAMES, "d"]}, "no training row has the class 'd'"),
        (LISTS, [{"label": []}], {"labels": NAMES}, "no row of the dev split has a class"),
        ([{"label": ["a"]}, {"label": []}], [{"label": ["a"]}], {}, "1 class in all rows"),
    ],
)
def test_classes_that_cannot_be_learnt_or_measured_are_refused(train, dev, keys, expected, task):
    with pytest.raises(UserError, match=expected):
        check_rows("toy", task(train, dev=dev, **keys))
