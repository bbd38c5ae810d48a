"""Labels of tasks: a class's name or number, or a number, as files of every format write them. Loads no torch."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.core.errors import UserError


def class_number(label: Any, where: str, labels: Sequence[str]) -> int:
    """A label is a class name; or a class number, where no class has a number for a name. false is 0, and true is 1."""
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
        instead=f"one of {', '.join(labels)}{range_} (`rows` leaves rows out)",
    )


def label_name(label: Any) -> str:
    """A label as the name of a class; white space around it is nobody's intention."""
    return str(label).strip()


def label_number(label: Any) -> str:
    """The same; but 1 for 1.0, which tools write for a column of whole numbers as soon as one of them is missing."""
    name = label_name(label)
    return name.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", name) else name


def is_number(text: str) -> bool:
    """Whether a label is a whole number, as `label_number` writes it."""
    return text.removeprefix("-").isdecimal()


def number_of(label: Any, where: str) -> float:
    """The number of a regression task's row.

    Raises:
        UserError: The label is not a finite float32; the message names the row.
    """
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) <= np.finfo(np.float32).max:  # NaN is not either
        raise UserError(f"the label {label!r} is not a number", where=where, instead="e.g. 3.8")
    return number
