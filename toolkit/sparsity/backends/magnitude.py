"""The rules in a few lines of torch: the smallest weights, blocks or groups go. Needs neither INC nor NNCF."""

import torch
from torch import Tensor

from toolkit.recipe import Tile
from toolkit.sparsity.pruners import GradualPruner


class MagnitudePruner(GradualPruner):
    """Keeps the units with the largest scores, of each matrix (`local`) or of all together (`global`).

    A unit is a weight, a block (its score: the mean), or M neighbours of a row, of which the N smallest go (its score:
    their sum).
    """

    def choose(self, sparsity: float) -> dict[str, Tensor]:
        tile = self.section.tile
        # Of the units. A recipe's 0.333333333 means all groups of 1:3.
        share = sparsity * tile.columns / tile.zeros + 1e-8 if tile.zeros else sparsity
        cap = 1.0 if tile.zeros else self.section.max_sparsity_ratio_per_layer
        scores = {}
        for name in self._parameters:
            # -1: what is pruned goes first, before any other weight whose score happens to be 0.
            scores[name] = self._score(name).masked_fill(~self.mask.tensors[name], -1.0)
        units = {name: _units(score, tile) for name, score in scores.items()}
        if self.section.prune_domain == "local":
            kept = {name: _largest(unit, _count(share, unit.numel())) for name, unit in units.items()}
        else:
            kept = _largest_of_all(units, share, cap)
        return {name: _spread(kept[name], scores[name], tile) for name in self._parameters}


def _count(share: float, number: int) -> int:
    """How many of a number of units go; rounded as `matching.reachable` does it, and INC."""
    return int(share * number)


def _units(score: Tensor, tile: Tile) -> Tensor:
    """Score of each unit, 1-D, in the order of `_spread`."""
    rows, columns = score.shape
    blocks = score.view(rows // tile.rows, tile.rows, columns // tile.columns, tile.columns)
    if tile.zeros:
        return blocks.sort(dim=-1).values[..., : tile.zeros].sum(dim=-1).flatten()
    return blocks.mean(dim=(1, 3)).flatten()


def _spread(kept: Tensor, score: Tensor, tile: Tile) -> Tensor:
    """Which weights stay, [rows, columns], from which units stay."""
    rows, columns = score.shape
    units = kept.view(rows // tile.rows, 1, columns // tile.columns, 1)
    if not tile.zeros:
        return units.expand(-1, tile.rows, -1, tile.columns).reshape(rows, columns).contiguous()
    groups = score.view(rows, columns // tile.columns, tile.columns)
    smallest = groups.argsort(dim=-1, stable=True).argsort(dim=-1) < tile.zeros
    return (units.view(rows, -1, 1) | ~smallest).reshape(rows, columns)


def _largest_of_all(units: dict[str, Tensor], share: float, cap: float) -> dict[str, Tensor]:
    """One threshold for all matrices; a matrix that would lose more than `cap` loses that, and the others the rest."""
    left = _count(share, sum(unit.numel() for unit in units.values()))
    kept: dict[str, Tensor] = {}
    open_ = dict(units)
    while open_:
        together = _largest(torch.cat(list(open_.values())), left)
        parts = together.split([unit.numel() for unit in open_.values()])
        over = [n for n, part in zip(open_, parts, strict=True) if _lost(part) > _count(cap, part.numel())]
        if not over:
            return kept | dict(zip(open_, parts, strict=True))
        for name in over:
            unit = open_.pop(name)
            kept[name] = _largest(unit, _count(cap, unit.numel()))
            left -= _lost(kept[name])
    return kept


def _lost(kept: Tensor) -> int:
    return kept.numel() - int(kept.count_nonzero())


def _largest(score: Tensor, count: int) -> Tensor:
    """True for all but the `count` smallest of a 1-D tensor; ties are broken by position."""
    if count == 0:
        return torch.ones_like(score, dtype=torch.bool)
    threshold = score.kthvalue(count).values  # ten times faster than sorting
    kept = score > threshold
    ties = (score == threshold).nonzero().squeeze(1)
    missing = int(kept.count_nonzero()) - (score.numel() - count)  # <= 0: how many of the ties must stay
    kept[ties[len(ties) + missing :]] = True
    return kept
