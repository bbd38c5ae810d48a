"""Magnitude back end in plain torch: prunes the lowest-scoring weights, blocks or groups. Needs no INC or NNCF."""

import torch
from torch import Tensor

from toolkit.recipe import Tile
from toolkit.sparsity.pruners import GradualPruner


class MagnitudePruner(GradualPruner):
    """Keeps the units with the largest scores, per matrix (`local`) or over all matrices (`global`).

    A unit is a weight, a block (its score is the mean) or an N:M group, i.e. M neighbours in a row of which the N
    smallest are pruned (its score is the sum of these N).
    """

    def choose(self, sparsity: float) -> dict[str, Tensor]:
        tile = self.section.tile
        # Fraction of units to prune. 1e-8, so that 0.333333333 in a recipe covers all groups of 1:3.
        fraction = sparsity * tile.columns / tile.zeros + 1e-8 if tile.zeros else sparsity
        cap = 1.0 if tile.zeros else self.section.max_sparsity_ratio_per_layer
        scores = {}
        for name in self._parameters:
            # -1: pruned weights stay pruned, even if another weight's score is 0.
            scores[name] = self._score(name).masked_fill(~self.mask.tensors[name], -1.0)
        units = {name: _units(score, tile) for name, score in scores.items()}
        if self.section.prune_domain == "local":
            kept = {name: _keep_largest(unit, _count(fraction, unit.numel())) for name, unit in units.items()}
        else:
            kept = _keep_largest_globally(units, fraction, cap)
        return {name: _expand(kept[name], scores[name], tile) for name in self._parameters}


def _count(fraction: float, number: int) -> int:
    """Returns how many of `number` units to prune; rounded down like `assignment.reachable_sparsity` and INC."""
    return int(fraction * number)


def _units(score: Tensor, tile: Tile) -> Tensor:
    """Returns the score of each unit, 1-D, in the order that `_expand` expects."""
    rows, columns = score.shape
    blocks = score.view(rows // tile.rows, tile.rows, columns // tile.columns, tile.columns)
    if tile.zeros:
        return blocks.sort(dim=-1).values[..., : tile.zeros].sum(dim=-1).flatten()
    return blocks.mean(dim=(1, 3)).flatten()


def _expand(kept: Tensor, score: Tensor, tile: Tile) -> Tensor:
    """Expands the units to keep, 1-D, to the weights to keep, [rows, columns]."""
    rows, columns = score.shape
    units = kept.view(rows // tile.rows, 1, columns // tile.columns, 1)
    if not tile.zeros:
        return units.expand(-1, tile.rows, -1, tile.columns).reshape(rows, columns).contiguous()
    groups = score.view(rows, columns // tile.columns, tile.columns)
    smallest = groups.argsort(dim=-1, stable=True).argsort(dim=-1) < tile.zeros
    return (units.view(rows, -1, 1) | ~smallest).reshape(rows, columns)


def _keep_largest_globally(units: dict[str, Tensor], fraction: float, cap: float) -> dict[str, Tensor]:
    """Applies one threshold to all matrices; prunes at most the fraction `cap` of each and the rest in the others."""
    left = _count(fraction, sum(unit.numel() for unit in units.values()))
    kept: dict[str, Tensor] = {}
    open_ = dict(units)
    while open_:
        together = _keep_largest(torch.cat(list(open_.values())), left)
        parts = together.split([unit.numel() for unit in open_.values()])
        over = [n for n, part in zip(open_, parts, strict=True) if _pruned_count(part) > _count(cap, part.numel())]
        if not over:
            return kept | dict(zip(open_, parts, strict=True))
        for name in over:
            unit = open_.pop(name)
            kept[name] = _keep_largest(unit, _count(cap, unit.numel()))
            left -= _pruned_count(kept[name])
    return kept


def _pruned_count(kept: Tensor) -> int:
    return kept.numel() - int(kept.count_nonzero())


def _keep_largest(score: Tensor, count: int) -> Tensor:
    """Returns True for all but the `count` smallest scores of a 1-D tensor; ties are broken by position."""
    if count == 0:
        return torch.ones_like(score, dtype=torch.bool)
    threshold = score.kthvalue(count).values  # ten times faster than sorting
    kept = score > threshold
    ties = (score == threshold).nonzero().squeeze(1)
    missing = int(kept.count_nonzero()) - (score.numel() - count)  # <= 0: minus the number of ties to keep
    kept[ties[len(ties) + missing :]] = True
    return kept
