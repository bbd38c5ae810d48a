"""INC back end: scores and masks come from INC's criteria and patterns; schedule and masking from `GradualPruner`.

INC 3.7's own hooks are not used, because they do not save their state in checkpoints and their `cube` schedule is not
Zhu and Gupta's cubic. The group lasso penalty is also our own: it divides each block by the norm of its weights, as in
INC 1.x. INC 3.7 divides by the norm of the block's gradient, which eliminates blocks without a gradient.
"""

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from toolkit.recipe import ResolvedPruner
from toolkit.recipe.pruning import needs_gradients
from toolkit.sparsity.pruners import GradualPruner

# prune_type -> INC criterion. Group lasso prunes by magnitude the blocks that its penalty has made small.
_CRITERIA = {"basic_magnitude": "magnitude", "group_lasso": "magnitude", "gradient_sensitivity": "gradient"}


class INCPruner(GradualPruner):
    """Takes its masks from an INC pruner over the same layers.

    With gradient_sensitivity a pruned weight may be kept again (starting at zero), because its gradient still counts.
    """

    def attach(self, matrices: dict[str, nn.Linear]) -> None:
        super().attach(matrices)
        # INC collects the linear layers of a model and skips the last one, which it takes for the head. It therefore
        # gets only the layers to prune and a dummy at the end. Module names must not contain dots.
        layers = nn.ModuleDict({_key(name): module for name, module in matrices.items()})
        layers["left out"] = skip_init(nn.Linear, 1, 1)  # draws no random number
        self._inc = _inc_pruner(layers, self.section)

    def choose(self, sparsity: float) -> dict[str, Tensor]:
        inc = self._inc
        inc.pattern.keep_mask_layers = {}  # layers at the limit at earlier updates; lost on resume
        inc.criterion.on_step_begin()
        if needs_gradients(self.section):
            inc.criterion.scores = {_key(name): self._reduced(score, name) for name, score in self._scores.items()}
        if self.section.tile.zeros:
            sparsity += 1e-9  # so that 0.333333333 in a recipe covers all groups of 1:3
        names = list(self._parameters)
        groups = [names] if self.section.prune_domain == "global" else [[name] for name in names]
        kept: dict[str, Tensor] = {}
        for group in groups:  # same result as in INC; matrix by matrix needs less memory
            scores = {_key(n): _break_ties(inc.criterion.scores[_key(n)], self.mask.tensors[n]) for n in group}
            before = {_key(n): self.mask.tensors[n].float() for n in group}
            masks = inc.pattern.get_masks(scores, sparsity, before)
            kept |= {n: masks[_key(n)].bool().view_as(self._parameters[n]) for n in group}
        inc.criterion.scores = {}  # as large as the matrices; recomputed at the next update
        return kept

    @torch.no_grad()
    def before_optimizer_step(self) -> None:
        """Updates gradient-based scores with INC's criterion."""
        if not needs_gradients(self.section):
            super().before_optimizer_step()
            return
        self._move_scores_to_weights()
        criterion = self._inc.criterion
        # Without its pattern the criterion scores single weights; INC itself keeps block means.
        pattern, criterion.pattern = criterion.pattern, None
        before = self._scores or {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        criterion.scores = {_key(name): score for name, score in before.items()}
        criterion.on_before_optimizer_step()
        criterion.pattern = pattern
        self._scores = {name: criterion.scores[_key(name)] for name in self._parameters}

    def _reduced(self, score: Tensor, name: str) -> Tensor:
        """Returns one score per block, reduced by INC's own rule."""
        pattern = self._inc.pattern
        return pattern.reduce_score(score, _key(name)) if hasattr(pattern, "reduce_score") else score


def _break_ties(score: Tensor, kept: Tensor) -> Tensor:
    """Returns distinct float64 scores in the order of `score`; equal scores are ordered by position.

    INC prunes all weights that tie at the threshold. bfloat16 gradients have few distinct values and thus many ties.

    Args:
        score: Scores >= 0, float32, of weights [rows, columns] or of blocks.
        kept: Current mask, bool, [rows, columns]. Zero scores of pruned weights sort before other zero scores.
    """
    blocks = kept[:: kept.shape[0] // score.shape[0], :: kept.shape[1] // score.shape[1]]
    order = torch.linspace(1, 2, score.numel(), dtype=torch.float64, device=score.device).view_as(score)
    zeros = torch.where(blocks, order * 1e-60, order * 1e-70)  # smaller than any positive float32
    # Distinct float32 values differ by at least 2**-24 of their magnitude, so they keep their order.
    return torch.where(score == 0, zeros, score.double() * (1 + order * 2.0**-26))


def _key(name: str) -> str:
    return name.replace(".", "/")


def _inc_pruner(layers: nn.ModuleDict, section: ResolvedPruner) -> Any:
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    from neural_compressor.compression.pruner.pruning import BasicPruning
    from neural_compressor.compression.pruner.utils import process_config
    from neural_compressor.config import WeightPruningConfig

    logging.getLogger("neural_compressor").setLevel(logging.WARNING)  # INC logs every update
    config = WeightPruningConfig(
        pruning_configs=[{}],  # new lists: INC shares and mutates its defaults
        op_names=[".*"],
        excluded_op_names=[],
        target_sparsity=section.target_sparsity,
        pruning_type=_CRITERIA.get(section.prune_type, section.prune_type),
        pattern=section.pattern.removeprefix("tile_pattern_"),
        pruning_scope=section.prune_domain,
        start_step=0,
        end_step=1,
        max_sparsity_ratio_per_op=section.max_sparsity_ratio_per_layer,
    )
    with torch.no_grad():
        return BasicPruning(process_config(config), layers).pruners[0]
