"""Losses of a cross-encoder that reranks passages, and the files that open it in sentence-transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

# What sentence-transformers applies to the logit, by the loss of the labels; names of torch's own modules.
_ACTIVATIONS = {"bce": "torch.nn.modules.activation.Sigmoid", "mse": "torch.nn.modules.linear.Identity"}


def label_loss(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Returns the loss of the labels, as a sum over the groups of a forward pass of the mean over their pairs.

    Binary cross entropy of the sigmoid for `labels` between 0 and 1; squared error of the logit for `scores`.

    Args:
        logits: Logits of the pairs, group by group, [groups * pairs of a group, 1].
        batch: `together`, the pairs of a group; `labels` or `scores`, one per pair.
    """
    own = logits.float().squeeze(-1)
    if "scores" in batch:
        total = F.mse_loss(own, batch["scores"], reduction="sum")
    else:
        total = F.binary_cross_entropy_with_logits(own, batch["labels"], reduction="sum")
    return total / batch.get("together", 1)


def teacher_loss(student: Tensor, teacher: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Distance from the teacher's logits, as a sum over the pairs of a forward pass; each has the mean of its group.

    MarginMSE: mean over all two candidates i, j of a group of ((s_i - s_j) - (t_i - t_j))^2. A pair alone has no
    difference to another: there it is (s - t)^2. Source: Hofstätter et al., 2020, arXiv 2010.02666, equation 5, for one
    relevant and one other passage.

    Args:
        student: Logits [groups * pairs of a group, 1].
        teacher: Logits of the same shape.
        batch: `together`, the pairs of a group.
    """
    together = batch.get("together", 1)
    gaps = (student.float() - teacher.float()).reshape(-1, together)
    squares = gaps.square().sum(dim=1)
    if together > 1:  # the sum over all two of (d_i - d_j)^2 is n * sum of d^2 - (sum of d)^2
        squares = 2 * (together * squares - gaps.sum(dim=1).square()) / (together - 1)
    return squares.sum()


def write_modules(folder: Path, loss: str, longest: int) -> None:
    """Writes what makes a checkpoint or an IR folder one that opens as sentence-transformers' `CrossEncoder(folder)`.

    Args:
        folder: Folder of the model and its tokenizer.
        loss: Loss of the labels: with `bce` scores are probabilities, with `mse` they are the logits.
        longest: Tokens after which a pair is truncated.
    """
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    transformer = {
        "transformer_task": "sequence-classification",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
        "module_output_name": "scores",
        "max_seq_length": longest,
    }
    for name, values in (
        ("modules.json", [module]),
        ("sentence_bert_config.json", transformer),
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder", "activation_fn": _ACTIVATIONS[loss]}),
    ):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")
