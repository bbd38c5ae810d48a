"""Classes of a task's rows: which there are, and the splits that they occur in. Loads no torch."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from toolkit.core.errors import UserError
from toolkit.core.yaml_document import dump_flow
from toolkit.data.labels import class_number, is_number, label_name, label_number
from toolkit.recipe import KINDS, Task

if TYPE_CHECKING:
    from toolkit.data.task_rows import TaskRow

_FEW_CLASSES = 10  # up to this number, classes are listed by name


def numbers_of(row: "TaskRow", labels: Sequence[str]) -> frozenset[int]:
    """Returns the class numbers of a row: one, or with several classes any number.

    Raises:
        UserError: A class is not one of the task's.
    """
    stored = row.label if isinstance(row.label, tuple) else (row.label,)
    return frozenset(class_number(label, row.where, labels) for label in stored)


def summary_of(labels: Sequence[str], numbers: np.ndarray) -> str:
    """Summary of the classes and their numbers of rows."""
    if len(labels) > _FEW_CLASSES:
        return f"{len(labels):,} classes"
    counts = np.bincount(numbers, minlength=len(labels)) if numbers.ndim == 1 else numbers.sum(axis=0).astype(int)
    return "classes " + ", ".join(f"{label} ({n:,})" for label, n in zip(labels, counts, strict=True))


def class_labels(train: "Sequence[TaskRow]", section: Task) -> tuple[str, ...]:
    """Returns the class names, from the recipe or else from the train split; empty for a task without classes."""
    if not KINDS[section.kind].has_classes:
        return ()
    return section.labels or _labels_found(train, section)


def _labels_found(rows: "Iterable[TaskRow]", section: Task) -> tuple[str, ...]:
    """Returns the distinct labels, sorted as numbers if all are numbers, else by name."""
    labels = [label for row in rows for label in (row.label if isinstance(row.label, tuple) else (row.label,))]
    found, numbers = ({form(label) for label in labels} for form in (label_name, label_number))
    if len(found) > max(2, len(labels) // 2):
        raise UserError(
            f"{len(found)} different values in {len(labels)} rows: too many to be classes",
            where=f"{section.train}, column {section.label!r}",
            instead="a column with the name or number of a class",
        )
    return tuple(sorted(numbers, key=int) if all(map(is_number, numbers)) else sorted(found))


def require_two_classes(name: str, split: str, rows: "Sequence[TaskRow]", labels: Sequence[str]) -> None:
    """Rejects a split with a single label, which can neither train nor evaluate a classifier."""
    numbers = {class_number(row.label, row.where, labels) for row in rows}
    if len(numbers) == 1:
        raise UserError(
            f"all {len(rows)} rows of the {split} split have the label {labels[numbers.pop()]!r}",
            where=f"tasks.{name}",
            instead="a split with two classes or more",
        )


def require_evaluated(train: "Sequence[TaskRow]", measured: "Iterable[TaskRow]", labels: Sequence[str]) -> None:
    """Rejects a class that occurs in no evaluation split: a typo in a label would create one unnoticed."""
    known = {number for row in measured for number in numbers_of(row, labels)}
    strays = [(row, number) for row in train for number in sorted(numbers_of(row, labels) - known)]
    if strays:
        row, number = strays[0]
        count = sum(other == number for _, other in strays)
        named = dump_flow(list(labels)) if len(labels) <= _FEW_CLASSES else f"[…], with all {len(labels):,} names,"
        raise UserError(
            f"label {labels[number]!r} occurs in {count:,} training row{'s' * (count > 1)} but in no evaluation split; "
            "is it a typo?",
            where=row.where,
            instead=f"one of the other classes; or, if it is intended, `labels: {named}`",
        )
