"""What a task's kind means for a model: the head, its logits, the loss against the labels. One entry per kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from toolkit.recipe import Kind

_IMPOSSIBLE = -1e9  # logit of a position that cannot be an answer: its probability is exactly 0


def _no_settings(labels: Sequence[str]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class TaskHead:
    """The head of a task's kind.

    Attributes:
        auto_class: transformers' class that loads a model with this head.
        logits: (the model's output, its inputs) to logits of a batch: [n, C], or [n, C, length] with C logits per
            token.
        label_loss: (logits, batch) to the loss against the labels, summed over the examples.
        synthetic_labels: (examples, tokens of each) to random labels, for measuring training steps.
        width: Class names to C.
        settings: Class names to what the model's `config.json` says about the head.
        per_token: The logits of one example are [C, length].
        distributions: Distributions of one example that are compared with the teacher's, each along the last dimension.
        distance: The only distance from the teacher that makes sense; None: the one that the recipe names.
    """

    auto_class: Any
    logits: Callable[[Any, Mapping[str, Tensor]], Tensor]
    label_loss: Callable[[Tensor, Mapping[str, Any]], Tensor]
    synthetic_labels: Callable[[int, int], dict[str, Tensor]]
    width: Callable[[Sequence[str]], int]
    settings: Callable[[Sequence[str]], dict[str, Any]] = _no_settings
    per_token: bool = False
    distributions: int = 1
    distance: Literal["MSE"] | None = None


def task_logits(kind: Kind, model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """A forward pass: [n, C] of a classifier (C = 1: a number), [n, 2, length] of starts and ends of an answer.

    Padding cannot be an answer, so logits do not depend on the other examples of a batch.
    """
    return HEADS[kind].logits(model(**inputs), inputs)


def pad_logits(logits: Sequence[np.ndarray], per_token: bool) -> Tensor:
    """Logits of single examples as `task_logits` returns them for a batch.

    Args:
        logits: One array per example: [C], or with `per_token` [C, length], each with its own length.
        per_token: The layout, as of `TaskHead.per_token`.
    """
    if not per_token:
        return torch.from_numpy(np.stack(logits))
    shape = (len(logits), logits[0].shape[0], max(one.shape[1] for one in logits))
    batch = np.full(shape, _IMPOSSIBLE, dtype=np.float32)
    for row, one in zip(batch, logits, strict=True):
        row[:, : one.shape[1]] = one
    return torch.from_numpy(batch)


def _plain(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    logits: Tensor = output.logits
    return logits


def _starts_and_ends(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    logits = torch.stack([output.start_logits, output.end_logits], dim=1)
    return logits.masked_fill(inputs["attention_mask"][:, None] == 0, _IMPOSSIBLE)


def _class_loss(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Cross entropy."""
    return F.cross_entropy(logits.float(), batch["labels"], reduction="sum")


def _number_loss(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Squared error."""
    return F.mse_loss(logits.float().squeeze(-1), batch["labels"], reduction="sum")


def _span_loss(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Mean of the cross entropies of start and end."""
    positions = torch.stack([batch["start_positions"], batch["end_positions"]], dim=1)
    return F.cross_entropy(logits.float().flatten(0, 1), positions.flatten(), reduction="sum") / 2


def _class_settings(labels: Sequence[str]) -> dict[str, Any]:
    names = dict(enumerate(labels))
    return {
        "num_labels": len(labels),
        "id2label": names,
        "label2id": {label: number for number, label in names.items()},
        "problem_type": "single_label_classification",
    }


HEADS: dict[Kind, TaskHead] = {
    "classification": TaskHead(
        auto_class=AutoModelForSequenceClassification,
        logits=_plain,
        label_loss=_class_loss,
        synthetic_labels=lambda count, length: {"labels": torch.randint(2, (count,))},
        width=len,
        settings=_class_settings,
    ),
    "regression": TaskHead(
        auto_class=AutoModelForSequenceClassification,
        logits=_plain,
        label_loss=_number_loss,
        synthetic_labels=lambda count, length: {"labels": torch.rand(count)},
        width=lambda labels: 1,
        settings=lambda labels: {"num_labels": 1, "problem_type": "regression"},
        distance="MSE",  # a number is no distribution
    ),
    "question_answering": TaskHead(
        auto_class=AutoModelForQuestionAnswering,
        logits=_starts_and_ends,
        label_loss=_span_loss,
        synthetic_labels=lambda count, length: {
            name: torch.randint(length - 1, (count,)) for name in ("start_positions", "end_positions")
        },
        width=lambda labels: 2,
        per_token=True,
        distributions=2,
    ),
}
