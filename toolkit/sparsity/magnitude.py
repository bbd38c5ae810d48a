"""The paper's rule in a few lines of torch: the smallest weights go. Needs neither INC nor NNCF."""

import torch
from torch import Tensor

from toolkit.sparsity.sparsifier import GradualPruner


def can_do(pattern: str) -> bool:
    """Unstructured only; blocks and N:M are INC's."""
    return pattern == "tile_pattern_1x1"


class Pruner(GradualPruner):
    """Keeps the largest |w| of each matrix (`local`), or of all matrices together (`global`)."""

    def choose(self, step: int, sparsity: float) -> dict[str, Tensor]:
        scores = {name: parameter.detach().abs() for name, parameter in self._parameters.items()}
        if self.section.prune_domain == "local":
            return {name: _largest(score.flatten(), sparsity).view_as(score) for name, score in scores.items()}
        joined = torch.cat([score.flatten() for score in scores.values()])
        kept = _largest(joined, sparsity).split([score.numel() for score in scores.values()])
        return {name: part.view_as(score) for part, (name, score) in zip(kept, scores.items(), strict=True)}


def _largest(score: Tensor, sparsity: float) -> Tensor:
    """True for all but the `int(sparsity * n)` smallest of a 1-D tensor; ties are broken by position."""
    kept = torch.ones_like(score, dtype=torch.bool)
    count = int(sparsity * score.numel())
    kept[score.argsort(stable=True)[:count]] = False
    return kept
