"""A task as data: rows of a table -> token ids and labels of its splits, and the scores of a model's answers."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.data import task_rows
from toolkit.data.metrics import score
from toolkit.data.question_answering import Windows, windows_of
from toolkit.data.task_rows import TaskRow
from toolkit.models.checkpoint import require_length
from toolkit.recipe import Kind, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Examples:
    """Tokenised examples. Item i: {input_ids, attention_mask, (token_type_ids): list[int], labels: int or float}.

    Attributes:
        texts: The text of each example, or the two texts of a pair.
        inputs: Name of a model input -> one list of ids per example.
        labels: Class number of each example, [n] int64; in regression its number, [n] float32.
    """

    texts: list[tuple[str, ...]]
    inputs: dict[str, list[list[int]]]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**{name: ids[index] for name, ids in self.inputs.items()}, "labels": self.labels[index].item()}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, [n] int64."""
        return np.fromiter(map(len, self.inputs["input_ids"]), dtype=np.int64, count=len(self))

    @property
    def truth(self) -> np.ndarray:
        """What is to be predicted, [n]."""
        return self.labels

    def predicted(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """Class numbers (numbers, in regression) of logits [n, C]."""
        stacked = np.asarray(logits)
        return stacked[:, 0] if self.labels.dtype == np.float32 else stacked.argmax(axis=1)


Split = Examples | Windows


def fingerprint(examples: Split) -> str:
    """Hash of every token id of every input: of all that a model sees of them."""
    digest = hashlib.sha256()
    for name in sorted(examples.inputs):
        ids: Sequence[Sequence[int]] = examples.inputs[name]
        digest.update(name.encode())
        digest.update(np.fromiter(map(len, ids), dtype=np.int64, count=len(ids)).tobytes())
        digest.update(np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int32).tobytes())
    return digest.hexdigest()


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
    train_split, tune_split, dev_split = (
        _tokenise(split, read.labels, section, tokenizer) for split in (read.train, read.tune, measured)
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
    return list(dict.fromkeys(texts)) if section.kind == "question_answering" else texts


def _tokenise(
    split: Sequence[TaskRow], labels: Sequence[str], section: Task, tokenizer: "PreTrainedTokenizerFast"
) -> Split:
    wanted = task_rows.targets(split, labels, section)
    if section.kind == "question_answering":
        return windows_of(wanted, tokenizer, section.max_seq_length, section.windows)
    texts = [row.texts for row in split]
    if not texts:
        return Examples([], {name: [] for name in tokenizer.model_input_names}, wanted)
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=section.max_seq_length)
    return Examples(texts, {name: encoded[name] for name in tokenizer.model_input_names}, wanted)
