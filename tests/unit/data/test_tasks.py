"""Tables to examples: splits, labels, padding, scores, and what bad data is answered with."""

from functools import partial

import numpy as np
import pytest

from toolkit.core.errors import UserError
from toolkit.data import task_kinds as examples
from toolkit.data.batches import pad
from toolkit.data.tasks import load_task, train_texts
from toolkit.models.load import load_tokenizer
from toolkit.recipe import HoldOut, Task


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return load_tokenizer(tiny_bert)


@pytest.fixture
def table(tmp_path):
    """Writes a TSV file from a header and rows; returns its path as text."""

    def write(name: str, header: str, *rows: str) -> str:
        path = tmp_path / name
        path.write_text("\n".join(line.replace(" | ", "\t") for line in (header, *rows)) + "\n")
        return str(path)

    return write


score = partial(examples.score, "classification")

TWO_ROWS = ("a | 0", "b | 1")


def test_task_files_become_splits_in_file_order(tiny_task_files, tokenizer):
    task = load_task("toy", Task(train=str(tiny_task_files.train), dev=str(tiny_task_files.dev)), tokenizer)
    assert (task.name, task.labels, task.metrics) == ("toy", ("0", "1"), ("accuracy",))
    assert (len(task.train), len(task.tune), len(task.dev)) == (432, 48, 120)
    lines = tiny_task_files.dev.read_text().splitlines()[1:]
    assert task.dev.texts == [(line.split("\t")[0],) for line in lines]
    assert task.dev.labels.tolist() == [int(line.split("\t")[1]) for line in lines]
    first = task.dev[0]
    words = tokenizer.convert_ids_to_tokens(first["input_ids"])
    assert words == ["[CLS]", *lines[0].split("\t")[0].split(), "[SEP]"]
    assert first.keys() == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert all(type(i) is int for i in [*first["input_ids"], first["labels"]])
    assert task.dev.lengths.tolist() == [len(task.dev[i]["input_ids"]) for i in range(120)]


def test_examples_to_tune_by_are_a_tenth_of_train_at_most_and_always_the_same(tiny_task_files, tokenizer):
    def load(**values):
        section = Task(train=str(tiny_task_files.train), dev=str(tiny_task_files.dev), **values)
        return load_task("toy", section, tokenizer), train_texts(section)

    (task, texts), (again, _), (few, _), (none, _) = load(), load(), load(tuning_examples=5), load(tuning_examples=0)
    rows = [(line.split("\t")[0],) for line in tiny_task_files.train.read_text().splitlines()[1:]]
    assert sorted(task.train.texts + task.tune.texts) == sorted(rows)
    assert task.tune.texts == again.tune.texts
    assert texts == [text for (text,) in task.train.texts]
    assert (len(few.tune), len(none.tune), len(none.train)) == (5, 0, 480)


