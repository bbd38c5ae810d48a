"""What a recipe may say about an embedding task: forms of rows, metrics, and losses that its rows allow."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from toolkit.recipe.fields import wrong

if TYPE_CHECKING:
    from toolkit.recipe.task import Task

Pooling = Literal["mean", "cls"]

_SCORED = ("spearman_cosine", "pearson_cosine")  # metrics of pairs with a score
_KEYS = ("dev_columns", "dev_label", "retrieval", "pooling", "normalize", "prompts", "default_prompt")
_FORMS = "one column of texts, two of pairs (with or without a score), or three of triplets"


def default_metrics(values: Mapping[str, Any]) -> list[str]:
    """Returns the metrics of a task that names none: those that its dev rows allow, the deciding one first.

    Args:
        values: The task's keys, before validation.
    """
    own = values.get("dev_columns") or values.get("dev_label")
    columns = values.get("dev_columns") or values.get("columns")
    scored = values.get("dev_label") if own else values.get("label")
    first = ["spearman_cosine"] if scored else []
    if isinstance(columns, list | tuple) and len(columns) == 3:
        first = ["cosine_accuracy"]
    return [*first, "dense_cosine", "dense_cosine_p1"]


def require_fitting_keys(task: "Task") -> None:
    """Rejects keys that only an embedding task has, and an embedding task whose keys do not fit each other.

    Raises:
        PydanticCustomError: A key does not fit the others.
    """
    if task.kind != "embedding":
        for key in _KEYS:
            if getattr(task, key) not in (None, (), {}):
                raise wrong(f"has no effect: only embedding tasks have `{key}`", key, instead="remove the key")
        if task.label is None and task.kind not in ("multi_label", "reranking"):  # which have other forms
            raise wrong("needs the column of the labels", "label", instead="e.g. label")
        return
    if task.prompts is not None and task.default_prompt not in (None, *task.prompts):
        instead = " or ".join(task.prompts) or "remove the key"
        raise wrong(f"{task.default_prompt!r} is none of the prompts", "default_prompt", instead=instead)
    if task.hold_out and task.evaluated is not task:
        raise wrong("the rows that hold_out sets aside have the columns of train", "hold_out", instead="dev: <file>")
    for part, columns, label in (
        (task, "columns", "label"),
        (task.evaluated, "dev_columns" if task.dev_columns else "columns", "dev_label" if task.dev_label else "label"),
    ):
        if len(part.columns) != len(set(part.columns)) or part.label in part.columns:
            raise wrong("a column cannot be used twice", columns, instead=_FORMS)
        if part.label is not None and len(part.columns) != 2:
            what = f"a score is that of a pair, and a row has {len(part.columns)} text(s)"
            raise wrong(what, label, instead="two columns, or remove the key")
    for number, metric in enumerate(task.metrics):
        if metric in _SCORED and task.evaluated.label is None:
            what, instead = f"{metric} compares cosines with scores, and dev has none", "dev_label: <column>"
        elif metric == "cosine_accuracy" and len(task.evaluated.columns) != 3:
            what, instead = f"{metric} is that of triplets, and dev has none", "dense_cosine"
        else:
            continue
        raise wrong(what, "metrics", number, instead=instead)
