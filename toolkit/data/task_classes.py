"""Classes of a task's rows: which there are, and the splits that they occur in. Loads no torch."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.core.errors import UserError
from toolkit.core.yaml_document import dump_flow
from toolkit.data.kinds.multi_label import require_class_rows
from toolkit.data.kinds.token_classification import entity_counts
from toolkit.data.labels import class_number, is_number, label_name, label_number
from toolkit.recipe import KINDS, Task
from toolkit.recipe.kinds.token_classification import tags_of, types_of

if TYPE_CHECKING:
    from toolkit.data.task_rows import TaskRow

_FEW_CLASSES = 10  # up to this number, classes are listed by name


def class_labels(train: "Sequence[TaskRow]", section: Task) -> tuple[str, ...]:
    """Returns the class names, from the recipe or else from the train split; empty for a task without classes."""
    if not KINDS[section.kind].has_classes:
        return ()
    return section.classes or _labels_found(train, section)


def _labels_found(rows: "Iterable[TaskRow]", section: Task) -> tuple[str, ...]:
    """Returns the distinct labels, sorted as numbers if all are numbers, else by name; or the tags of all types."""
    if KINDS[section.kind].tagged:
        return tags_of(sorted({kind for row in rows for kind in row.label.types}))
    labels = [label for row in rows for label in _stored(row)]
    found, numbers = ({form(label) for label in labels} for form in (label_name, label_number))
    if len(found) > max(2, len(labels) // 2):
        raise UserError(
            f"{len(found)} different values in {len(labels)} rows: too many to be classes",
            where=f"{section.train}, column {section.label!r}",
            instead="a column with the name or number of a class",
        )
    return tuple(sorted(numbers, key=int) if all(map(is_number, numbers)) else sorted(found))


def _stored(row: "TaskRow") -> tuple[Any, ...]:
    return row.label if isinstance(row.label, tuple) else (row.label,)


def _classes_of(row: "TaskRow", labels: Sequence[str], section: Task) -> frozenset[str]:
    """Returns the names of a row's classes: one, or with several classes any number; or the types of its entities.

    Raises:
        UserError: A class is not one of the task's.
    """
    if KINDS[section.kind].tagged:
        return frozenset(row.label.types)
    return frozenset(labels[class_number(label, row.where, labels)] for label in _stored(row))


def summary_of(labels: Sequence[str], numbers: Any, section: Task) -> str:
    """Summary of the classes and their numbers of rows, or of the types of entities and how many there are of each."""
    if KINDS[section.kind].tagged:
        found = entity_counts(labels, numbers)
        named = ", ".join(f"{kind} ({n:,})" for kind, n in found.items()) if len(found) <= _FEW_CLASSES else ""
        return f"entities {named}" if named else f"{sum(found.values()):,} entities of {len(found):,} types"
    if len(labels) > _FEW_CLASSES:
        return f"{len(labels):,} classes"
    counts = np.bincount(numbers, minlength=len(labels)) if numbers.ndim == 1 else numbers.sum(axis=0).astype(int)
    return "classes " + ", ".join(f"{label} ({n:,})" for label, n in zip(labels, counts, strict=True))


def require_classes(name: str, split: str, rows: "Sequence[TaskRow]", labels: Sequence[str], section: Task) -> None:
    """Rejects a split that can neither train nor evaluate: with a single class, or without an entity.

    With several classes a row, see `require_class_rows`.
    """
    found = [_classes_of(row, labels, section) for row in rows]
    if KINDS[section.kind].several_classes:
        return require_class_rows(name, split, found, labels)
    names = frozenset().union(*found)
    if KINDS[section.kind].tagged and not names:
        what = f"none of the {len(rows):,} rows of the {split} split has an entity"
        raise UserError(what, where=f"tasks.{name}", instead="a split with entities")
    if len(names) == 1 and not KINDS[section.kind].tagged:
        raise UserError(
            f"all {len(rows)} rows of the {split} split have the label {next(iter(names))!r}",
            where=f"tasks.{name}",
            instead="a split with two classes or more",
        )


def require_evaluated(
    train: "Sequence[TaskRow]", measured: "Iterable[TaskRow]", labels: Sequence[str], section: Task
) -> None:
    """Rejects a class that occurs in no evaluation split: a typo in a label would create one unnoticed."""
    known = frozenset().union(*(_classes_of(row, labels, section) for row in measured))
    strays = [(row, name) for row in train for name in sorted(_classes_of(row, labels, section) - known)]
    if strays:
        row, name = strays[0]
        count = sum(other == name for _, other in strays)
        names = types_of(labels) if KINDS[section.kind].tagged else labels
        named = dump_flow(list(names)) if len(names) <= _FEW_CLASSES else f"[…], with all {len(names):,} names,"
        raise UserError(
            f"label {name!r} occurs in {count:,} training row{'s' * (count > 1)} but in no evaluation split; "
            "is it a typo?",
            where=row.where,
            instead=f"one of the other classes; or, if it is intended, `labels: {named}`",
        )
