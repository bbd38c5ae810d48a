"""Tokenised splits of a task, and the scores of a model's predictions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.core.errors import UserError
from toolkit.data import task_rows
from toolkit.data.kinds import entities
from toolkit.data.kinds.embedding import RANK_METRICS, Texts
from toolkit.data.kinds.retrieval import read_retrieval
from toolkit.data.kinds.token_classification import Tokens
from toolkit.data.metrics import shuffled_scores
from toolkit.data.question_answering import Windows
from toolkit.data.task_kinds import EXAMPLES, Split, score
from toolkit.data.unlabelled import Similar, unlabelled_rows
from toolkit.models.checkpoint import require_length
from toolkit.models.embedding.folder import PoolingKeys
from toolkit.models.embedding.prompts import prompts_of_tokenizer
from toolkit.models.tokenizers import definition
from toolkit.recipe import KINDS, Kind, Task, Unlabelled
from toolkit.recipe.kinds.token_classification import types_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MOST_WITHOUT_ANSWER = 0.1  # fraction of the training questions; they are trained as questions without an answer


@dataclass(frozen=True)
class Measure:
    """A metric of one evaluation split; all evaluation splits are concatenated in `dev`.

    Attributes:
        name: `accuracy`; for an additional split `accuracy (mismatched)`.
        metric: Name of the metric without the split.
        part: Slice of the split's answers in `dev.truth`: of examples, questions, sentences, or queries.
    """

    name: str
    metric: str
    part: slice

    @property
    def n(self) -> int:
        """Number of examples, or questions, of the split."""
        return int(self.part.stop - self.part.start)


@dataclass(frozen=True)
class TaskData:
    """A task with tokenised splits.

    Attributes:
        name: Name of the task in the recipe.
        kind: Kind of the examples, and of the model's head.
        labels: Class names in the order of the class numbers.
        train: Split that every stage trains on.
        tune: Part of the train split reserved for decisions; empty where the recipe reserves none.
        dev: Evaluation splits; reported, never used for decisions.
        measures: The metrics of each evaluation split.
        left_out: A message for each file with rows that were left out, and for each split with answers in no window.
        pooling: The recipe's `pooling` and `normalize`, for `load_task_model`.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    train: Split
    tune: Split
    dev: Split
    measures: tuple[Measure, ...]
    left_out: tuple[str, ...]
    pooling: PoolingKeys = (None, None)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, the main one first."""
        return tuple(m.name for m in self.measures)

    @property
    def dev_n(self) -> int:
        """Number of evaluated examples, or questions."""
        return len(self.dev.truth)

    def scores(self, logits: Sequence[np.ndarray]) -> dict[str, float]:
        """Computes every metric on the complete dev split.

        Args:
            logits: The model's logits for each item of `dev`.
        """
        truth, predicted = self.dev.truth, self.dev.predicted(logits)
        return {m.name: self.score_of(m.metric, truth[m.part], predicted[m.part]) for m in self.measures}

    def chance(self, logits: Sequence[np.ndarray]) -> float | None:
        """Returns the highest first score that chance explains: of the same predictions for shuffled examples.

        The mean of the shuffled scores, plus two standard deviations. A model that always gives the same answer has
        exactly that score. None for embeddings, which compare texts without any skill in the task.

        Args:
            logits: The model's logits for each item of `dev`.
        """
        if KINDS[self.kind].dense_teaches:
            return None
        _, found = self.shuffled(self.dev, logits, self.measures[0].part)
        return float(np.mean(found) + 2 * np.std(found))

    def shuffled(
        self, split: Split, logits: Sequence[np.ndarray], part: slice = slice(None)
    ) -> tuple[float, list[float]]:
        """Returns the first score of a split, and those of the same predictions for shuffled examples.

        A query's answer is an order of its own candidates, so there the scores of all candidates are shuffled instead.

        Args:
            split: A split of the task.
            logits: The model's logits for each item of the split.
            part: The answers to compare.
        """
        truth, predicted = split.truth[part], split.predicted(logits)[part]
        per_query, metric = KINDS[self.kind].per_query, self.measures[0].metric

        def of(order: np.ndarray) -> float:
            if per_query:
                return self.score_of(metric, truth, split.predicted([logits[i] for i in order])[part])
            return self.score_of(metric, [truth[i] for i in order], predicted)

        count = len(logits) if per_query else len(truth)
        return of(np.arange(count)), shuffled_scores(of, count)

    def scores_by_type(self, logits: Sequence[np.ndarray]) -> dict[str, dict[str, float]]:
        """Computes the scores of each type of entity on the complete dev split; empty for a task without entities.

        Args:
            logits: The model's logits for each item of `dev`.
        """
        if not isinstance(self.dev, Tokens):
            return {}
        return entities.by_type(self.dev.truth, self.dev.predicted(logits), types_of(self.labels))

    def tuning_score(self, logits: Sequence[np.ndarray]) -> float:
        """Computes the tuning metric on `tune`.

        Args:
            logits: The model's logits for each item of `tune`.
        """
        return self.score_of(self.tuning_metric, self.tune.truth, self.tune.predicted(logits))

    @property
    def tuning_metric(self) -> str:
        """Name of the metric that decides in tuning: the first one, if the training rows have what it needs."""
        return self.tune.tuning_metric(self.measures[0].metric)

    def score_of(self, metric: str, truth: Any, predicted: Any) -> float:
        """Returns one metric of predictions against the correct answers."""
        return score(self.kind, [metric], truth, predicted, len(self.labels))[metric]


def load_task(
    name: str,
    section: Task,
    tokenizer: "PreTrainedTokenizerFast",
    unlabelled: Unlabelled | None = None,
    similar: Similar | None = None,
) -> TaskData:
    """Reads and tokenises the splits of a task.

    Args:
        name: Name of the task in the recipe.
        section: The task's section.
        tokenizer: The model's tokenizer.
        unlabelled: Examples without labels, which follow those of the train split; the split then has no labels.
        similar: Finds the texts of new pairs; None: `unlabelled` has none.

    Raises:
        UserError: The rows are invalid (see `task_rows.read_task` and `task_rows.targets`), or `max_seq_length` exceeds
            the model's maximum, or too many training questions have their answer in no window.
    """
    require_length(section.max_seq_length, tokenizer.model_max_length, f"tasks.{name}")
    read = task_rows.read_task(name, section)
    measured = [row for split in read.dev.values() for row in split]
    encode = EXAMPLES[section.kind].encode
    more = unlabelled_rows(section, unlabelled, read, similar) if unlabelled else []
    train_split, tune_split, dev_split = (
        encode(split, read.labels, own, tokenizer)
        for split, own in ((read.train + more, section), (read.tune, section), (measured, section.evaluated))
    )
    measures: list[Measure] = []
    first = 0
    for split, found in read.dev.items():
        part, suffix = slice(first, first + task_rows.measured_items(found)), f" ({split})" if split else ""
        measures += [Measure(f"{metric}{suffix}", metric, part) for metric in section.metrics]
        first = part.stop
    if isinstance(dev_split, Texts) and section.retrieval:
        prompts = prompts_of_tokenizer(tokenizer, section)
        sets = [
            read_retrieval(name, file, drop_empty=section.drop_empty).with_prompts(prompts)
            for name, file in section.retrieval.items()
        ]
        dev_split = dev_split.followed_by(sets, tokenizer, section.max_seq_length)
        for one in sets:
            part = slice(first, first + len(one.queries))
            measures += [Measure(f"{metric} ({one.name})", metric, part) for metric in RANK_METRICS]
            first = part.stop
    splits = (train_split, tune_split, dev_split)
    left_out = (*read.left_out, *task_rows.repeated_files(section), *_answers_left_out(name, train_split, dev_split))
    pooling = (section.pooling, section.normalize)
    return TaskData(name, section.kind, tuple(read.labels), *splits, tuple(measures), left_out, pooling)


def _answers_left_out(name: str, train: Split, dev: Split) -> list[str]:
    """Returns a message for each split with questions whose answer no window contains.

    Raises:
        UserError: They are too many to train on.
    """
    found = []
    for what, split in (("training", train), ("dev", dev)):
        if isinstance(split, Windows) and (lost := split.without_answer()):
            found.append(f"{lost:,} of {len(split.questions):,} {what} questions have their answer in no window")
            if split is train and lost > _MOST_WITHOUT_ANSWER * len(split.questions):
                raise UserError(
                    found[-1],
                    where=f"tasks.{name}",
                    instead="a larger max_seq_length, a larger windows.stride, or a model with another tokenizer",
                )
    return found


def load_tasks(name: str, section: Task, tokenizers: "Mapping[str, PreTrainedTokenizerFast]") -> dict[str, TaskData]:
    """Returns the task as each model's own tokenizer encodes it; models with equal tokenizers share the data.

    Args:
        name: Name of the task in the recipe.
        section: The task's section.
        tokenizers: Name of a model -> its tokenizer.

    Raises:
        UserError: See `load_task`.
    """
    prompted = KINDS[section.kind].dense_teaches
    alike = {
        model: (
            *(json.dumps(definition(t.backend_tokenizer)), *t.model_input_names, t.model_max_length),
            prompts_of_tokenizer(t, section).of_all if prompted else (),
        )
        for model, t in tokenizers.items()
    }
    one_of_each = {same: model for model, same in alike.items()}
    loaded = {same: load_task(name, section, tokenizers[model]) for same, model in one_of_each.items()}
    return {model: loaded[same] for model, same in alike.items()}


def train_texts(section: Task) -> list[str]:
    """Returns all texts that stages train on, without labels; repeated contexts once.

    The two texts of a pair follow each other.

    Raises:
        UserError: The train file is missing or damaged, or lacks one of the section's columns.
    """
    texts = [text for row in task_rows.read_train(section) for text in row.texts]
    return list(dict.fromkeys(texts)) if EXAMPLES[section.kind].texts_repeat else texts