def test_pair_of_sentences_is_told_apart_by_token_types_and_cut_to_length(table, tokenizer):
    path = table("a.tsv", "one | two | label", "a b | c d | x", "a | " + "b " * 50 + " | y")
    section = Task(train=path, dev=path, columns=("one", "two"), max_seq_length=12)
    task = load_task("pairs", section, tokenizer)
    assert task.train[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert len(task.train[1]["input_ids"]) == 12


@pytest.mark.parametrize(
    ("values", "labels", "expected"),
    [
        (["10", "9", "9"], (), ("9", "10")),
        (["no", "yes", "no"], (), ("no", "yes")),
        (["-1", "1", "1"], (), ("-1", "1")),
        (["0", "1", "0"], ("negative", "positive"), ("negative", "positive")),
        (["positive", "negative", "0"], ("negative", "positive"), ("negative", "positive")),
    ],
)
def test_labels_may_be_names_or_class_numbers(table, tokenizer, values, labels, expected):
    path = table("a.tsv", "sentence | label", *(f"a | {v}" for v in values))
    task = load_task("t", Task(train=path, dev=path, labels=labels), tokenizer)
    assert task.labels == expected
    wanted = [int(v) if labels and v.isdigit() else expected.index(v) for v in values]
    assert task.train.labels.tolist() == wanted


@pytest.mark.parametrize("value", ["maybe", "2", "-1"])
def test_label_that_is_not_the_tasks_names_its_line(table, tokenizer, value):
    train = table("train.tsv", "sentence | label", *TWO_ROWS)
    dev = table("dev.tsv", "sentence | label", "a | 0", f"b | {value}")
    with pytest.raises(UserError, match=f"label '{value}' is not one of") as error:
        load_task("t", Task(train=train, dev=dev, labels=("no", "yes")), tokenizer)
    assert error.value.where == f"{dev}:3"
    assert "no, yes, or 0 to 1" in error.value.instead


def test_class_numbers_are_not_taken_where_names_are_numbers(table, tokenizer):
    path = table("a.tsv", "sentence | label", "a | 1", "b | 2", "c | 0")
    with pytest.raises(UserError, match="label '0'"):
        load_task("t", Task(train=path, dev=path, labels=("1", "2")), tokenizer)


def test_missing_column_is_answered_with_the_nearest(table, tokenizer):
    path = table("a.tsv", "sentense | label", *TWO_ROWS)
    with pytest.raises(UserError, match="no column 'sentence'") as error:
        load_task("t", Task(train=path, dev=path), tokenizer)
    assert (error.value.where, error.value.instead) == (f"{path}:1", "sentense")


def test_only_rows_with_the_asked_values_are_kept(table, tokenizer):
    path = table("a.tsv", "sentence | label | kind", "a | 0 | x", "b | 1 | y", "c | 1 | z")
    task = load_task("t", Task(train=path, dev=path, rows={"kind": ("x", "z")}), tokenizer)
    assert task.train.texts == [("a",), ("c",)]
    with pytest.raises(UserError, match="no row has the values"):
        load_task("t", Task(train=path, dev=path, rows={"kind": ("w",)}), tokenizer)


def test_split_without_rows_is_a_user_error(table, tokenizer):
    train, dev = table("train.tsv", "sentence | label", *TWO_ROWS), table("dev.tsv", "sentence | label")
    with pytest.raises(UserError, match="the file is empty") as error:
        load_task("t", Task(train=train, dev=dev), tokenizer)
    assert error.value.where == dev


@pytest.mark.parametrize("constant", ["train", "dev"])
def test_split_with_one_class_is_a_user_error(table, tokenizer, constant):
    files = {split: table(f"{split}.tsv", "sentence | label", *TWO_ROWS) for split in ("train", "dev")}
    files[constant] = table("constant.tsv", "sentence | label", "a | 1", "b | 1")
    with pytest.raises(UserError, match=f"all 2 rows of the {constant} split have the label '1'"):
        load_task("t", Task(**files, labels=("0", "1")), tokenizer)


def test_scores_are_not_taken_for_classes(table, tokenizer):
    path = table("a.tsv", "sentence | label", *(f"a | {i / 7:.3f}" for i in range(20)))
    with pytest.raises(UserError, match="20 different values in 20 rows"):
        load_task("t", Task(train=path, dev=path), tokenizer)


def test_more_tokens_than_positions_is_a_user_error(tiny_task_files, tokenizer):
    section = Task(train=str(tiny_task_files.train), dev=str(tiny_task_files.dev), max_seq_length=129)
    with pytest.raises(UserError, match="max_seq_length 129 is more than the model's 128"):
        load_task("t", section, tokenizer)


def hold_out(path, **values) -> Task:
    return Task(train=str(path), hold_out=HoldOut(column="film", **values))


def test_hold_out_folds_part_the_films_and_cover_every_row_once(tiny_task_files, tokenizer):
    rows = [line.split("\t") for line in tiny_task_files.train.read_text().splitlines()[1:]]
    film_of = {text: film for text, _, film in rows}
    seen = []
    for fold in range(4):
        task = load_task("t", hold_out(tiny_task_files.train, fraction=0.25, fold=fold), tokenizer)
        assert len(task.train) + len(task.tune) + len(task.dev) == len(rows)
        dev, train = ({film_of[text] for (text,) in split.texts} for split in (task.dev, task.train))
        assert dev
        assert not dev & train
        seen += task.dev.texts
    assert sorted(seen) == sorted((text,) for text, _, _ in rows)


def test_hold_out_does_not_depend_on_the_order_of_the_rows(tiny_task_files, tokenizer, tmp_path):
    header, *rows = tiny_task_files.train.read_text().splitlines()
    turned = tmp_path / "turned.tsv"
    turned.write_text("\n".join([header, *reversed(rows)]) + "\n")
    dev = [load_task("t", hold_out(p), tokenizer).dev.texts for p in (tiny_task_files.train, turned)]
    assert dev[0] == dev[1][::-1]


def test_hold_out_with_one_group_is_a_user_error(table, tokenizer):
    path = table("a.tsv", "sentence | label | film", "a | 0 | x", "b | 1 | x")
    with pytest.raises(UserError, match="hold_out leaves no rows for"):
        load_task("t", hold_out(path), tokenizer)


def test_train_texts_hold_no_text_of_dev(tiny_task_files, tokenizer):
    section = hold_out(tiny_task_files.train, fraction=0.25)
    assert train_texts(section) == [t for (t,) in load_task("t", section, tokenizer).train.texts]


def test_train_texts_of_pairs_are_both_texts(table):
    path = table("a.tsv", "one | two | label", "a | b | 0", "c | d | 1")
    assert train_texts(Task(train=path, dev="unread.tsv", columns=("one", "two"))) == ["a", "b", "c", "d"]


def test_pad_fills_to_the_longest_or_to_a_given_length():
    features = [
        {"input_ids": [2, 7, 3], "attention_mask": [1, 1, 1], "token_type_ids": [0, 1, 1], "labels": 1},
        {"input_ids": [2, 3], "attention_mask": [1, 1], "token_type_ids": [0, 0], "labels": 0},
    ]
    batch = pad(features, pad_id=9)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[2, 7, 3], [2, 3, 9]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "token_type_ids": [[0, 1, 1], [0, 0, 0]],
        "labels": [1, 0],
    }
    assert {str(value.dtype) for value in batch.values()} == {"torch.int64"}
    assert pad(features, pad_id=9, to=5)["input_ids"].tolist() == [[2, 7, 3, 9, 9], [2, 3, 9, 9, 9]]
    with pytest.raises(AssertionError):
        pad(features, pad_id=9, to=2)


