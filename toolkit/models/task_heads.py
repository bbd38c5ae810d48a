"""What a task's kind means for a model: how its logits lie, and the loss against the labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_NOWHERE = -1e9  # logit of a position that cannot be an answer: its probability is exactly 0


def task_logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """A forward pass: [n, C] of a classifier (C = 1: a number), [n, 2, length] of starts and ends of an answer.

    Padding cannot be an answer, so that logits do not depend on what an example shares a batch with.
    """
    output = model(**inputs)
    if "start_logits" not in output:
        plain: Tensor = output.logits
        return plain
    logits = torch.stack([output.start_logits, output.end_logits], dim=1)
    return logits.masked_fill(inputs["attention_mask"][:, None] == 0, _NOWHERE)


def pad_logits(logits: Sequence[np.ndarray]) -> Tensor:
    """Logits of single examples as `logits_of` gives them for a batch.

    Args:
        logits: [C] of a classifier; [2, length] of a window, each with its own length.
    """
    if logits[0].ndim == 1:
        return torch.from_numpy(np.stack(logits))
    batch = np.full((len(logits), 2, max(one.shape[1] for one in logits)), _NOWHERE, dtype=np.float32)
    for row, one in zip(batch, logits, strict=True):
        row[:, : one.shape[1]] = one
    return torch.from_numpy(batch)


def label_loss(logits: Tensor, batch: dict[str, Any]) -> Tensor:
    """Sum over the examples: cross entropy; the mean of those of start and end; the squared error of a number."""
    logits = logits.float()
    if "start_positions" in batch:
        positions = torch.stack([batch["start_positions"], batch["end_positions"]], dim=1)
        return F.cross_entropy(logits.flatten(0, 1), positions.flatten(), reduction="sum") / 2
    labels = batch["labels"]
    if labels.is_floating_point():
        return F.mse_loss(logits.squeeze(-1), labels, reduction="sum")
    return F.cross_entropy(logits, labels, reduction="sum")
