"""The paper's rule in a few lines of torch: the smallest weights go. Needs neither INC nor NNCF."""

import torch
from torch import Tensor

from toolkit.sparsity.sparsifier import GradualPruner


def can_do(pattern: str) -> bool:
    """Unstructured only; blocks and N:M are INC's."""
    return pattern == "tile_pattern_1x1"


class Pruner(GradualPruner):
    """Keeps the largest |w| of each matrix (`local`), or of all matrices together (`global`)."""

    def choose(self, sparsity: float) -> dict[str, Tensor]:
        # -1: what is pruned goes first, before any other weight that happens to be 0.
        scores = {n: p.detach().abs().masked_fill_(~self.mask.tensors[n], -1.0) for n, p in self._parameters.items()}
        if self.section.prune_domain == "local":
            return {name: _largest(score.flatten(), sparsity).view_as(score) for name, score in scores.items()}
        joined = torch.cat([score.flatten() for score in scores.values()])
        kept = _largest(joined, sparsity).split([score.numel() for score in scores.values()])
        return {name: part.view_as(score) for part, (name, score) in zip(kept, scores.items(), strict=True)}


def _largest(score: Tensor, sparsity: float) -> Tensor:
    """True for all but the `int(sparsity * n)` smallest of a 1-D tensor; ties are broken by position."""
    count = int(sparsity * score.numel())
    if count == 0:
        return torch.ones_like(score, dtype=torch.bool)
    threshold = score.kthvalue(count).values  # ten times faster than sorting
    kept = score > threshold
    ties = (score == threshold).nonzero().squeeze(1)
    missing = int(kept.count_nonzero()) - (score.numel() - count)  # <= 0: how many of the ties must stay
    kept[ties[len(ties) + missing :]] = True
    return kept
