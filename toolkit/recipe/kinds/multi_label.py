"""What a recipe may say about a multi-label task: where the classes of a row are stored."""

from typing import TYPE_CHECKING, Any

from toolkit.recipe.fields import wrong

if TYPE_CHECKING:
    from toolkit.recipe.task import Task

_KEYS = {"label_columns": (), "separator": "|", "threshold": 0.5}


def fill_in(values: dict[str, Any]) -> None:
    """Names the classes of a task after `label_columns`, if it has them; they have no single label column.

    Args:
        values: The task's keys, before validation; changed in place.
    """
    columns = values.get("label_columns")
    if isinstance(columns, list | tuple) and columns:
        values.setdefault("label", None)
        values.setdefault("labels", columns)


def require_fitting_keys(task: "Task") -> None:
    """Rejects keys that only a multi-label task has, and a multi-label task whose keys do not fit each other.

    Raises:
        PydanticCustomError: A key does not fit the others.
    """
    if task.kind != "multi_label":
        for key, default in _KEYS.items():
            if getattr(task, key) != default:
                raise wrong(f"has no effect: only multi-label tasks have `{key}`", key, instead="remove the key")
        return
    if task.label is not None and task.label_columns:
        what = "has no effect beside `label_columns`, which have the classes of a row"
        raise wrong(what, "label", instead="one of the two keys")
    if task.label_columns and tuple(task.labels) != task.label_columns:
        raise wrong("the classes are named after `label_columns`", "labels", instead="remove the key")
    if overlap := [column for column in task.label_columns if column in task.columns]:
        raise wrong(f"{overlap[0]!r} is the column of a class and cannot be a text column", "columns")
    if any(task.separator in name for name in task.labels if not task.label_columns):
        what = f"a class has {task.separator!r} in its name, which separates names"
        raise wrong(what, "separator", instead="another text")
