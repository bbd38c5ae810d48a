"""What a recipe may say about a reranking task: forms of rows, losses, and candidates of a query."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from toolkit.recipe.fields import Count, Position, Section, wrong

if TYPE_CHECKING:
    from toolkit.recipe.task import Task

MOST_COLUMNS = 32  # query, positives, and columns of negatives
LABEL = "label"  # column of the label of a pair that was made from a row with positives and negatives
_FORMS = "[query, passage] with a label; or [query, positives, negatives, …] without one"


class Ranking(Section):
    """Reranking: candidates of a query, and how their labels are learnt."""

    loss: Literal["bce", "mse"] = Field(
        "bce",
        description="bce: the label, from 0 to 1, is a probability (sigmoid); mse: a score on any scale",
    )
    group: Count = Field(
        1,
        description="pairs of a query that are trained together: one, and others that are less relevant; from 2 on, "
        "distillation compares their differences (MarginMSE) instead of single scores",
    )
    bm25: Position = Field(
        100,
        description="for files in BEIR's layout: best documents by BM25 that are candidates, beside the relevant ones",
    )


def fill_in(values: dict[str, Any]) -> None:
    """Fills in the columns of a task that names none.

    Args:
        values: The task's keys, before validation; changed in place.
    """
    columns = values.setdefault("columns", ["query", "passage"])
    if isinstance(columns, list | tuple) and len(columns) > 2:
        values.setdefault("label", None)


def require_fitting_keys(task: "Task") -> None:
    """Rejects keys that only a reranking task has, and a reranking task whose keys do not fit each other.

    Raises:
        PydanticCustomError: A key does not fit the others.
    """
    if task.kind != "reranking":
        if task.ranking != Ranking():
            key = next(iter(task.ranking.model_fields_set), "loss")
            raise wrong("has no effect: only reranking tasks have `ranking`", "ranking", key, instead="remove the key")
        return
    if len(task.columns) < 2 or len(set(task.columns)) < len(task.columns):
        raise wrong("needs a query and a passage", "columns", instead=_FORMS)
    if (task.label is None) != (len(task.columns) > 2):
        raise wrong("a label is that of one pair of query and passage", "label", instead=_FORMS)
    if task.hold_out and task.hold_out.column != task.columns[0]:
        what = "the candidates of a query must be in the same split"
        raise wrong(what, "hold_out", "column", instead=task.columns[0])


def as_pairs(task: "Task") -> "Task":
    """Returns a task as its rows are once positives and negatives are pairs of their own: query, passage, label."""
    if task.kind != "reranking" or task.label is not None:
        return task
    return task.model_copy(update={"columns": task.columns[:2], "label": LABEL})
