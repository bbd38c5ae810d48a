"""Losses of an embedding model: against the labels of pairs and triplets, and against a teacher's embeddings.

Terms of single texts are sums, so that they do not depend on how an optimizer step is cut into forward passes. Terms
that compare all rows of a forward pass with each other (similarity matrix, in-batch negatives, CoSENT) do: they see the
rows of their pass only, and count as much as its rows. With gradient accumulation they are the mean over the passes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SIMILARITY_WEIGHT = 10.0  # of the similarity matrix beside the squared distance of the embeddings
SCALE = 20.0  # of cosines in a softmax; that of sentence-transformers


def teacher_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance from the teacher's embeddings, as a sum over the texts of a forward pass.

    |s - t|^2 / |t|^2 of each text, plus 10 times the mean over all texts j of (cos(s_i, s_j) - cos(t_i, t_j))^2. For
    embeddings of length 1 the first term is the squared distance.

    Args:
        student: Embeddings [n, h].
        teacher: Embeddings [n, h].
    """
    student, teacher = student.float(), teacher.float()
    squares = (student - teacher).square().sum(dim=1) / teacher.square().sum(dim=1)
    own, wanted = (F.normalize(x, dim=-1) for x in (student, teacher))
    similarities = (own @ own.T - wanted @ wanted.T).square().mean(dim=1)
    return (squares + SIMILARITY_WEIGHT * similarities).sum()


def label_loss(embeddings: Tensor, batch: Mapping[str, Any]) -> Tensor | None:
    """Returns the loss against what the rows say is right, as a sum over the rows; None for single texts.

    Args:
        embeddings: Embeddings of the texts, row by row, [rows * texts of a row, h].
        batch: `together`, the texts of a row; `labels`, scores [rows * 2], for pairs with a score.
    """
    together = batch.get("together", 1)
    if together == 1:
        return None
    rows = F.normalize(embeddings.float(), dim=-1).unflatten(0, (-1, together))
    if "labels" in batch:
        cosines = (rows[:, 0] * rows[:, 1]).sum(dim=-1)
        return len(rows) * cosent(cosines, batch["labels"][::together])
    return in_batch_negatives(rows)


def cosent(cosines: Tensor, scores: Tensor) -> Tensor:
    """log(1 + sum of exp(20 (cos_j - cos_i)) over the pairs i, j with score_i > score_j).

    Source: Su, CoSENT, 2022; sentence-transformers' CoSENTLoss.

    Args:
        cosines: Cosine of each pair, [n].
        scores: Score of each pair, [n], on any scale.
    """
    differences = SCALE * (cosines[None, :] - cosines[:, None])
    wrong = differences[scores[:, None] > scores[None, :]]
    return torch.logsumexp(torch.cat([wrong, wrong.new_zeros(1)]), dim=0)


def in_batch_negatives(rows: Tensor) -> Tensor:
    """Cross entropy of each anchor's positive among the positives and negatives of all rows, summed over the rows.

    The logits are 20 times the cosines. Source: Henderson et al., 2017, arXiv 1705.00652, section 4.4;
    sentence-transformers' MultipleNegativesRankingLoss.

    Args:
        rows: Normalised embeddings of anchor, positive and, in triplets, negative: [n, 2 or 3, h].
    """
    candidates = rows[:, 1:].transpose(0, 1).flatten(0, 1)  # all positives, then all negatives
    own = torch.arange(len(rows), device=rows.device)
    return F.cross_entropy(SCALE * rows[:, 0] @ candidates.T, own, reduction="sum")
