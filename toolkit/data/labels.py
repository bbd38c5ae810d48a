"""Parsing of task labels: class names, class numbers and regression targets. Loads no torch."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.core.errors import UserError


def class_number(label: Any, where: str, labels: Sequence[str]) -> int:
    """Returns the class number of a label: a class name, or a class number if no class name is a number.

    Args:
        label: The label as read from a file; false is 0, and true is 1.
        where: Location of the row, for the error.
        labels: Class names in the order of the class numbers.

    Raises:
        UserError: The label is not one of the task's.
    """
    name = label_name(label)
    number = str(int(label)) if isinstance(label, bool) else label_number(label)
    for known in (name, number):
        if known in labels:
            return labels.index(known)
    numbered = not any(map(is_number, labels))
    if numbered and number.isdecimal() and int(number) < len(labels):
        return int(number)
    range_ = f", or 0 to {len(labels) - 1}" if numbered else ""
    raise UserError(
        f"the label {name!r} is not one of the task's",
        where=where,
        instead=f"one of {', '.join(labels)}{range_} (`rows` can exclude rows)",
    )


def label_name(label: Any) -> str:
    """Returns a label as a class name, without surrounding white space."""
    return str(label).strip()


def label_number(label: Any) -> str:
    """Returns a label as a class number: 1 for 1.0, which tools write for a column of integers with missing values."""
    name = label_name(label)
    return name.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", name) else name


def is_number(text: str) -> bool:
    """Whether a label, as returned by `label_number`, is an integer."""
    return text.removeprefix("-").isdecimal()


def number_of(label: Any, where: str) -> float:
    """Returns the number of a regression task's row.

    Raises:
        UserError: The label is not a finite float32; the message names the row.
    """
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) <= np.finfo(np.float32).max:  # also true for NaN
        raise UserError(f"the label {label!r} is not a number", where=where, instead="e.g. 3.8")
    return number
