"""Magnitude back end in plain torch: prunes the lowest-scoring weights, blocks or groups. Needs no INC or NNCF."""

from torch import Tensor

from toolkit.sparsity.pruners import GradualPruner
from toolkit.sparsity.units import expand, keep_largest_globally, keep_units, unit_scores, units_to_prune


class MagnitudePruner(GradualPruner):
    """Keeps the units with the largest scores, per matrix (`local`) or over all matrices (`global`).

    A unit is a weight, a block (its score is the mean) or an N:M group, i.e. M neighbours in a row of which the N
    smallest are pruned (its score is the sum of these N).
    """

    def choose(self, sparsity: float) -> dict[str, Tensor]:
        tile = self.section.tile
        scores = {}
        for name in self._parameters:
            # -1: pruned weights stay pruned, even if another weight's score is 0.
            scores[name] = self._score(name).masked_fill(~self.mask.tensors[name], -1.0)
        if self.section.prune_domain == "local":
            return {
                name: keep_units(score, tile, units_to_prune(sparsity, tile, score.numel()))
                for name, score in scores.items()
            }
        prune = units_to_prune(sparsity, tile, sum(score.numel() for score in scores.values()))
        cap = 1.0 if tile.zeros else self.section.max_sparsity_ratio_per_layer
        kept = keep_largest_globally({name: unit_scores(score, tile) for name, score in scores.items()}, prune, cap)
        return {name: expand(kept[name], score, tile) for name, score in scores.items()}
