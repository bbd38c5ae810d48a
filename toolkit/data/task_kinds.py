"""Tokenised examples of a task, one class per kind: reads labels, encodes rows, turns logits into predictions.

A new kind needs a class here (or in its own module, like `question_answering.Windows`), an entry in `EXAMPLES` and a
head in `models/task_heads.py`. Loads no torch.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import Self

from toolkit.data import metrics
from toolkit.data.kinds.embedding import Texts
from toolkit.data.kinds.token_classification import Tokens
from toolkit.data.labels import class_number, number_of
from toolkit.data.question_answering import Windows
from toolkit.recipe import KINDS, Kind, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from toolkit.data.task_rows import TaskRow


@dataclass(frozen=True)
class Examples:
    """Examples with one label each. Item i: {input_ids, attention_mask, (token_type_ids): list[int], labels: number}.

    Attributes:
        texts: The text of each example, or the two texts of a pair.
        inputs: Name of a model input -> one list of ids per example.
        labels: Label of each example, [n].
        kind: The task's kind.
        together: Number of neighbouring examples that a batch of the training does not separate.
        texts_repeat: Several rows may have the same text.
        examples_per_row: Average number of examples per row, for estimates without reading the data.
        metrics: Name of a metric -> (truth [n], predictions [n]) -> score.
    """

    texts: list[tuple[str, ...]]
    inputs: dict[str, list[list[int]]]
    labels: np.ndarray
    kind: ClassVar[Kind]
    together: ClassVar[int] = 1
    texts_repeat: ClassVar[bool] = False
    examples_per_row: ClassVar[float] = 1.0
    metrics: ClassVar[dict[str, Callable[[Any, Any], float]]]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**{name: ids[index] for name, ids in self.inputs.items()}, "labels": self.labels[index].item()}

    @property
    def per_token(self) -> bool:
        """Whether the logits of one example are [C, length], not [C]."""
        return KINDS[self.kind].per_token

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example, [n] int64."""
        return np.fromiter(map(len, self.inputs["input_ids"]), dtype=np.int64, count=len(self))

    @property
    def truth(self) -> np.ndarray:
        """The correct answers, [n]."""
        return self.labels

    @classmethod
    def targets(cls, rows: "Sequence[TaskRow]", labels: Sequence[str]) -> np.ndarray:
        """Returns the labels of rows, [n].

        Raises:
            UserError: A label is not one of the task's; the message names the row.
        """
        raise AssertionError("defined by each kind")

    @classmethod
    def encode(
        cls, rows: "Sequence[TaskRow]", labels: Sequence[str], section: Task, tokenizer: "PreTrainedTokenizerFast"
    ) -> Self:
        """Tokenises rows; texts longer than the section's `max_seq_length` are truncated."""
        truth = cls.targets(rows, labels)
        texts = [row.texts for row in rows]
        if not texts:
            return cls([], {name: [] for name in tokenizer.model_input_names}, truth)
        return cls(texts, cls.inputs_of(rows, section, tokenizer)[0], truth)

    @classmethod
    def inputs_of(
        cls, rows: "Sequence[TaskRow]", section: Task, tokenizer: "PreTrainedTokenizerFast"
    ) -> tuple[dict[str, list[list[int]]], Sequence[int]]:
        """Tokenises at least one row as `encode` does, without reading its label.

        Returns:
            Name of a model input -> one list of ids per example; number of the row of each example.
        """
        columns = [list(column) for column in zip(*(row.texts for row in rows), strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=section.max_seq_length)
        return {name: encoded[name] for name in tokenizer.model_input_names}, range(len(rows))

    def encoded_by(self, tokenizer: "PreTrainedTokenizerFast") -> Self:
        """Returns the same examples, tokenised by another tokenizer and truncated at the same length."""
        if not len(self):
            return self
        columns = [list(column) for column in zip(*self.texts, strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=int(self.lengths.max()))
        return replace(self, inputs={name: encoded[name] for name in tokenizer.model_input_names})

    @staticmethod
    def token_counts(counts: Sequence[int], section: Task) -> list[int]:
        """Returns the lengths of the examples that a row is encoded as.

        Args:
            counts: Number of tokens of each of the row's texts, without special tokens.
            section: The task's section.
        """
        return [min(section.max_seq_length, sum(counts) + 1 + len(counts))]

    @staticmethod
    def tuning_metric(first: str) -> str:
        """Returns the metric that decides in tuning, given the first one of the recipe."""
        return first

    def predicted(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the predictions for logits [n, C]."""
        raise AssertionError("defined by each kind")


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
