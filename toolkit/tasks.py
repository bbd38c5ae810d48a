"""A classification task as data: rows of a table -> token ids and class numbers of two splits, and their metrics."""

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from toolkit import sources
from toolkit.errors import UserError
from toolkit.recipe import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PAD_VALUES = {"attention_mask": 0, "token_type_ids": 0}


@dataclass(frozen=True)
class Examples:
    """Tokenised examples. Item i: {input_ids, attention_mask, (token_type_ids): list[int], labels: int}.

    Attributes:
        texts: The text of each example, or the two texts of a pair.
        inputs: Name of a model input -> one list of ids per example.
        labels: Class number of each example, [n] int64.
    """

    texts: list[tuple[str, ...]]
    inputs: dict[str, list[list[int]]]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**{name: ids[index] for name, ids in self.inputs.items()}, "labels": int(self.labels[index])}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, [n] int64."""
        return np.fromiter(map(len, self.inputs["input_ids"]), dtype=np.int64, count=len(self))


@dataclass(frozen=True)
class TaskData:
    """A task, ready for a model: class names in the order of the class numbers, its splits, names of the metrics.

    Attributes:
        train: What every stage trains on.
        tune: Set aside of the train split: what decisions are taken by. Empty where the recipe sets none aside.
        dev: What is reported. Nothing is chosen by it.
    """

    name: str
    labels: tuple[str, ...]
    train: Examples
    tune: Examples
    dev: Examples
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    where: str  # file:line
    texts: tuple[str, ...]
    label: str
    group: str | None


def load_task(name: str, section: Task, tokenizer: "PreTrainedTokenizerFast") -> TaskData:
    """Reads and tokenises the splits.

    Raises:
        UserError: A file is missing or damaged, a column is not there, a split is empty or has one class only, a label
            is not one of the task's, or `max_seq_length` is more than the model takes.
    """
    if section.max_seq_length > tokenizer.model_max_length:
        raise UserError(
            f"max_seq_length {section.max_seq_length} is more than the model's {tokenizer.model_max_length} positions",
            where=f"tasks.{name}",
            instead=f"max_seq_length: {tokenizer.model_max_length}",
        )
    train, dev = _splits(section)
    labels = section.labels or _labels_found(train, section)
    tune, train = _set_aside(train, section)
    splits = {}
    for split, rows in (("train", train), ("tune", tune), ("dev", dev)):
        numbers = [_class_number(row, labels) for row in rows]
        if len(set(numbers)) == 1 and split != "tune":
            raise UserError(
                f"all {len(rows)} rows of the {split} split have the label {labels[numbers[0]]!r}",
                where=f"tasks.{name}",
                instead="a split with two classes or more",
            )
        splits[split] = _tokenise(rows, numbers, section, tokenizer)
    return TaskData(name, tuple(labels), **splits, metrics=section.metrics)


def train_texts(section: Task) -> list[str]:
    """All texts that stages train on, without labels; both texts of a pair, one after the other.

    Raises:
        UserError: The train file is missing or damaged, or has not the section's columns.
    """
    rows = _read(section.train, section) if section.dev else _splits(section)[0]
    return [text for row in _set_aside(rows, section)[1] for text in row.texts]


def score(metrics: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Metrics in [0, 1] of predicted class numbers, [n] against [n].

    `f1` is that of class 1 where there are two classes (as GLUE has it), else the mean over the classes.
    """
    from sklearn.metrics import accuracy_score, f1_score

    assert labels.shape == predictions.shape
    assert labels.ndim == 1
    two = max(labels.max(), predictions.max()) <= 1
    measures = {
        "accuracy": lambda: accuracy_score(labels, predictions),
        "f1": lambda: f1_score(labels, predictions, average="binary" if two else "macro", zero_division=0.0),
    }
    return {name: float(measures[name]()) for name in metrics}


def pad(features: Sequence[Mapping[str, Any]], pad_id: int, to: int | None = None) -> dict[str, Tensor]:
    """One batch, int64: inputs [n, length] padded on the right to the longest example (or to `to`), labels [n]."""
    length = max(len(f["input_ids"]) for f in features)
    if to is not None:
        assert length <= to, f"an example of {length} tokens does not fit into {to}"
        length = to
    batch = {}
    for name in features[0]:
        if name == "labels":
            batch[name] = torch.tensor([f[name] for f in features])
            continue
        padded = torch.full((len(features), length), _PAD_VALUES.get(name, pad_id))
        for row, feature in zip(padded, features, strict=True):
            row[: len(feature[name])] = torch.as_tensor(feature[name])
        batch[name] = padded
    return batch


