"""What a recipe may say about a token-classification task: scheme of the tags, labels, and overlap of the windows.

Models have the tags of IOB2, whatever the scheme of a file: O, then B-X and I-X for each type X of entity.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from toolkit.recipe.fields import wrong

if TYPE_CHECKING:
    from toolkit.recipe.task import Task

Scheme = Literal["IOB1", "IOB2", "IOBES", "BILOU"]

OUTSIDE = "O"
_STRIDE = 16  # tokens; the default of `windows.stride`
_PREFIXES = "BIESLU"


def split_tag(tag: str) -> tuple[str, str] | None:
    """Returns prefix and type of a tag such as B-PER, (O, "") for O, and None for any other text."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, kind = tag.partition("-")
    known = len(prefix) == 1 and prefix in _PREFIXES and dash and kind.strip() and kind.isprintable()
    return (prefix, kind) if known else None


def types_of(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the types of entities of a recipe's `labels`, which are types, or all tags of a scheme (with O)."""
    if OUTSIDE not in labels:
        return tuple(labels)
    tags = [found for label in labels if (found := split_tag(label)) is not None]
    return tuple(dict.fromkeys(kind for prefix, kind in tags if prefix != OUTSIDE))


def tags_of(types: Sequence[str]) -> tuple[str, ...]:
    """Returns the tags of a model for some types of entities, in the order of their numbers."""
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a task's keys before validation, with this kind's own defaults."""
    windows = values.get("windows", {})
    if isinstance(windows, dict):
        windows = {"stride": _STRIDE} | windows
    return {"columns": ["tokens"], "label": "tags"} | dict(values) | {"windows": windows}


def require_fitting_keys(task: "Task") -> None:
    """Rejects keys that only a token-classification task has, and such a task whose keys do not fit each other.

    Raises:
        PydanticCustomError: A key does not fit the others.
    """
    if task.kind != "token_classification":
        if task.scheme is not None:
            what = "has no effect: only token classification has tags"
            raise wrong(what, "scheme", instead="remove the key")
        return
    if task.drop_unanswerable:
        what = "has no effect on a token classification task"
        raise wrong(what, "drop_unanswerable", instead="remove the key")
    for key, field in type(task.windows).model_fields.items():
        if key != "stride" and getattr(task.windows, key) != field.default:
            what = "has no effect: only `stride` sets the windows of token classification"
            raise wrong(what, "windows", key, instead="remove the key")
    if task.max_seq_length <= task.least_length:
        what = f"too short for an overlap of {task.windows.stride} tokens: windows would not advance"
        raise wrong(what, "max_seq_length", instead=f"more than {task.least_length}, or a smaller windows.stride")
    if OUTSIDE in task.labels:
        for number, label in enumerate(task.labels):
            if split_tag(label) is None:
                what = f"{label!r} is not a tag, and the labels are tags, as one of them is O"
                raise wrong(what, "labels", number, instead="e.g. B-PER; or types of entities alone, without O")
        if len(task.labels) == 1:
            raise wrong("has no type of entity", "labels", instead="e.g. [PER, LOC]")
    elif task.labels and all(split_tag(label) for label in task.labels):
        what = "has no O: these seem to be tags"
        raise wrong(what, "labels", instead=f"[O, {', '.join(task.labels)}], or types of entities, e.g. [PER, LOC]")