def test_score_counts_by_hand():
    labels, predictions = np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1])
    assert score(["accuracy", "f1"], labels, predictions) == {"accuracy": 0.75, "f1": pytest.approx(0.8)}
    assert list(score(["f1"], labels, predictions)) == ["f1"]


def test_f1_of_a_model_that_never_says_yes_is_zero():
    assert score(["f1"], np.array([0, 1]), np.array([0, 0])) == {"f1": 0.0}


def test_real_sst2_is_read_whole(shared_data, tokenizer):
    folder = shared_data / "sst2"
    task = load_task("sst2", Task(train=str(folder / "dev.tsv"), dev=str(folder / "dev.tsv")), tokenizer)
    assert len(task.dev) == 872
    assert int(task.dev.labels.sum()) == 444


@pytest.mark.parametrize("empty", ["a |  | x", " | b | x"])
def test_row_with_an_empty_text_is_refused_with_its_line_or_left_out_when_asked(table, tokenizer, empty):
    path = table("a.tsv", "one | two | label", "a | b | x", empty, "a | b | y")
    values = {"train": path, "dev": path, "columns": ("one", "two")}
    with pytest.raises(UserError, match=r"the text in column '(one|two)' is empty") as error:
        load_task("t", Task(**values), tokenizer)
    assert error.value.where == f"{path}:3"
    assert "drop_empty" in error.value.instead
    assert load_task("t", Task(**values, drop_empty=True), tokenizer).dev_n == 2


def test_wrong_encoding_is_refused_with_its_line(table, tokenizer, tmp_path):
    path = tmp_path / "latin.tsv"
    path.write_bytes("sentence\tlabel\nfine\t0\ncaf\u00e9\t1\n".encode("latin-1"))
    with pytest.raises(UserError, match="cannot be read as text") as error:
        load_task("t", Task(train=str(path), dev=str(path)), tokenizer)
    assert error.value.where == f"{path}:3"


def test_further_splits_are_measured_each_by_itself(table, tokenizer):
    dev, odd = (
        table(f"{name}.tsv", "sentence | label", *rows)
        for name, rows in (("d", TWO_ROWS), ("o", (*TWO_ROWS[::-1], "c | 1")))
    )
    task = load_task("t", Task(train=dev, dev=dev, more_dev={"odd": odd}, metrics=("accuracy", "f1")), tokenizer)
    assert task.metrics == ("accuracy", "f1", "accuracy (odd)", "f1 (odd)")
    assert ([m.n for m in task.measures], task.dev_n, len(task.dev)) == ([2, 2, 3, 3], 5, 5)
    always_one = np.tile([0.0, 1.0], (5, 1))
    found = task.scores(always_one)
    assert (found["accuracy"], found["accuracy (odd)"]) == (0.5, pytest.approx(2 / 3))


def test_numbers_are_predicted_by_one_logit(table, tokenizer):
    path = table("a.tsv", "sentence | label", "a | 0.5", "b | 3", "c | 4.75")
    section = Task(train=path, dev=path, kind="regression", tuning_examples=0)
    task = load_task("t", section, tokenizer)
    assert task.dev.labels.tolist() == [0.5, 3.0, 4.75]
    assert task.dev[0]["labels"] == 0.5
    assert task.scores(np.array([[1.0], [2.0], [3.0]]))["pearson"] == pytest.approx(4.25 / (9.125 * 2) ** 0.5)
    bad = table("b.tsv", "sentence | label", "a | 0.5", "b | many")
    with pytest.raises(UserError, match="'many' is not a number") as error:
        load_task("t", section.model_copy(update={"dev": bad}), tokenizer)
    assert error.value.where == f"{bad}:3"


def test_public_samples_load_by_their_preset(shared_data, tokenizer):
    def load(name, train, dev):
        section = Task(preset=name, train=str(shared_data / train), dev=str(shared_data / dev))
        return load_task(name, section, tokenizer)

    mnli = load("mnli", "mnli/train_sample.tsv", "mnli/dev_matched.tsv")
    assert (mnli.dev_n, len(mnli.train) + len(mnli.tune)) == (9815, 22641)
    assert np.bincount(mnli.dev.labels).tolist() == [3479, 3123, 3213]  # entailment, neutral, contradiction
    qqp = load("qqp", "qqp/train_sample.tsv", "qqp/dev_sample.tsv")
    assert (qqp.dev_n, len(qqp.train) + len(qqp.tune), qqp.metrics) == (1000, 8999, ("accuracy", "f1"))