def _splits(section: Task) -> tuple[list[_Row], list[_Row]]:
    """Train and dev rows; with `hold_out`, no group of rows has a part in both."""
    train = _read(section.train, section)
    if section.dev:
        return train, _read(section.dev, section)
    assert section.hold_out is not None
    parts = round(1 / section.hold_out.fraction)
    dev = [row for row in train if _part(row, parts) == section.hold_out.fold]
    train = [row for row in train if _part(row, parts) != section.hold_out.fold]
    for split, rows in (("train", train), ("dev", dev)):
        if not rows:
            raise UserError(
                f"hold_out leaves no rows for {split}: too few different values in {section.hold_out.column!r}",
                where=section.train,
                instead="another hold_out.column, or a larger hold_out.fraction",
            )
    return train, dev


def _set_aside(train: list[_Row], section: Task) -> tuple[list[_Row], list[_Row]]:
    """The rows of `tune` and those that stay in train; always the same ones, whatever the recipe's seed."""
    count = min(section.tuning_examples, len(train) // 10)
    chosen = set(np.random.default_rng(0).permutation(len(train))[:count].tolist())
    return [row for i, row in enumerate(train) if i in chosen], [row for i, row in enumerate(train) if i not in chosen]


def _part(row: _Row, parts: int) -> int:
    """Which of the parts a row's group belongs to: the same on every machine and in every order of the rows."""
    assert row.group is not None
    return int.from_bytes(hashlib.sha256(row.group.encode()).digest()[:8], "big") % parts


def _read(spec: str, section: Task) -> list[_Row]:
    """The rows of a file that `section.rows` keeps."""
    path = sources.local_file(spec)
    group = section.hold_out.column if section.hold_out else None
    wanted = [*section.columns, section.label, *section.rows, *([group] if group else [])]
    rows, seen = [], False
    for line, row in sources.read_rows(path):
        seen = True
        for column in wanted:
            if column not in row:
                raise _no_column(column, row, path, line)
        if all(row[column] in values for column, values in section.rows.items()):
            texts = tuple(row[column] for column in section.columns)
            rows.append(_Row(f"{path}:{line}", texts, row[section.label], row[group] if group else None))
    if not rows:
        raise UserError("no row has the values that `rows` asks for" if seen else "no rows", where=str(path))
    return rows


def _no_column(column: str, row: Mapping[str, str], path: Path, line: int) -> UserError:
    near = difflib.get_close_matches(column, row, n=1)
    instead = near[0] if near else f"one of {', '.join(row)}"
    return UserError(f"no column {column!r}", where=f"{path}:{line}", instead=instead)


def _labels_found(rows: Iterable[_Row], section: Task) -> tuple[str, ...]:
    """The different labels, in the order of their numbers when they are numbers, else by name."""
    labels = [row.label for row in rows]
    found = set(labels)
    if len(found) > max(2, len(labels) // 2):
        raise UserError(
            f"{len(found)} different values in {len(labels)} rows: these are no classes",
            where=f"{section.train}, column {section.label!r}",
            instead="a column with the name or number of a class",
        )
    return tuple(sorted(found, key=int) if all(map(_is_number, found)) else sorted(found))


def _class_number(row: _Row, labels: Sequence[str]) -> int:
    """A label is a class name; or a class number, where no class has a number for a name."""
    if row.label in labels:
        return labels.index(row.label)
    numbered = not any(map(_is_number, labels))
    if numbered and row.label.isdecimal() and int(row.label) < len(labels):
        return int(row.label)
    range_ = f", or 0 to {len(labels) - 1}" if numbered else ""
    raise UserError(
        f"the label {row.label!r} is not one of the task's",
        where=row.where,
        instead=f"one of {', '.join(labels)}{range_} (`rows` leaves rows out)",
    )


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _tokenise(rows: Sequence[_Row], labels: list[int], section: Task, tokenizer: "PreTrainedTokenizerFast") -> Examples:
    texts = [row.texts for row in rows]
    if not texts:
        return Examples([], {name: [] for name in tokenizer.model_input_names}, np.array([], dtype=np.int64))
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=section.max_seq_length)
    inputs = {name: encoded[name] for name in tokenizer.model_input_names}
    return Examples(texts, inputs, np.array(labels, dtype=np.int64))
