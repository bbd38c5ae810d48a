"""Tokenised examples of a task, one class per kind: reads labels, encodes rows, turns logits into predictions.

CONTRIBUTING.md says what a new kind needs. Loads no torch.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from toolkit.data import metrics
from toolkit.data.kinds.embedding import Texts
from toolkit.data.kinds.examples import Examples
from toolkit.data.kinds.multi_label import LabelSets
from toolkit.data.kinds.reranking import Candidates
from toolkit.data.kinds.token_classification import Tokens
from toolkit.data.labels import class_number, number_of
from toolkit.data.question_answering import Windows
from toolkit.recipe import Kind

if TYPE_CHECKING:
    from toolkit.data.task_rows import TaskRow


@dataclass(frozen=True)
class ClassExamples(Examples):
    """Classification: labels are class numbers, int64."""

    kind = "classification"
    metrics = {"accuracy": metrics.accuracy, "f1": metrics.f1, "matthews_correlation": metrics.matthews}  # noqa: RUF012

    @classmethod
    def targets(cls, rows: "Sequence[TaskRow]", labels: Sequence[str]) -> np.ndarray:
        return np.array([class_number(row.label, row.where, labels) for row in rows], dtype=np.int64)

    def predicted(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """Returns class numbers, [n]."""
        return np.asarray(logits).argmax(axis=1)


@dataclass(frozen=True)
class NumberExamples(Examples):
    """Regression: labels are numbers, float32."""

    kind = "regression"
    metrics = {"pearson": metrics.pearson, "spearman": metrics.spearman}  # noqa: RUF012

    @classmethod
    def targets(cls, rows: "Sequence[TaskRow]", labels: Sequence[str]) -> np.ndarray:
        return np.array([number_of(row.label, row.where) for row in rows], dtype=np.float32)

    def predicted(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """Returns numbers, [n]."""
        numbers: np.ndarray = np.asarray(logits)[:, 0]
        return numbers


Split = Examples | Windows | Texts | Tokens
EXAMPLES: dict[Kind, type[Examples] | type[Windows] | type[Texts] | type[Tokens]] = {
    "classification": ClassExamples,
    "regression": NumberExamples,
    "question_answering": Windows,
    "embedding": Texts,
    "multi_label": LabelSets,
    "reranking": Candidates,
    "token_classification": Tokens,
}


def score(
    kind: Kind, names: Sequence[str], truth: metrics.Answers, predicted: metrics.Answers, classes: int = 2
) -> dict[str, float]:
    """Computes metrics over all examples.

    Args:
        kind: The task's kind: classification (class numbers), regression (numbers), question_answering (predicted: a
            text; truth: all correct texts) or token_classification (numbers of a sentence's tags).
        names: The metrics to compute, of those that `recipe.task.KINDS` lists for the kind.
        truth: The correct answers, [n].
        predicted: The predictions, [n].
        classes: Number of the task's classes, whether or not all of them occur here. F1 is that of class 1 for two
            classes (as in GLUE), else the mean over the classes that occur.
    """
    assert len(truth) == len(predicted) > 0
    measures = EXAMPLES[kind].metrics | ({"f1": metrics.mean_f1} if kind == "classification" and classes > 2 else {})
    return {name: float(measures[name](truth, predicted)) for name in names}


def fingerprint(examples: Split) -> str:
    """Returns a hash of all token ids of all inputs, that is of everything a model reads."""
    digest = hashlib.sha256()
    for name in sorted(examples.inputs):
        ids: Sequence[Sequence[int]] = examples.inputs[name]
        digest.update(name.encode())
        digest.update(np.fromiter(map(len, ids), dtype=np.int64, count=len(ids)).tobytes())
        digest.update(np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int32).tobytes())
    return digest.hexdigest()
