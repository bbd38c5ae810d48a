"""Candidates of queries: how they are stored, their examples, and their ranking. Loads no torch.

Whatever the form of a file, a row is read as one pair of a query and a passage with a label.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import Self

from toolkit.core.errors import UserError
from toolkit.data.kinds.bm25 import BM25
from toolkit.data.kinds.examples import Examples
from toolkit.data.kinds.retrieval import is_judged, ndcg, read_retrieval, reciprocal_rank
from toolkit.data.labels import number_of
from toolkit.data.tables import Record, read_rows, text
from toolkit.data.tables.columns import require_columns
from toolkit.recipe import Task
from toolkit.recipe.kinds.reranking import as_pairs as as_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from toolkit.data.task_rows import TaskRow

_SHOWN = 60  # characters of a query in an error


def _mean(measure: Any) -> Any:
    """Returns a metric: the mean over the queries of a measure of the labels in the order of the scores."""

    def of(truth: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> float:
        return float(np.mean([measure(_ranked(*one), one[0]) for one in zip(truth, scores, strict=True)]))

    return of


def _ranked(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns labels by falling score; of equal scores the lowest label comes first, so that no order of rows gains."""
    order: np.ndarray = labels[np.lexsort((labels, -scores))]
    return order


@dataclass(frozen=True)
class Candidates(Examples):
    """Reranking: one example per pair of query and passage; labels are numbers, float32.

    Attributes:
        queries: Number of each example's query, [n]; equal numbers follow each other.
        group: Number of pairs of a query that are trained together.
        loss: Loss of the labels: `bce` or `mse`.
    """

    queries: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    group: int = 1
    loss: str = "bce"
    kind = "reranking"
    texts_repeat = True
    metrics = {  # noqa: RUF012
        "ndcg@10": _mean(ndcg),
        "mrr@10": _mean(lambda found, labels: reciprocal_rank(found)),
    }

    def __getitem__(self, index: int) -> dict[str, Any]:
        item, label = {name: ids[index] for name, ids in self.inputs.items()}, self.labels[index].item()
        return {**item, "scores" if self.loss == "mse" else "labels": label}

    @property
    def groups(self) -> np.ndarray:
        """Numbers of the examples that a batch of the training does not separate, [groups, group].

        With more than one, each candidate above the lowest of its query is grouped with others that are less relevant.
        These take turns in a random order that is always the same: in that of the rows the first, which are often those
        that a search finds best, would come more often than the others.
        """
        if self.group == 1:
            return super().groups
        rows, others = [], np.arange(self.group - 1)
        for query, numbers in enumerate(self._by_query(np.arange(len(self)))):
            numbers = np.random.default_rng(query).permutation(numbers)
            labels = self.labels[numbers]
            for turn, place in enumerate(np.flatnonzero(labels > labels.min())):
                below = numbers[labels < labels[place]]
                rows.append([numbers[place], *below[(turn * len(others) + others) % len(below)]])
        return np.array(rows, dtype=np.int64).reshape(-1, self.group)

    @property
    def truth(self) -> list[np.ndarray]:
        """The labels of the candidates of each query."""
        return self._by_query(self.labels)

    @classmethod
    def targets(cls, rows: "Sequence[TaskRow]", labels: Sequence[str]) -> np.ndarray:
        return np.array([number_of(row.label, row.where) for row in rows], dtype=np.float32)

    @classmethod
    def encode(
        cls, rows: "Sequence[TaskRow]", labels: Sequence[str], section: Task, tokenizer: "PreTrainedTokenizerFast"
    ) -> Self:
        queries = np.array([row.query for row in rows], dtype=np.int64)
        found = super().encode(rows, labels, section, tokenizer)
        return replace(found, queries=queries, group=section.ranking.group, loss=section.ranking.loss)

    def predicted(self, logits: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the scores of the candidates of each query, for logits [n, 1]."""
        return self._by_query(np.asarray(logits)[:, 0])

    def _by_query(self, values: np.ndarray) -> list[np.ndarray]:
        return np.split(values, np.flatnonzero(np.diff(self.queries)) + 1) if len(values) else []


def candidate_rows(path: Path, columns: Sequence[str], section: Task) -> Iterator[tuple[str, Record]]:
    """Yields the pairs of a task's file as rows with the columns of `as_pairs(section)`.

    Args:
        path: A table of pairs or of queries with positives and negatives, or judgements in BEIR's layout.
        columns: Names of the columns that the rows must have.
        section: The task's section.

    Raises:
        UserError: A file is missing or damaged, or a row has no positive or no negative passage.
    """
    pairs = as_pairs(section)
    filters = {column: values for column, values in section.rows.items() if column not in section.columns[1:]}
    query, passage, label = *pairs.columns, pairs.label or ""
    if is_judged(path):
        for where, *values in _judged_pairs(path, section):
            row = dict(zip((query, passage, label), values, strict=True))
            require_columns([name for name in columns if name not in section.columns], row, where)
            yield where, row
        return
    for where, row in read_rows(path, columns):
        if section.label is not None:
            yield where, row
            continue
        if any(text(row[column]) not in values for column, values in filters.items()):
            continue  # the caller selects rows, too, but a row that is left out need not be complete
        for value, names, what in ((1.0, section.columns[1:2], "positive"), (0.0, section.columns[2:], "negative")):
            passages = [found for name in names for found in _as_list(row[name])]
            if not passages:
                raise UserError(f"the query has no {what} passages", where=where, instead="one or more in each row")
            for found in passages:
                yield where, row | {passage: found, label: value}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _judged_pairs(path: Path, section: Task) -> Iterator[tuple[str, str, str, float]]:
    """Yields the relevant documents of each query and the best others by BM25: place, query, document, label.

    A label is the grade as a fraction of the highest one; nDCG is the same for both.
    """
    wanted = section.rows.get(section.columns[0])
    found = read_retrieval(path.stem, str(path), drop_empty=section.drop_empty, queries=wanted)
    judged: dict[str, dict[int, float]] = {}  # several ids may have the same text: then the higher grade is kept
    for query, grades in zip(found.queries, found.relevant, strict=True):
        known = judged.setdefault(query, {})
        known |= {place: max(grade, known.get(place, grade)) for place, grade in grades.items()}
    if not judged:
        raise UserError("no query with a text is judged", where=str(path), instead="judgements of queries with texts")
    highest = max(grade for grades in judged.values() for grade in grades.values())
    index = BM25(found.documents)
    for number, (query, grades) in enumerate(judged.items(), start=1):
        count = section.ranking.bm25
        others = [place for place in index.best(query, count + len(grades)) if place not in grades]
        for place in (*grades, *others[:count]):
            yield f"{path}, query {number}", query, found.documents[place], grades.get(place, 0.0) / highest


def require_label(label: Any, section: Task, where: str) -> float:
    """Returns the label of a pair as a number.

    Raises:
        UserError: It is not a number, or with the loss `bce` not between 0 and 1.
    """
    number = number_of(label, where)
    if section.ranking.loss == "bce" and not 0 <= number <= 1:
        what = f"the label {number:g} is not between 0 and 1"
        raise UserError(what, where=where, instead="a number from 0 to 1, or `ranking: {loss: mse}` for scores")
    return number


def by_query(rows: "Sequence[TaskRow]", first: int = 0) -> "list[TaskRow]":
    """Returns rows with those of each query following each other, and its number.

    Args:
        rows: Rows of a split.
        first: Number of the first query.
    """
    found: dict[str, list[TaskRow]] = {}
    for row in rows:
        found.setdefault(row.texts[0], []).append(row)
    return [replace(row, query=number) for number, part in enumerate(found.values(), first) for row in part]


def require_rankable(rows: "Sequence[TaskRow]") -> None:
    """Rejects a query without relevant passages, and one whose passages are all equally relevant.

    Raises:
        UserError: There is one; the message names its first row.
    """
    labels: dict[int | None, list[float]] = {}
    first: Mapping[int | None, TaskRow] = {row.query: row for row in reversed(rows)}
    for row in rows:
        labels.setdefault(row.query, []).append(row.label)
    for query, found in labels.items():
        if max(found) > 0 and min(found) < max(found):
            continue
        shown = first[query].texts[0]
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        what = "no relevant passage" if max(found) <= 0 else f"{len(found)} passage(s), all with the label {found[0]:g}"
        raise UserError(
            f"the query {shown!r} has {what}",
            where=first[query].where,
            instead="relevant passages (above 0) and others, or leave the query out",
        )
