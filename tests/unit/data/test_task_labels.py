"""Labels: which class, or number, each row has; what is none is refused with its row."""

import re

import pytest

from tests.helpers.task_files import FORMATS, GOOD, NULLS, pairs, place, write
from toolkit.core.errors import UserError
from toolkit.data import task_rows


@pytest.mark.parametrize(
    ("suffix", "value"), [*((suffix, text) for suffix in FORMATS for text in ("", " ")), *((s, None) for s in NULLS)]
)
@pytest.mark.parametrize("labels", [("no", "yes"), ()])
def test_missing_label_is_refused_with_its_row_and_is_never_a_class_of_its_own(tmp_path, suffix, value, labels):
    path = write(tmp_path, suffix, [*GOOD, ("g", "h", value)])
    with pytest.raises(UserError, match="the label in column 'label' is missing") as error:
        task_rows.check_rows("t", pairs(path, labels=labels))
    assert error.value.where == place(path, 4)


@pytest.mark.parametrize("suffix", NULLS)
@pytest.mark.parametrize(("value", "kind"), [([0, 1], "list"), ({"x": 1}, "object")])
@pytest.mark.parametrize("task", [{}, {"labels": ()}, {"kind": "regression", "labels": ()}])
def test_label_that_is_neither_text_nor_number_is_refused_with_its_row(tmp_path, suffix, value, kind, task):
    path = write(tmp_path, suffix, [("a", "b", value), ("c", "d", value)])
    with pytest.raises(UserError, match=f"the label in column 'label' is a {kind}") as error:
        task_rows.check_rows("t", pairs(path, **task))
    assert error.value.where == place(path, 1)


@pytest.mark.parametrize("suffix", NULLS)
def test_hole_in_a_column_of_class_numbers_is_a_missing_label(tmp_path, suffix):
    path = write(tmp_path, suffix, [("a", "b", 0.0), ("c", "d", 1.0), ("e", "f", float("nan"))])
    with pytest.raises(UserError, match="the label in column 'label' is missing") as error:
        task_rows.check_rows("t", pairs(path, labels=()))
    assert error.value.where == place(path, 3)


@pytest.mark.parametrize(
    ("suffix", "values"), [*((suffix, (0.0, 1.0)) for suffix in FORMATS), *((s, (False, True)) for s in NULLS)]
)
def test_whole_floats_and_truth_values_are_class_numbers(tmp_path, suffix, values):
    path = write(tmp_path, suffix, [("a", "b", values[0]), ("c", "d", values[1])])
    found = task_rows.read_task("t", pairs(path))
    assert task_rows.targets(found.train, found.labels, pairs(path)).tolist() == [0, 1]


@pytest.mark.parametrize("suffix", FORMATS)
def test_classes_found_in_whole_floats_are_named_like_those_of_integers(tmp_path, suffix):
    table = [("a", "b", 2.0), ("c", "d", 10.0), ("e", "f", 2.0)]
    train = pairs(write(tmp_path, suffix, table), labels=())
    dev = write(tmp_path, suffix, [(*row[:2], int(row[2])) for row in table], name="dev")
    found = task_rows.read_task("t", train.model_copy(update={"dev": dev}))
    assert found.labels == ("2", "10")
    assert task_rows.targets(found.dev[""], found.labels, train).tolist() == [0, 1, 0]


def test_classes_that_are_named_by_fractions_keep_their_names(tmp_path):
    path = write(tmp_path, "jsonl", [("a", "b", 0.5), ("c", "d", 1.0), ("e", "f", 0.5)])
    assert task_rows.read_task("t", pairs(path, labels=())).labels == ("0.5", "1.0")
    said = "3 training rows, 3 evaluation rows; classes 0.5 (2), 1.0 (1)"
    assert task_rows.check_rows("t", pairs(path, labels=("0.5", "1.0"))) == said


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("classes", "slip", "named"), [(("no", "yes"), "yse", "yse"), ((0, 1), 7, "7"), ((0.0, 1.0), 7.0, "7")]
)
def test_class_that_is_trained_and_never_measured_is_refused_with_its_first_row_unless_named(
    tmp_path, suffix, classes, slip, named
):
    good = [("a", "b", classes[number % 2]) for number in range(6)]
    strays = [("c", "d", slip), ("e", "f", slip)]
    train = write(tmp_path, suffix, [*good, *strays], name="train")
    dev, odd = write(tmp_path, suffix, good, name="dev"), write(tmp_path, suffix, [*good, *strays], name="odd")
    task = pairs(train, dev=dev, labels=())
    with pytest.raises(UserError, match=f"label '{named}' occurs in 2 training rows but in no eval") as error:
        task_rows.check_rows("t", task)
    assert error.value.where == place(train, 7)
    (meant,) = re.findall(r"`labels: \[(.*)\]`", error.value.instead)
    labels = tuple(name.strip("' \"") for name in meant.split(","))
    assert labels == task_rows.read_task("t", pairs(train, dev=odd, labels=())).labels
    for known in (task.model_copy(update={"labels": labels}), task.model_copy(update={"more_dev": {"odd": odd}})):
        assert "8 training rows" in task_rows.check_rows("t", known)


