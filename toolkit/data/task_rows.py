"""Rows of a task: reading, splitting and validation of every text and label. Loads no torch: `check` uses it."""

import hashlib
import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import UserError
from toolkit.core.files import file_hash
from toolkit.data.files import cached_file, fetch_file
from toolkit.data.kinds.multi_label import stored_classes, with_classes
from toolkit.data.kinds.reranking import as_pairs, by_query, candidate_rows, require_label, require_rankable
from toolkit.data.kinds.retrieval import read_retrieval
from toolkit.data.kinds.tagged_rows import tagged_rows
from toolkit.data.labels import is_number, label_number, number_of
from toolkit.data.question_answering import is_unanswerable
from toolkit.data.tables import Record, read_rows, text
from toolkit.data.tables.columns import complete_lines
from toolkit.data.task_classes import class_labels, require_classes, require_evaluated, summary_of
from toolkit.data.task_kinds import EXAMPLES
from toolkit.recipe import KINDS, Task
from toolkit.recipe.references import is_hub, table_format, task_files, train_files

_INVISIBLE = ("Zs", "Zl", "Zp", "Cc", "Cf")  # Unicode categories of spaces, line ends, control and format characters
_LONGEST_NUMBER = 100  # digits of a label; Python itself parses at most a few thousand
_KINDS_OF_VALUE = {int: "number", float: "number", bool: "truth value", list: "list", dict: "object"}


@dataclass(frozen=True)
class TaskRow:
    """A row of a task, after filtering.

    Attributes:
        where: `file:line`, or the nearest equivalent.
        texts: The text, or the two texts of a pair; none is empty.
        label: The label as stored in the file; never missing, None only in a task without labels and in rows that the
            task teacher labels. With several classes a tuple of them, possibly empty.
        group: Value of `hold_out.column`: rows with the same value are in the same split. None without `hold_out`.
        query: Number of the row's query among those of its split, or of all evaluation splits. None for other tasks.
    """

    where: str
    texts: tuple[str, ...]
    label: Any
    group: str | None
    query: int | None = None


@dataclass(frozen=True)
class TaskRows:
    """The splits of a task.

    Attributes:
        labels: Class names in the order of the class numbers; empty for a task without classes.
        train: Rows to train on.
        tune: Rows of the train split that are reserved for tuning decisions.
        dev: Name of an evaluation split -> its rows; `dev` itself comes first, with an empty name.
        left_out: A message for each file with rows that `drop_empty` has left out.
    """

    labels: tuple[str, ...]
    train: list[TaskRow]
    tune: list[TaskRow]
    dev: dict[str, list[TaskRow]]
    left_out: tuple[str, ...]


def read_task(name: str, section: Task) -> TaskRows:
    """Reads the splits of a task; those on the hub are downloaded.

    Raises:
        UserError: A file is missing or damaged, a column is missing, a text is empty, a label is missing or not one of
            the classes, a split is empty or has a single class, a class that the recipe does not name occurs in no
            evaluation split, a class of a multi-label task in no training row, or a query has nothing to rank.
    """
    left_out: list[str] = []
    all_train, dev = _splits(section, left_out)
    more = {split: read_file(spec, section.evaluated, left_out) for split, spec in section.more_dev.items()}
    labels = class_labels(all_train, section)
    tune, train = _set_aside(all_train, section)
    if KINDS[section.kind].has_classes:
        # A rare class of several may be among the rows that are set aside for tuning alone.
        trained = all_train if KINDS[section.kind].several_classes else train
        for split, rows in (("train", trained), ("dev", dev), *more.items()):
            require_classes(name, split, rows, labels, section)
        if not section.labels:
            require_evaluated(all_train, itertools.chain(dev, *more.values()), labels, section)
    if KINDS[section.kind].dense_teaches:
        for split, rows in (("train", train), ("dev", dev), *more.items()):
            _require_two_scores(name, split, rows)
    splits = {"": dev} | more
    if KINDS[section.kind].per_query:
        train, tune, first = by_query(train), by_query(tune), 0
        if section.ranking.group > 1:
            require_rankable(train)
        for split, rows in splits.items():
            splits[split] = by_query(rows, first)
            require_rankable(splits[split])
            first += measured_items(splits[split])
    return TaskRows(labels, train, tune, splits, tuple(left_out))


def measured_items(rows: Sequence[TaskRow]) -> int:
    """Returns the number of items of a split that a metric is a mean over: rows, or the queries that they belong to."""
    return len(rows) if not rows or rows[0].query is None else len({row.query for row in rows})


def read_train(section: Task) -> list[TaskRow]:
    """Returns the rows that stages train on; their labels are not compared with the classes.

    Raises:
        UserError: The train file is missing or damaged, or lacks one of the section's columns.
    """
    rows = _read_train(section, []) if section.dev else _splits(section, [])[0]
    return _set_aside(rows, section)[1]


