"""Task heads: model class, logits and label loss of each kind of task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from toolkit.models import reranking
from toolkit.models.embedding import losses
from toolkit.models.embedding.model import AutoModelForEmbedding
from toolkit.recipe import Kind

_IMPOSSIBLE = -1e9  # logit of a position that cannot be part of an answer: its probability is exactly 0


def _no_settings(labels: Sequence[str]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class TaskHead:
    """Head for one kind of task.

    Attributes:
        auto_class: The transformers class that loads a model with this head.
        logits: (model output, model inputs) -> logits of a batch: [n, C], or [n, C, length] with C logits per token.
        label_loss: (logits, batch) -> loss against the labels, summed over the examples; None if there are no labels.
        synthetic_labels: (number of examples, tokens of each) -> random labels, for measuring training steps.
        width: Class names -> C.
        settings: Class names -> settings of the head in the model's `config.json`.
        distributions: Number of distributions per example that are compared with the teacher's, along the last
            dimension.
        distance: The only meaningful distance from the teacher; None: the one that the recipe names.
        decisions: Whether each logit is that of a decision of its own, a distribution over yes and no (sigmoid).
        compared: (logits, batch) -> the distributions that are compared with the teacher's, [rows, classes].
        teacher_loss: (logits, teacher's logits, batch) -> distance from the teacher, summed over the examples, for
            logits that are not compared one by one; None: by `distance`.
    """

    auto_class: Any
    logits: Callable[[Any, Mapping[str, Tensor]], Tensor]
    label_loss: Callable[[Tensor, Mapping[str, Any]], Tensor | None]
    synthetic_labels: Callable[[int, int], dict[str, Tensor]]
    width: Callable[[Sequence[str]], int]
    settings: Callable[[Sequence[str]], dict[str, Any]] = _no_settings
    distributions: int = 1
    distance: Literal["MSE"] | None = None
    decisions: bool = False
    compared: Callable[[Tensor, Mapping[str, Any]], Tensor] = lambda logits, _: logits.reshape(-1, logits.shape[-1])
    teacher_loss: Callable[[Tensor, Tensor, Mapping[str, Any]], Tensor] | None = None


def task_logits(kind: Kind, model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Runs a forward pass; returns logits [n, C] (regression: C = 1), or [n, 2, length] for starts and ends of answers.

    Those of token classification are [n, tags, length]. The logits of an embedding model are the embeddings, [n, h].

    Padding cannot be part of an answer and has no tag, so logits do not depend on the other examples of a batch.
    """
    return HEADS[kind].logits(model(**inputs), inputs)


def pad_logits(logits: Sequence[np.ndarray], per_token: bool) -> Tensor:
    """Collates logits of single examples into a batch, as `task_logits` returns it.

    Args:
        logits: One array per example: [C], or with `per_token` [C, length], each with its own length.
        per_token: Whether the logits are per token (`recipe.task.KINDS`).
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


def _by_token(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    logits: Tensor = output.logits
    return logits.transpose(1, 2).masked_fill(inputs["attention_mask"][:, None] == 0, _IMPOSSIBLE)


def _tag_loss(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Cross entropy of the tokens that have a tag."""
    return F.cross_entropy(logits.float(), batch["tags"], ignore_index=-100, reduction="sum")


def _with_tag(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Logits of the tokens that have a tag, [tokens, tags]; a teacher was trained at no others."""
    return logits.transpose(1, 2)[batch["tags"] != -100]


def _class_loss(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Cross entropy."""
    return F.cross_entropy(logits.float(), batch["labels"], reduction="sum")


def _number_loss(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Squared error."""
    return F.mse_loss(logits.float().squeeze(-1), batch["labels"], reduction="sum")


def _decisions_loss(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Mean over the classes of the binary cross entropies."""
    return F.binary_cross_entropy_with_logits(logits.float(), batch["labels"], reduction="sum") / logits.shape[-1]


def _span_loss(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Mean of the cross entropies of start and end."""
    positions = torch.stack([batch["start_positions"], batch["end_positions"]], dim=1)
    return F.cross_entropy(logits.float().flatten(0, 1), positions.flatten(), reduction="sum") / 2


def _if_labelled(loss: Callable[[Tensor, Mapping[str, Any]], Tensor]) -> Callable[..., Tensor | None]:
    """Returns a loss that is None for a batch without labels."""
    return lambda logits, batch: loss(logits, batch) if "labels" in batch else None


def _class_names(labels: Sequence[str]) -> dict[str, Any]:
    names = dict(enumerate(labels))
    return {
        "num_labels": len(labels),
        "id2label": names,
        "label2id": {label: number for number, label in names.items()},
    }


def _class_settings(labels: Sequence[str]) -> dict[str, Any]:
    return _class_names(labels) | {"problem_type": "single_label_classification"}


HEADS: dict[Kind, TaskHead] = {
    "classification": TaskHead(
        auto_class=AutoModelForSequenceClassification,
        logits=_plain,
        label_loss=_if_labelled(_class_loss),
        synthetic_labels=lambda count, length: {"labels": torch.randint(2, (count,))},
        width=len,
        settings=_class_settings,
    ),
    "regression": TaskHead(
        auto_class=AutoModelForSequenceClassification,
        logits=_plain,
        label_loss=_if_labelled(_number_loss),
        synthetic_labels=lambda count, length: {"labels": torch.rand(count)},
        width=lambda labels: 1,
        settings=lambda labels: {"num_labels": 1, "problem_type": "regression"},
        distance="MSE",  # a single number is not a distribution
    ),
    "question_answering": TaskHead(
        auto_class=AutoModelForQuestionAnswering,
        logits=_starts_and_ends,
        label_loss=_span_loss,
        synthetic_labels=lambda count, length: {
            name: torch.randint(length - 1, (count,)) for name in ("start_positions", "end_positions")
        },
        width=lambda labels: 2,
        distributions=2,
    ),
    "embedding": TaskHead(
        auto_class=AutoModelForEmbedding,
        logits=lambda output, inputs: output.sentence_embedding,
        label_loss=losses.label_loss,
        synthetic_labels=lambda count, length: {},
        width=lambda labels: 0,  # the hidden size, which depends on the model
        teacher_loss=lambda logits, teacher, batch: losses.teacher_loss(logits, teacher),
    ),
    "multi_label": TaskHead(
        auto_class=AutoModelForSequenceClassification,
        logits=_plain,
        label_loss=_if_labelled(_decisions_loss),
        synthetic_labels=lambda count, length: {"labels": torch.randint(2, (count, 2)).float()},
        width=len,
        settings=lambda labels: _class_settings(labels) | {"problem_type": "multi_label_classification"},
        decisions=True,
    ),
    "reranking": TaskHead(
        auto_class=AutoModelForSequenceClassification,
        logits=_plain,
        label_loss=reranking.label_loss,
        synthetic_labels=lambda count, length: {"labels": torch.rand(count)},
        width=lambda labels: 1,
        settings=lambda labels: {"num_labels": 1},
        teacher_loss=reranking.teacher_loss,
    ),
    "token_classification": TaskHead(
        auto_class=AutoModelForTokenClassification,
        logits=_by_token,
        label_loss=_tag_loss,
        synthetic_labels=lambda count, length: {"tags": torch.randint(2, (count, length))},
        width=len,
        settings=_class_names,
        compared=_with_tag,
    ),
}