@pytest.mark.parametrize("number", range(20))
def test_class_of_which_every_row_was_set_aside_is_looked_for_too(tmp_path, number):
    table = [("a", "b", f"{row % 2}") for row in range(20)]
    dev = write(tmp_path, "tsv", table, name="dev")
    table[number] = ("a", "b", "7")
    train = write(tmp_path, "tsv", table, name="train")
    with pytest.raises(UserError, match="label '7' occurs in 1 training row but in no evaluation split") as error:
        task_rows.check_rows("t", pairs(train, dev=dev, labels=()))
    assert error.value.where == place(train, number + 1)


def test_check_names_ten_classes_with_their_rows_and_counts_more(tmp_path):
    few, many = (
        write(tmp_path, "tsv", [("a", "b", f"c{number % classes:02}") for number in range(33)], name=f"{classes}")
        for classes in (10, 11)
    )
    said = ", ".join(f"c{number:02} ({4 if number < 3 else 3})" for number in range(10))
    assert task_rows.check_rows("t", pairs(few, labels=())) == f"33 training rows, 33 evaluation rows; classes {said}"
    assert task_rows.check_rows("t", pairs(many, labels=())) == "33 training rows, 33 evaluation rows; 11 classes"
    absent = pairs(write(tmp_path, "tsv", GOOD), labels=("no", "maybe", "yes"))
    assert task_rows.check_rows("t", absent).endswith("classes no (2), maybe (0), yes (1)")


@pytest.mark.parametrize("suffix", NULLS)
@pytest.mark.parametrize(
    ("labels", "numbers"),
    [(("0", "1"), [0, 1]), (("1", "0"), [1, 0]), (("no", "yes"), [0, 1]), (("False", "True"), [0, 1]), ((), [0, 1])],
)
def test_truth_values_are_the_classes_0_and_1_whatever_these_are_called(tmp_path, suffix, labels, numbers):
    path = write(tmp_path, suffix, [("a", "b", False), ("c", "d", True)])
    found = task_rows.read_task("t", pairs(path, labels=labels))
    assert task_rows.targets(found.dev[""], found.labels, pairs(path)).tolist() == numbers


@pytest.mark.parametrize("names", [(0, 1), ("0", "1"), ("no", "yes"), (0.0, 1.0)])
def test_truth_values_of_dev_are_the_classes_that_train_has_numbers_or_names_for(tmp_path, names):
    train = write(tmp_path, "parquet", [("a", "b", names[0]), ("c", "d", names[1])], name="train")
    dev = write(tmp_path, "parquet", [("a", "b", True), ("c", "d", False)], name="dev")
    found = task_rows.read_task("t", pairs(train, dev=dev, labels=()))
    assert task_rows.targets(found.dev[""], found.labels, pairs(train)).tolist() == [1, 0]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("label", ["1" * 5000, "-" + "9" * 5000, "1" * 5000 + ".0"])
@pytest.mark.parametrize("task", [{}, {"labels": ()}, {"kind": "regression", "labels": (), "metrics": ("pearson",)}])
def test_number_beyond_all_counting_is_refused_with_its_row(tmp_path, suffix, label, task):
    numbers = [("a", "b", "0"), ("c", "d", "1"), ("e", "f", "0"), ("g", "h", label)]
    path = write(tmp_path, suffix, numbers)
    with pytest.raises(UserError, match=r"the label in column 'label' is a number of 5,00\d digits") as error:
        task_rows.check_rows("t", pairs(path, **task))
    assert error.value.where == place(path, 4)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("labels", [("no", "yes"), ()])
def test_white_space_around_a_label_makes_no_class_of_its_own(tmp_path, suffix, labels):
    path = write(tmp_path, suffix, [("a", "b", "no"), ("c", "d", " yes"), ("e", "f", "no "), ("g", "h", "yes")])
    found = task_rows.read_task("t", pairs(path, labels=labels))
    assert found.labels == ("no", "yes")
    assert task_rows.targets(found.train, found.labels, pairs(path)).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("suffix", FORMATS)
def test_unknown_label_is_refused_with_its_row(tmp_path, suffix):
    path = write(tmp_path, suffix, [*GOOD, ("g", "h", "maybe")])
    with pytest.raises(UserError, match="the label 'maybe' is not one of") as error:
        task_rows.check_rows("t", pairs(path))
    assert error.value.where == place(path, 4)
    assert "no, yes" in error.value.instead


@pytest.mark.parametrize("suffix", FORMATS)
def test_label_that_is_no_finite_number_is_refused_with_its_row(tmp_path, suffix):
    numbers = [(1.5,), (2.25,), (float("nan"),)]
    path = write(tmp_path, suffix, [("a", "b", *number) for number in numbers])
    with pytest.raises(UserError, match=r"nan'? is not a number") as error:
        task_rows.check_rows("t", pairs(path, kind="regression", labels=(), metrics=("pearson",)))
    assert error.value.where == place(path, 3)