def check_rows(name: str, section: Task) -> str:
    """Reads every row of the locally available files as a stage would; returns a summary of rows and classes.

    Raises:
        UserError: The rows are invalid (see `read_task`), or a number or an answer is malformed.
    """
    specs = task_files(section)
    here = [spec for spec in specs if cached_file(spec) is not None]
    if len(here) == len(specs):
        found = read_task(name, section)
        measured = [row for rows in found.dev.values() for row in rows]
        train = found.train + found.tune
        numbers = targets(train, found.labels, section)
        targets(measured, found.labels, section.evaluated)
        summary = [f"{len(train):,} training rows, {len(measured):,} evaluation rows"]
        if KINDS[section.kind].has_classes:
            summary.append(summary_of(found.labels, numbers, section))
        if KINDS[section.kind].per_query:
            queries = [sum(map(measured_items, splits)) for splits in ((found.train, found.tune), found.dev.values())]
            summary.append("{:,} training and {:,} evaluation queries".format(*queries))
        for split, file in section.retrieval.items():
            one = read_retrieval(split, file, drop_empty=section.drop_empty)
            summary.append(f"{split}: {len(one.queries):,} queries, {len(one.documents):,} documents")
        return "; ".join([*summary, *found.left_out])
    # Without the train split the classes are known only if the recipe names them.
    counts, left_out = [], list[str]()
    is_known = set(train_files(section)) <= set(here)
    labels = class_labels(_read_train(section, []), section) if is_known else section.classes
    for spec in here:
        own = section if spec in train_files(section) else section.evaluated
        rows = read_file(spec, own, left_out)
        if labels or not KINDS[section.kind].has_classes:
            targets(rows, labels, own)
        counts.append(len(rows))
    return "; ".join([f"{sum(counts):,} rows available locally", *left_out]) if counts else ""


def targets(rows: Sequence[TaskRow], labels: Sequence[str], section: Task) -> Any:
    """Returns the labels of rows: class numbers [n] int64, numbers [n] float32, or a list of n questions or tags.

    Raises:
        UserError: A label is not one of the task's; the message names the row.
    """
    return EXAMPLES[section.kind].targets(rows, labels)


def _splits(section: Task, left_out: list[str]) -> tuple[list[TaskRow], list[TaskRow]]:
    """Returns train and dev rows; with `hold_out`, all rows of a group are in the same split."""
    train = _read_train(section, left_out)
    if section.dev:
        return train, read_file(section.dev, section.evaluated, left_out)
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


