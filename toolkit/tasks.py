"""A task as data: rows of a table -> token ids and labels of its splits, and the scores of a model's answers."""

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from toolkit import sources, tables
from toolkit.errors import UserError
from toolkit.heads import LABELS
from toolkit.metrics import score
from toolkit.questions import Windows, read_question, windows_of
from toolkit.recipe import Kind, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PAD_VALUES = {"attention_mask": 0, "token_type_ids": 0}


@dataclass(frozen=True)
class Examples:
    """Tokenised examples. Item i: {input_ids, attention_mask, (token_type_ids): list[int], labels: int or float}.

    Attributes:
        texts: The text of each example, or the two texts of a pair.
        inputs: Name of a model input -> one list of ids per example.
        labels: Class number of each example, [n] int64; in regression its number, [n] float32.
    """

    texts: list[tuple[str, ...]]
    inputs: dict[str, list[list[int]]]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**{name: ids[index] for name, ids in self.inputs.items()}, "labels": self.labels[index].item()}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, [n] int64."""
        return np.fromiter(map(len, self.inputs["input_ids"]), dtype=np.int64, count=len(self))

    @property
    def truth(self) -> np.ndarray:
        """What is to be predicted, [n]."""
        return self.labels

    def predicted(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """Class numbers (numbers, in regression) of logits [n, C]."""
        stacked = np.asarray(logits)
        return stacked[:, 0] if self.labels.dtype == np.float32 else stacked.argmax(axis=1)


Split = Examples | Windows


@dataclass(frozen=True)
class Measure:
    """A metric of one of the measured splits, which lie one after the other in `dev`.

    Attributes:
        name: `accuracy`; of a further split `accuracy (mismatched)`.
        part: Which examples, or questions, of `dev` it is measured on.
    """

    name: str
    metric: str
    part: slice

    @property
    def n(self) -> int:
        """Examples, or questions, behind it."""
        return int(self.part.stop - self.part.start)


@dataclass(frozen=True)
class TaskData:
    """A task, ready for a model: class names in the order of the class numbers, its splits, what is measured.

    Attributes:
        kind: What its examples are, and so what head a model of it has.
        train: What every stage trains on.
        tune: Set aside of the train split: what decisions are taken by. Empty where the recipe sets none aside.
        dev: What is reported. Nothing is chosen by it.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    train: Split
    tune: Split
    dev: Split
    measures: tuple[Measure, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what is measured; the first one counts for tuning."""
        return tuple(m.name for m in self.measures)

    @property
    def dev_n(self) -> int:
        """Examples, or questions, that are measured."""
        return len(self.dev.truth)

    def scores(self, logits: Sequence[np.ndarray]) -> dict[str, float]:
        """Every metric of a model's answers to the whole dev split.

        Args:
            logits: Of each item of `dev`.
        """
        truth, predicted = self.dev.truth, self.dev.predicted(logits)
        found = {}
        for m in self.measures:
            found[m.name] = score(self.kind, [m.metric], truth[m.part], predicted[m.part])[m.metric]
        return found

    def tuning_score(self, logits: Sequence[np.ndarray]) -> float:
        """The first metric, of the answers to `tune`."""
        metric = self.measures[0].metric
        return score(self.kind, [metric], self.tune.truth, self.tune.predicted(logits))[metric]


@dataclass(frozen=True)
class _Row:
    where: str  # file:line
    texts: tuple[str, ...]
    label: Any
    group: str | None


def load_task(name: str, section: Task, tokenizer: "PreTrainedTokenizerFast") -> TaskData:
    """Reads and tokenises the splits.

    Raises:
        UserError: A file is missing or damaged, a column is not there, a text is empty, a split is empty or has one
            class only, a label is not one of the task's, or `max_seq_length` is more than the model takes.
    """
    if section.max_seq_length > tokenizer.model_max_length:
        raise UserError(
            f"max_seq_length {section.max_seq_length} is more than the model's {tokenizer.model_max_length} positions",
            where=f"tasks.{name}",
            instead=f"max_seq_length: {tokenizer.model_max_length}",
        )
    train, dev = _splits(section)
    more = {split: _read(spec, section) for split, spec in section.more_dev.items()}
    labels = section.labels or (_labels_found(train, section) if section.kind == "classification" else ())
    tune, train = _set_aside(train, section)
    for split, rows in (("train", train), ("dev", dev), *more.items()):
        if section.kind == "classification":
            _must_differ(name, split, rows, labels)
    measured = [row for rows in (dev, *more.values()) for row in rows]
    train_split, tune_split, dev_split = (
        _tokenise(rows, labels, section, tokenizer) for rows in (train, tune, measured)
    )
    measures: list[Measure] = []
    first = 0
    for suffix, rows in (("", dev), *((f" ({split})", rows) for split, rows in more.items())):
        part = slice(first, first + len(rows))
        measures += [Measure(f"{metric}{suffix}", metric, part) for metric in section.metrics]
        first = part.stop
    return TaskData(name, section.kind, tuple(labels), train_split, tune_split, dev_split, tuple(measures))


def train_texts(section: Task) -> list[str]:
    """All texts that stages train on, without labels; both texts of a pair, one after the other; no context twice.

    Raises:
        UserError: The train file is missing or damaged, or has not the section's columns.
    """
    rows = _read(section.train, section) if section.dev else _splits(section)[0]
    texts = [text for row in _set_aside(rows, section)[1] for text in row.texts]
    return list(dict.fromkeys(texts)) if section.kind == "question_answering" else texts


def pad(features: Sequence[Mapping[str, Any]], pad_id: int, to: int | None = None) -> dict[str, Tensor]:
    """One batch, int64: inputs [n, length] padded on the right to the longest example (or to `to`), labels [n]."""
    length = max(len(f["input_ids"]) for f in features)
    if to is not None:
        assert length <= to, f"an example of {length} tokens does not fit into {to}"
        length = to
    batch = {}
    for name in features[0]:
        if name in LABELS:
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
    for where, row in tables.read_rows(path):
        seen = True
        for column in wanted:
            if column not in row:
                raise _no_column(column, row, where)
        if any(str(row[column]) not in values for column, values in section.rows.items()):
            continue
        texts = tuple(str(row[column]) for column in section.columns)
        if all(text.strip() for text in texts):
            rows.append(_Row(where, texts, row[section.label], str(row[group]) if group else None))
        elif not section.drop_empty:
            empty = next(c for c, text in zip(section.columns, texts, strict=True) if not text.strip())
            raise UserError(
                f"the text in column {empty!r} is empty", where=where, instead="a text, or drop_empty: true"
            )
    if not rows:
        raise UserError("no row has the values that `rows` asks for" if seen else "no rows", where=str(path))
    return rows


def _no_column(column: str, row: Mapping[str, Any], where: str) -> UserError:
    near = difflib.get_close_matches(column, row, n=1)
    instead = near[0] if near else f"one of {', '.join(row)}"
    return UserError(f"no column {column!r}", where=where, instead=instead)


def _labels_found(rows: Iterable[_Row], section: Task) -> tuple[str, ...]:
    """The different labels, in the order of their numbers when they are numbers, else by name."""
    labels = [str(row.label) for row in rows]
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
    label = str(row.label)
    if label in labels:
        return labels.index(label)
    numbered = not any(map(_is_number, labels))
    if numbered and label.isdecimal() and int(label) < len(labels):
        return int(label)
    range_ = f", or 0 to {len(labels) - 1}" if numbered else ""
    raise UserError(
        f"the label {label!r} is not one of the task's",
        where=row.where,
        instead=f"one of {', '.join(labels)}{range_} (`rows` leaves rows out)",
    )


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _must_differ(name: str, split: str, rows: Sequence[_Row], labels: Sequence[str]) -> None:
    """Rows that all have one label teach and tell nothing."""
    numbers = {_class_number(row, labels) for row in rows}
    if len(numbers) == 1:
        raise UserError(
            f"all {len(rows)} rows of the {split} split have the label {labels[numbers.pop()]!r}",
            where=f"tasks.{name}",
            instead="a split with two classes or more",
        )


def _number(row: _Row) -> float:
    try:
        return float(row.label)
    except (TypeError, ValueError):
        raise UserError(f"the label {row.label!r} is not a number", where=row.where, instead="e.g. 3.8") from None


def _tokenise(
    rows: Sequence[_Row], labels: Sequence[str], section: Task, tokenizer: "PreTrainedTokenizerFast"
) -> Split:
    if section.kind == "question_answering":
        questions = [read_question(row.where, row.texts, row.label) for row in rows]
        return windows_of(questions, tokenizer, section.max_seq_length, section.windows)
    if section.kind == "regression":
        numbers = np.array([_number(row) for row in rows], dtype=np.float32)
    else:
        numbers = np.array([_class_number(row, labels) for row in rows], dtype=np.int64)
    texts = [row.texts for row in rows]
    if not texts:
        return Examples([], {name: [] for name in tokenizer.model_input_names}, numbers)
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=section.max_seq_length)
    return Examples(texts, {name: encoded[name] for name in tokenizer.model_input_names}, numbers)
