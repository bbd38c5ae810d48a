"""Tokenised examples with one label each: what the kinds of tasks have in common. Loads no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import Self

from toolkit.recipe import KINDS, Kind, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from toolkit.data.task_rows import TaskRow


class Tokenised:
    """Model inputs of a split, of whatever kind of task: texts, windows of long texts, or pairs.

    Attributes:
        inputs: Name of a model input -> one list of ids per example.
        kind: The task's kind.
        texts_repeat: Several rows may have the same text.
        examples_per_row: Average number of examples per row, for estimates without reading the data.
        metrics: Name of a metric -> (truth [n], predictions [n]) -> score.
    """

    inputs: dict[str, list[list[int]]]
    kind: ClassVar[Kind]
    texts_repeat: ClassVar[bool] = False
    examples_per_row: ClassVar[float] = 1.0
    metrics: ClassVar[dict[str, Callable[[Any, Any], float]]]

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])

    @property
    def per_token(self) -> bool:
        """Whether the logits of one example are [C, length], not [C]."""
        return KINDS[self.kind].per_token

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example, [n] int64."""
        return np.fromiter(map(len, self.inputs["input_ids"]), dtype=np.int64, count=len(self))

    @property
    def groups(self) -> np.ndarray:
        """Numbers of the examples that a batch of the training does not separate, [groups, together]."""
        return np.arange(len(self))[:, None]


@dataclass(frozen=True)
class Examples(Tokenised):
    """Examples with one label each. Item i: {input_ids, attention_mask, (token_type_ids): list[int], labels: number}.

    Attributes:
        texts: The text of each example, or the two texts of a pair.
        inputs: Name of a model input -> one list of ids per example.
        labels: Label of each example, [n]; with several classes [n, C]. Empty if an example has none.
    """

    texts: list[tuple[str, ...]]
    inputs: dict[str, list[list[int]]]
    labels: np.ndarray

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {name: ids[index] for name, ids in self.inputs.items()}
        return item | {"labels": self.labels[index].tolist()} if len(self.labels) else item

    @property
    def truth(self) -> Any:
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
        truth = cls.targets([] if any(row.label is None for row in rows) else rows, labels)
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

    def predicted(self, logits: Sequence[np.ndarray]) -> Any:
        """Returns the predictions for logits [n, C]."""
        raise AssertionError("defined by each kind")