def _set_aside(train: list[TaskRow], section: Task) -> tuple[list[TaskRow], list[TaskRow]]:
    """Returns the rows of `tune` and the remaining train rows; the choice does not depend on the recipe's seed."""
    count = min(section.tuning_examples, len(train) // 10)
    units: dict[Any, list[int]] = {}  # rows that are set aside together: one, or the candidates of a query
    for number, row in enumerate(train):
        units.setdefault(row.texts[0] if KINDS[section.kind].per_query else number, []).append(number)
    numbered, chosen = list(units.values()), set[int]()
    for unit in np.random.default_rng(0).permutation(len(units)).tolist():
        together = len(chosen) + len(numbered[unit])
        if not count or (chosen and together > count) or together == len(train):
            break
        chosen.update(numbered[unit])
    return [row for i, row in enumerate(train) if i in chosen], [row for i, row in enumerate(train) if i not in chosen]


def _part(row: TaskRow, parts: int) -> int:
    """Returns the fold of a row's group: the same on every machine and in every order of the rows."""
    assert row.group is not None
    return int.from_bytes(hashlib.sha256(row.group.encode()).digest()[:8], "big") % parts


def _read_train(section: Task, left_out: list[str]) -> list[TaskRow]:
    return [row for spec in train_files(section) for row in read_file(spec, section, left_out)]


def repeated_files(section: Task) -> list[str]:
    """Returns a message for each evaluation split whose file is a training file, too; those on the hub are skipped."""
    found = []
    train = [file for spec in train_files(section) if (file := cached_file(spec))]
    for name, spec in {"dev": section.dev, **section.more_dev}.items():
        file = cached_file(spec) if spec else None
        if file and any(
            file.stat().st_size == other.stat().st_size and file_hash(file) == file_hash(other) for other in train
        ):
            found.append(f"{name} is a training file, so its scores are those of memorised examples")
    return found


def read_file(spec: str, section: Task, left_out: list[str]) -> list[TaskRow]:
    """Returns the rows of a file selected by `section.rows`; adds a message on rows without text to `left_out`."""
    path = fetch_file(spec)
    group = section.hold_out.column if section.hold_out else None
    label_columns = [*section.label_columns, *([] if section.label is None else [section.label])]
    columns = [*section.columns, *label_columns, *section.rows, *([group] if group else [])]
    rows, empties, unanswered, seen = [], list[str](), list[str](), False
    stored, section = file_rows(path, columns, section), as_pairs(section)
    if KINDS[section.kind].several_classes:
        stored = with_classes(stored, section)
    for where, row in stored:
        seen = True
        if any(text(row[column]) not in values for column, values in section.rows.items()):
            continue
        texts = tuple(_text(row, column, where) for column in section.columns)
        empty = next((c for c, text in zip(section.columns, texts, strict=True) if _is_blank(text)), None)
        if empty is not None and section.drop_empty:
            empties.append(where)
            continue
        if empty is not None:
            raise UserError(
                f"the text in column {empty!r} is empty", where=where, instead="a text, or drop_empty: true"
            )
        label = _label(row, section, where)
        if section.drop_unanswerable and is_unanswerable(label):
            unanswered.append(where)
            continue
        rows.append(TaskRow(where, texts, label, _require_encodable(text(row[group]), group, where) if group else None))
    if not rows:
        what = "every row has an empty text" if empties else "no row has the values required by `rows`"
        what = "no question has an answer" if unanswered else what
        raise UserError(what if seen else "no rows", where=str(path))
    for places, what in ((empties, "with an empty text"), (unanswered, "without an answer")):
        if places:
            first = (spec if is_hub(spec) else path.name) + places[0].removeprefix(str(path))
            left_out.append(f"{len(places):,} row{'s' * (len(places) > 1)} {what} left out (first: {first})")
    return rows


def file_rows(path: Path, columns: Sequence[str], section: Task) -> Iterator[tuple[str, Record]]:
    """Yields the rows of a task's file as `read_rows`; single texts without labels may also be the lines of plain text.

    Rows of tagged words have a text, and the words with their tags as label (`tagged_rows`).
    """
    if KINDS[section.kind].tagged:
        yield from tagged_rows(path, columns, section)
        return
    if len(columns) > 1 or table_format(path.name) is not None:
        yield from candidate_rows(path, columns, section) if KINDS[section.kind].per_query else read_rows(path, columns)
        return
    for number, line in enumerate(complete_lines(path), start=1):
        if not _is_blank(line):
            yield f"{path}:{number}", {columns[0]: line.strip()}


def _label(row: Record, section: Task, where: str) -> Any:
    """Returns the label as stored in the file; None for a task without labels."""
    if KINDS[section.kind].several_classes:
        return stored_classes(row, section, where)
    if section.label is None:
        return None
    label = row[section.label]
    if KINDS[section.kind].scalar_label and not isinstance(label, str | Number | None):
        raise UserError(
            f"the label in column {section.label!r} is a {_kind_of(label)}",
            where=where,
            instead="another column: a label is a text or a number",
        )
    missing = label is None or (isinstance(label, str) and _is_blank(label))
    if missing or (KINDS[section.kind].has_classes and label != label):  # NaN: missing in a column of numbers
        raise UserError(
            f"the label in column {section.label!r} is missing",
            where=where,
            instead=f"one of {', '.join(section.labels)}" if section.labels else "a label, or leave the row out",
        )
    if isinstance(label, str):
        _require_encodable(label, section.label, where)
    if isinstance(label, str | int) and len(str(label)) > _LONGEST_NUMBER and is_number(number := label_number(label)):
        raise UserError(
            f"the label in column {section.label!r} is a number of {len(number):,} digits",
            where=where,
            instead="the name or number of a class" if KINDS[section.kind].has_classes else "e.g. 3.8",
        )
    return require_label(label, section, where) if KINDS[section.kind].per_query else label


def _is_blank(text: str) -> bool:
    """Whether a text consists of white space and zero-width characters only."""
    return all(unicodedata.category(character) in _INVISIBLE for character in text)


def _text(row: Record, column: str, where: str) -> str:
    """Returns a text, empty for null. Other types are errors: their `str` is hardly what the file means."""
    value = row[column]
    if value is None or isinstance(value, str):
        return _require_encodable(value or "", column, where)
    raise UserError(
        f"column {column!r} has a {_kind_of(value)} where a text should be",
        where=where,
        instead='another column in `columns`, or a text in quotation marks: "5"',
    )


def _require_encodable(text: str, column: str, where: str) -> str:
    """Rejects unpaired UTF-16 surrogates: JSON can contain them, but tokenizers and files cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("ascii", "backslashreplace").decode()
        raise UserError(
            f"column {column!r} contains an unpaired surrogate: {half}",
            where=where,
            instead="the complete character, or remove it",
        ) from None
    return text


def _kind_of(value: Any) -> str:
    return _KINDS_OF_VALUE.get(type(value), type(value).__name__)


def _require_two_scores(name: str, split: str, rows: Sequence[TaskRow]) -> None:
    """Rejects pairs that all have one score, which can neither train nor evaluate; texts without scores pass."""
    scores = {number_of(row.label, row.where) for row in rows if row.label is not None}
    if len(scores) == 1 and len(rows) > 1:
        raise UserError(
            f"all {len(rows)} pairs of the {split} split have the score {scores.pop():g}",
            where=f"tasks.{name}",
            instead="pairs of different similarity",
        )
