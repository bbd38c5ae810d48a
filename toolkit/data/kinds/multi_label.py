"""Rows with several classes at once, or none: how they are stored, and their examples. Loads no torch."""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import Self

from toolkit.core.errors import UserError
from toolkit.data import metrics
from toolkit.data.kinds.examples import Examples
from toolkit.data.labels import class_number
from toolkit.data.tables.columns import MissingColumnError, Record
from toolkit.recipe import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from toolkit.data.task_rows import TaskRow

_LONGEST_NUMBER = 100  # digits of a class number; Python itself parses at most a few thousand
_INDICATORS = {"0": False, "1": True, "false": False, "true": True}


@dataclass(frozen=True)
class LabelSets(Examples):
    """Multi-label classification: labels are 0 or 1 for each class, [n, C] float32.

    Attributes:
        threshold: Probability from which a class is predicted.
    """

    threshold: float = 0.5
    kind = "multi_label"
    metrics = {  # noqa: RUF012
        "f1_micro": metrics.micro_f1_of_sets,
        "f1_macro": metrics.macro_f1_of_sets,
        "average_precision": metrics.average_precision,
    }

    @classmethod
    def targets(cls, rows: "Sequence[TaskRow]", labels: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(rows), len(labels)), dtype=np.float32)
        for number, row in enumerate(rows):
            found[number, [class_number(label, row.where, labels) for label in row.label]] = 1
        return found

    @classmethod
    def encode(
        cls, rows: "Sequence[TaskRow]", labels: Sequence[str], section: Task, tokenizer: "PreTrainedTokenizerFast"
    ) -> Self:
        return replace(super().encode(rows, labels, section, tokenizer), threshold=section.threshold)

    def predicted(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """Returns how far each logit is above that of the threshold, [n, C]: classes of at least 0 are predicted."""
        return np.asarray(logits, dtype=np.float64) - math.log(self.threshold / (1 - self.threshold))


def with_classes(rows: Iterator[tuple[str, Record]], section: Task) -> Iterator[tuple[str, Record]]:
    """Yields the rows of a file; an error about a column of classes says which keys name them.

    Raises:
        UserError: The file is damaged, or lacks a column.
    """
    try:
        yield from rows
    except MissingColumnError as error:
        if error.column not in (section.label, *section.label_columns):
            raise
        key = "label_columns" if section.label_columns else "label"
        raise UserError(
            f"no column {error.column!r}, which `{key}` names; the file has {', '.join(error.names)}",
            where=error.where,
            instead="label_columns: [<a column of 0 and 1 for each class>], or label: <the column of a row's classes>",
        ) from None


def stored_classes(row: Mapping[str, Any], section: Task, where: str) -> tuple[Any, ...]:
    """Returns the classes of a row as they are stored: names or numbers; empty for a row without any.

    Args:
        row: Column -> value.
        section: The task's section, with `label` or `label_columns`.
        where: Location of the row, for errors.

    Raises:
        UserError: A value is missing, no list of names, or neither 0 nor 1.
    """
    if section.label is None:
        return tuple(column for column in section.label_columns if _indicator(row[column], column, where))
    value = row[section.label]
    if isinstance(value, list | tuple):
        found = tuple(value)
    elif isinstance(value, str) and not re.fullmatch(r"\s*\[.*\]\s*", value, re.DOTALL):
        found = tuple(part.strip() for part in value.split(section.separator)) if value.strip() else ()
    else:
        what = "is missing" if value is None or value != value else f"{value!r} is not a list of classes"
        raise UserError(
            f"the label in column {section.label!r} {what}",
            where=where,
            instead=f"a list, or names in a text: a{section.separator}b; for no class, an empty one",
        )
    for label in found:
        _require_label(label, section.label, where)
    return found


def require_class_rows(name: str, split: str, rows: Sequence[Collection[str]], labels: Sequence[str]) -> None:
    """Rejects a split in which no class occurs, and a class that no training row has.

    Args:
        name: Name of the task.
        split: Name of the split.
        rows: The class names of each of its rows.
        labels: All class names.

    Raises:
        UserError: The task has a single class, the split has none, or training rows lack one.
    """
    found = {label for row in rows for label in row}
    missing = [label for label in labels if label not in found]
    if len(labels) < 2:
        what, instead = f"{len(labels)} class in all rows", "rows with two classes or more"
    elif not found:
        what, instead = f"no row of the {split} split has a class", "a split in which classes occur"
    elif missing and split == "train":
        what = f"no training row has the class {missing[0]!r}"
        instead = "rows that have it, or `labels` without it"
    else:
        return
    raise UserError(what, where=f"tasks.{name}", instead=instead)


def _indicator(value: Any, column: str, where: str) -> bool:
    """Returns whether a row has the class of a column, which is 0 or 1 in any form."""
    text = str(value).strip().lower()
    found = _INDICATORS.get(text.removesuffix(".0"))
    if found is None:
        raise UserError(f"column {column!r} has {value!r}, which is neither 0 nor 1", where=where, instead="0 or 1")
    return found


def _require_label(label: Any, column: str, where: str) -> None:
    """Rejects what is no name and no number of a class."""
    what = ""
    if not isinstance(label, str | Number) or label != label:
        what = f"a list with {label!r}, which is no class"
    elif not str(label).strip():
        what = "an empty name between two separators"
    elif str(label).strip().isdecimal() and len(str(label).strip()) > _LONGEST_NUMBER:
        what = f"a number of {len(str(label).strip()):,} digits"
    elif isinstance(label, str) and label.encode("utf-8", "replace").decode() != label:
        what = "an unpaired surrogate, half a character"
    if what:
        raise UserError(
            f"the label in column {column!r} has {what}", where=where, instead="names or numbers of classes"
        )
