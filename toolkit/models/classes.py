"""Classes of a classifier checkpoint, by the names in its `config.json`, and the order of its outputs. No torch."""

import re
from collections.abc import Sequence
from pathlib import Path

from toolkit.core.errors import UserError
from toolkit.models.config import CONFIG, read_config

_UNNAMED = re.compile(r"(LABEL_)?\d+")  # what transformers writes if nobody named the classes; or their numbers


def class_names(folder: Path) -> list[str] | None:
    """Returns the class names of a classifier in the order of its outputs; None for a checkpoint without classes.

    Raises:
        UserError: Its `config.json` cannot be read or has a value that no model has, or the classes are not numbered
            from 0.
    """
    config = read_config(folder)
    kinds, stored = config.get("architectures") or [], config.get("id2label")
    if not any(kind.endswith(("ForSequenceClassification", "ForTokenClassification")) for kind in kinds):
        return None
    if not stored:
        return [f"LABEL_{number}" for number in range(config.get("num_labels") or 2)]
    names = {int(key): name for key, name in stored.items()}
    if names.keys() != set(range(len(stored))):
        what = f"id2label numbers its classes {', '.join(stored)}, not from 0 upwards"
        instead = 'id2label: {"0": "negative", "1": "positive"}'
        raise UserError(what, where=str(folder / CONFIG), instead=instead)
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
