"""Importance scores of weights; those with the smallest scores are pruned first.

A score is a function of a matrix, its gradient and its previous score. `recipe/pruning.py` lists which prune types need
gradients, so that a recipe can be checked without torch.
"""

from collections.abc import Callable

from torch import Tensor

from toolkit.recipe import Tile
from toolkit.recipe.pruning import PruneType

_MOMENTUM = 0.9  # fraction of the previous score that snip_momentum keeps, as in INC

Score = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


def magnitude(weight: Tensor, gradient: Tensor | None, previous: Tensor | None) -> Tensor:
    """Returns |w| (Zhu and Gupta, 2017)."""
    return weight.abs()


def snip(weight: Tensor, gradient: Tensor | None, previous: Tensor | None) -> Tensor:
    """Returns |w g| (SNIP; Lee et al., 2019)."""
    assert gradient is not None, "the gradient of the optimizer step"
    return (weight * gradient).abs()


def snip_momentum(weight: Tensor, gradient: Tensor | None, previous: Tensor | None) -> Tensor:
    """Returns |w g| plus 0.9 times the previous score."""
    score = snip(weight, gradient, previous)
    if previous is not None:
        score += _MOMENTUM * previous
    return score


def gradient_sensitivity(weight: Tensor, gradient: Tensor | None, previous: Tensor | None) -> Tensor:
    """Returns |g|."""
    assert gradient is not None, "the gradient of the optimizer step"
    return gradient.abs()


SCORES: dict[PruneType, Score] = {
    "magnitude": magnitude,
    "basic_magnitude": magnitude,
    "group_lasso": magnitude,  # the penalty has already driven weights towards zero
    "snip": snip,
    "snip_momentum": snip_momentum,
    "gradient_sensitivity": gradient_sensitivity,
}


def group_lasso_gradient(weight: Tensor, tile: Tile) -> Tensor:
    """Returns the gradient of the sum of all blocks' L2 norms: each block divided by its norm (Yuan and Lin, 2006)."""
    rows, columns = weight.shape
    blocks = weight.view(rows // tile.rows, tile.rows, columns // tile.columns, tile.columns)
    return (blocks / blocks.norm(dim=(1, 3), keepdim=True).clamp_min(1e-12)).view_as(weight)
