"""A task as data: rows of a table -> token ids and labels of its splits, and the scores of a model's answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.data import task_rows
from toolkit.data.examples import EXAMPLES, Split, score
from toolkit.models.checkpoint import require_length
from toolkit.recipe import Kind, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Measure:
    """A metric of one of the measured splits, which lie one after the other in `dev`.

    Attributes:
        name: `accuracy`; of a further split `accuracy (mismatched)`.
        part: Which examples, or questions, of `dev` it is measured on.
    """

    name: str
    metric: str
    part: slice

    @property
    def n(self) -> int:
        """Examples, or questions, behind it."""
        return int(self.part.stop - self.part.start)


@dataclass(frozen=True)
class TaskData:
    """A task, ready for a model: class names in the order of the class numbers, its splits, what is measured.

    Attributes:
        kind: What its examples are, and so what head a model of it has.
        train: What every stage trains on.
        tune: Set aside of the train split: what decisions are taken by. Empty where the recipe sets none aside.
        dev: What is reported. Nothing is chosen by it.
        left_out: A sentence for each file with rows that `drop_empty` has left out.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    train: Split
    tune: Split
    dev: Split
    measures: tuple[Measure, ...]
    left_out: tuple[str, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what is measured; the first one counts for tuning."""
        return tuple(m.name for m in self.measures)

    @property
    def dev_n(self) -> int:
        """Examples, or questions, that are measured."""
        return len(self.dev.truth)

    def scores(self, logits: Sequence[np.ndarray]) -> dict[str, float]:
        """Every metric of a model's answers to the whole dev split.

        Args:
            logits: Of each item of `dev`.
        """
        truth, predicted = self.dev.truth, self.dev.predicted(logits)
        return {m.name: self._score(m.metric, truth[m.part], predicted[m.part]) for m in self.measures}

    def tuning_score(self, logits: Sequence[np.ndarray]) -> float:
        """The first metric, of the answers to `tune`."""
        return self._score(self.measures[0].metric, self.tune.truth, self.tune.predicted(logits))

    def _score(self, metric: str, truth: Any, predicted: Any) -> float:
        return score(self.kind, [metric], truth, predicted, len(self.labels))[metric]


def load_task(name: str, section: Task, tokenizer: "PreTrainedTokenizerFast") -> TaskData:
    """Reads and tokenises the splits.

    Raises:
        UserError: As `rows.read_task` and `rows.targets`; or `max_seq_length` is more than the model takes.
    """
    require_length(section.max_seq_length, tokenizer.model_max_length, f"tasks.{name}")
    read = task_rows.read_task(name, section)
    measured = [row for split in read.dev.values() for row in split]
    encode = EXAMPLES[section.kind].encode
    train_split, tune_split, dev_split = (
        encode(split, read.labels, section, tokenizer) for split in (read.train, read.tune, measured)
    )
    measures: list[Measure] = []
    first = 0
    for split, found in read.dev.items():
        part, suffix = slice(first, first + len(found)), f" ({split})" if split else ""
        measures += [Measure(f"{metric}{suffix}", metric, part) for metric in section.metrics]
        first = part.stop
    splits = (train_split, tune_split, dev_split)
    return TaskData(name, section.kind, tuple(read.labels), *splits, tuple(measures), read.left_out)


def train_texts(section: Task) -> list[str]:
    """All texts that stages train on, without labels; both texts of a pair, one after the other; no context twice.

    Raises:
        UserError: The train file is missing or damaged, or has not the section's columns.
    """
    texts = [text for row in task_rows.read_train(section) for text in row.texts]
    return list(dict.fromkeys(texts)) if EXAMPLES[section.kind].texts_repeat else texts
