"""Classes of a classifier checkpoint, by the names in its `config.json`, and the order of its outputs. No torch."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.core.files import read_json

_FORM = 'id2label: {"0": "negative", "1": "positive"}'
_MOST = 100_000  # classes; a larger number is a mistake in the file
_UNNAMED = re.compile(r"(LABEL_)?\d+")  # what transformers writes if nobody named the classes; or their numbers


def class_names(folder: Path) -> list[str] | None:
    """Returns the class names of a classifier in the order of its outputs; None for a checkpoint without classes.

    Raises:
        UserError: `id2label` or `architectures` of its `config.json` have another type than transformers expects, or
            the classes are not numbered from 0.
    """
    where = str(folder / "config.json")
    try:
        config = read_json(folder / "config.json")
    except UserError:
        return None  # reported when the model is loaded
    if not isinstance(config, dict):
        return None
    kinds, stored = config.get("architectures") or (), config.get("id2label")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if stored is not None and not (isinstance(stored, dict) and all(_number(key) is not None for key in stored)):
        what = f"id2label is {_described(stored)}, where transformers expects an object of class numbers and names"
        raise UserError(what, where=where, instead=_FORM)
    if not isinstance(kinds, list | tuple) or not all(isinstance(kind, str) for kind in kinds):
        what = f"architectures is {_described(kinds)}, where transformers expects a list of class names"
        raise UserError(what, where=where, instead='architectures: ["BertForSequenceClassification"]')
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        return None
    if not stored:
        count = config.get("num_labels", 2)
        return [f"LABEL_{number}" for number in range(min(count, _MOST) if isinstance(count, int) else 2)]
    names = {_number(key): str(name) for key, name in stored.items()}
    if names.keys() != set(range(len(stored))):
        numbers = ", ".join(map(str, stored))
        raise UserError(f"id2label numbers its classes {numbers}, not from 0 upwards", where=where, instead=_FORM)
    return [names[number] for number in range(len(names))]


def output_order(folder: Path, labels: Sequence[str]) -> list[int] | None:
    """Returns the output of a checkpoint's classifier for each class of a task, by name without regard to case.

    Args:
        folder: The checkpoint folder.
        labels: The task's class names in the order of the class numbers.

    Returns:
        None where names do not show the order, so that the outputs are taken in the order of the labels: the classes
        have other names, numbers or no names, or the checkpoint has no classifier.

    Raises:
        UserError: The classifier has another number of classes, or some names in common with the task but not all; or
            see `class_names`.
    """
    names = class_names(folder)
    if names is None:
        return None
    if names == list(labels):
        return list(range(len(names)))
    own, wanted = [_plain(name) for name in names], [_plain(label) for label in labels]
    named = not all(map(_UNNAMED.fullmatch, names)) or not all(map(_UNNAMED.fullmatch, labels))
    if sorted(own) == sorted(wanted) and len(set(own)) == len(own):
        return [own.index(label) for label in wanted]
    if len(own) != len(wanted) or (named and set(own) & set(wanted)):
        what = f"this classifier's classes are {', '.join(names)}; the task's are {', '.join(labels)}"
        raise UserError(what, where=str(folder), instead=f"labels: [{', '.join(names)}], or a model of this task")
    return None


def _plain(name: str) -> str:
    return name.strip().casefold()


def _number(key: str) -> int | None:
    """Returns the class number that a key of `id2label` is; None: it is no number."""
    try:
        return int(key)
    except ValueError:
        return None


def _described(value: Any) -> str:
    kinds = {list: "a list", dict: "an object with other keys", str: "a text", bool: "a truth value"}
    return kinds.get(type(value), "a number")
