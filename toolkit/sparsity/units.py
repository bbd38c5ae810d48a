"""Units of a pattern (weights, blocks or N:M groups): their scores, and the choice of those to keep."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # `benchmarks/gpu` uses this module on a machine without pydantic
    from toolkit.recipe import Tile


def units_to_prune(sparsity: float, tile: "Tile", weights: int) -> int:
    """Returns how many units of a matrix to prune; rounded down like `assignment.reachable_sparsity` and INC.

    Args:
        sparsity: Fraction of the weights that become zero.
        tile: The pattern.
        weights: Number of weights of the matrix.
    """
    # 1e-8, so that 0.333333333 in a recipe covers all groups of 1:3.
    fraction = sparsity * tile.columns / tile.zeros + 1e-8 if tile.zeros else sparsity
    return int(fraction * (weights // (tile.rows * tile.columns)))


def keep_units(score: Tensor, tile: "Tile", prune: int) -> Tensor:
    """Returns the mask of a matrix without its units of the smallest scores: bool, [rows, columns].

    Args:
        score: Importance of each weight, >= 0, [rows, columns].
        tile: The pattern.
        prune: Number of units to prune.
    """
    return expand(keep_largest(unit_scores(score, tile), prune), score, tile)


def unit_scores(score: Tensor, tile: "Tile") -> Tensor:
    """Returns the score of each unit, 1-D, in the order that `expand` expects."""
    rows, columns = score.shape
    blocks = score.view(rows // tile.rows, tile.rows, columns // tile.columns, tile.columns)
    if tile.zeros:
        return blocks.sort(dim=-1).values[..., : tile.zeros].sum(dim=-1).flatten()
    return blocks.mean(dim=(1, 3)).flatten()


def expand(kept: Tensor, score: Tensor, tile: "Tile") -> Tensor:
    """Expands the units to keep, 1-D, to the weights to keep, [rows, columns]."""
    rows, columns = score.shape
    units = kept.view(rows // tile.rows, 1, columns // tile.columns, 1)
    if not tile.zeros:
        return units.expand(-1, tile.rows, -1, tile.columns).reshape(rows, columns).contiguous()
    groups = score.view(rows, columns // tile.columns, tile.columns)
    smallest = groups.argsort(dim=-1, stable=True).argsort(dim=-1) < tile.zeros
    return (units.view(rows, -1, 1) | ~smallest).reshape(rows, columns)


def keep_largest_globally(units: Mapping[str, Tensor], prune: int, cap: float) -> dict[str, Tensor]:
    """Applies one threshold to all matrices; prunes at most the fraction `cap` of each and the rest in the others.

    Args:
        units: Name of a matrix -> the scores of its units.
        prune: Number of units to prune in all matrices together.
        cap: Largest fraction of the units of a matrix.
    """
    left = prune
    kept: dict[str, Tensor] = {}
    open_ = dict(units)
    while open_:
        together = keep_largest(torch.cat(list(open_.values())), left)
        parts = together.split([unit.numel() for unit in open_.values()])
        over = [n for n, part in zip(open_, parts, strict=True) if _pruned_count(part) > int(cap * part.numel())]
        if not over:
            return kept | dict(zip(open_, parts, strict=True))
        for name in over:
            unit = open_.pop(name)
            kept[name] = keep_largest(unit, int(cap * unit.numel()))
            left -= _pruned_count(kept[name])
    return kept


def _pruned_count(kept: Tensor) -> int:
    return kept.numel() - int(kept.count_nonzero())


def keep_largest(score: Tensor, count: int) -> Tensor:
    """Returns True for all but the `count` smallest scores of a 1-D tensor; ties are broken by position."""
    if count == 0:
        return torch.ones_like(score, dtype=torch.bool)
    threshold = score.kthvalue(count).values  # ten times faster than sorting
    kept = score > threshold
    ties = (score == threshold).nonzero().squeeze(1)
    missing = int(kept.count_nonzero()) - (score.numel() - count)  # <= 0: minus the number of ties to keep
    kept[ties[len(ties) + missing :]] = True
    return kept
