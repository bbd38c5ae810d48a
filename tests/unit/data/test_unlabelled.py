"""Training rows without labels: new pairs of a task's texts, and rows of files."""

import numpy as np
import pytest

from toolkit.core.errors import UserError
from toolkit.data.task_rows import TaskRow, read_task
from toolkit.data.tasks import load_task
from toolkit.data.unlabelled import check_unlabelled, pairs, unlabelled_rows
from toolkit.models.load import load_tokenizer
from toolkit.pipeline.estimate.data_volume import task_volume, with_unlabelled
from toolkit.recipe import Task, Transfer, Unlabelled

ASKED = [
    ("how do I learn to swim", "how can I learn swimming"),
    ("how do I learn to cook", "which cooking course is best"),
    ("where is the nearest lake", "where can I swim in a lake"),
    ("who wrote this book", "is the lake book good"),
]


def table(path, columns, rows):
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [columns, *rows]))
    return str(path)


def lines_of(texts):
    return [TaskRow(f"{n}", pair, "0", None) for n, pair in enumerate(texts)]


@pytest.fixture
def section(tmp_path):
    train = table(tmp_path / "train.tsv", ("a", "b", "label"), [(*p, n % 2) for n, p in enumerate(ASKED)])
    dev = table(
        tmp_path / "dev.tsv",
        ("a", "b", "label"),
        [("how do I learn to cook", "how can I learn swimming", 0), ("x", "y", 1)],
    )
    return Task(train=train, dev=dev, columns=("a", "b"), labels=("0", "1"), max_seq_length=24)


def words(texts, count):
    """The texts with the most common words."""
    sets = [set(text.split()) for text in texts]
    return np.array([sorted(range(len(sets)), key=lambda n: -len(own & sets[n]))[:count] for own in sets])


def test_a_text_is_paired_with_the_most_similar_texts_that_it_does_not_stand_beside():
    found = [row.texts for row in pairs(lines_of(ASKED), 1, words)]
    assert frozenset(("how do I learn to swim", "how do I learn to cook")) in map(frozenset, found)
    more = [row.texts for row in pairs(lines_of(ASKED), 3, words)]
    assert set(map(frozenset, found)) < set(map(frozenset, more))
    assert len(set(map(frozenset, more))) == len(more)  # no pair in both orders
    assert not set(map(frozenset, more)) & set(map(frozenset, ASKED))
    assert all(row.label is None for row in pairs(lines_of(ASKED), 3, words))
    assert more == [row.texts for row in pairs(lines_of(ASKED), 3, words)]


def test_texts_keep_their_places():
    rows = lines_of([(f"premise {n} alpha", f"claim {n} alpha") for n in range(6)])
    found = [row.texts for row in pairs(rows, 8, words)]
    assert any(a.startswith("premise") and b.startswith("claim") for a, b in found)
    assert not any(a.startswith("claim") and b.startswith("premise") for a, b in found)


def test_a_text_is_never_paired_with_itself():
    rows = lines_of([("the same words", "other things"), ("something else", "the same words")])
    assert all(a != b for a, b in (row.texts for row in pairs(rows, 5, words)))


def test_rows_without_labels_are_new_and_none_is_evaluated(section, tmp_path):
    read = read_task("toy", section)
    logs = table(
        tmp_path / "logs.tsv",
        ("b", "a"),
        [("y", "x"), ("x", "y"), ("new", "text"), ("new", "text"), ASKED[0], ASKED[0][::-1]],
    )
    found = unlabelled_rows(section, Unlabelled(files=(logs,)), read, None)
    assert [(row.texts, row.label) for row in found] == [(("text", "new"), None)]
    made = unlabelled_rows(section, Unlabelled(files=(logs,), pairs=3), read, words)
    assert made[0] == found[0]
    assert len(made) > 3
    held_out = {row.texts for row in (*read.dev[""], *read.tune)}
    assert ("how do I learn to cook", "how can I learn swimming") in held_out  # which `pairs` would make
    assert not {row.texts for row in made} & held_out


def test_only_the_text_columns_of_a_file_are_read(section, tmp_path):
    own = section.model_copy(update={"rows": {"b": ("nothing",)}})
    logs = table(tmp_path / "logs.tsv", ("a", "b"), [("one", "two")])
    assert check_unlabelled(own, stage(files=(logs,))) == "1 rows without labels"
    with pytest.raises(UserError, match="no column 'b'"):
        check_unlabelled(section, stage(files=(table(tmp_path / "bad.tsv", ("a", "c"), [("one", "two")]),)))
    with pytest.raises(UserError, match="the text in column 'b' is empty"):
        check_unlabelled(section, stage(files=(table(tmp_path / "empty.tsv", ("a", "b"), [("one", "")]),)))


def test_single_texts_may_be_lines_of_plain_text(tmp_path):
    train = table(tmp_path / "train.tsv", ("sentence", "label"), [("good", 1), ("bad", 0)])
    (tmp_path / "logs.txt").write_text("one line\n\nanother\tline\n")
    section = Task(train=train, dev=train, labels=("0", "1"))
    found = unlabelled_rows(section, Unlabelled(files=(str(tmp_path / "logs.txt"),)), read_task("toy", section), None)
    assert [row.texts for row in found] == [("one line",), ("another\tline",)]


def stage(**unlabelled) -> Transfer:
    criterion = {"KnowledgeDistillationLoss": {"loss_weights": [0, 1]}}
    train = {"steps": 1, "criterion": criterion}
    return Transfer.model_validate({"distillation": {"train": train, "unlabelled": unlabelled}})


@pytest.mark.parametrize("kind", ["classification", "regression", "multi_label"])
def test_a_split_with_rows_without_labels_has_none(section, kind, tiny_bert):
    section = section.model_copy(
        update={"kind": kind, "labels": () if kind == "regression" else ("0", "1"), "metrics": ()}
    )
    tokenizer = load_tokenizer(tiny_bert)
    plain = load_task("toy", section, tokenizer)
    task = load_task("toy", section, tokenizer, Unlabelled(pairs=2), words)
    assert len(task.train) > len(plain.train) == 4
    assert not len(task.train.truth)
    assert plain.train[0].keys() - task.train[0].keys() == {"labels"}
    assert task.train[0].items() < plain.train[0].items()  # those with labels come first
    assert list(task.dev.truth.flat) == list(plain.dev.truth.flat)


def test_a_plan_counts_them(section, tmp_path):
    own = task_volume(section)
    logs = table(tmp_path / "logs.tsv", ("a", "b"), [("one", "two words"), ("three", "four")])
    found = with_unlabelled(own, section, Unlabelled(files=(logs,), pairs=2))
    assert found.examples == own.examples + 2 + 2 * len({text for row in ASKED for text in row})
    assert not found.exact
    assert len(found.lengths) == len(own.lengths) + 1
    missing = with_unlabelled(own, section, Unlabelled(files=("hub:a/b:c:train",)))
    assert missing.examples is None
