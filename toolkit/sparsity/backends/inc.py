"""Intel Neural Compressor as the one who chooses: its criteria and patterns, our schedule and our zeros.

INC 3.7's own hooks keep their state in no checkpoint and its `cube` is not Zhu and Gupta's cubic, so only its judgement
is used: scores from its criterion, masks from its pattern. Group lasso's penalty is ours as well: that of INC 1.x, by
the norm of a block's weights. INC 3.7 divides by the norm of its gradient, which throws blocks without one away.
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

# The recipe's words -> INC's criteria. Group lasso prunes by magnitude what its penalty has made small.
_CRITERIA = {"basic_magnitude": "magnitude", "group_lasso": "magnitude", "gradient_sensitivity": "gradient"}


class INCPruner(GradualPruner):
    """Asks an INC pruner over the same layers for its masks.

    By gradient_sensitivity a pruned weight may come back, at zero: its gradient counts like any other.
    """

    def attach(self, matrices: dict[str, nn.Linear]) -> None:
        super().attach(matrices)
        # INC finds layers by walking a model and leaves the last one out as a head: it gets the layers alone, and one
        # more at the end to leave out. Module names cannot hold dots.
        layers = nn.ModuleDict({_key(name): module for name, module in matrices.items()})
        layers["left out"] = skip_init(nn.Linear, 1, 1)  # draws no random number
        self._inc = _inc_pruner(layers, self.section)

    def choose(self, sparsity: float) -> dict[str, Tensor]:
        inc = self._inc
        inc.pattern.keep_mask_layers = {}  # the layers INC found full at earlier updates: lost when a run is resumed
        inc.criterion.on_step_begin()
        if needs_gradients(self.section):
            inc.criterion.scores = {_key(name): self._reduced(score, name) for name, score in self._scores.items()}
        if self.section.tile.zeros:
            sparsity += 1e-9  # a recipe's 0.333333333 means all groups of 1:3
        names = list(self._parameters)
        groups = [names] if self.section.prune_domain == "global" else [[name] for name in names]
        kept: dict[str, Tensor] = {}
        for group in groups:  # as INC does it; one at a time needs less memory
            scores = {_key(n): _break_ties(inc.criterion.scores[_key(n)], self.mask.tensors[n]) for n in group}
            before = {_key(n): self.mask.tensors[n].float() for n in group}
            masks = inc.pattern.get_masks(scores, sparsity, before)
            kept |= {n: masks[_key(n)].bool().view_as(self._parameters[n]) for n in group}
        inc.criterion.scores = {}  # as large as the matrices; made anew at the next update
        return kept

    @torch.no_grad()
    def before_optimizer_step(self) -> None:
        """Scores by INC's criterion."""
        if not needs_gradients(self.section):
            super().before_optimizer_step()
            return
        self._move_scores_to_weights()
        criterion = self._inc.criterion
        # Of single weights: INC keeps those of blocks, which are the means of their weights'.
        pattern, criterion.pattern = criterion.pattern, None
        before = self._scores or {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        criterion.scores = {_key(name): score for name, score in before.items()}
        criterion.on_before_optimizer_step()
        criterion.pattern = pattern
        self._scores = {name: criterion.scores[_key(name)] for name in self._parameters}

    def _reduced(self, score: Tensor, name: str) -> Tensor:
        """One score for each block, by INC's own rule."""
        pattern = self._inc.pattern
        return pattern.reduce_score(score, _key(name)) if hasattr(pattern, "reduce_score") else score


def _break_ties(score: Tensor, kept: Tensor) -> Tensor:
    """Scores without ties, float64, in the order of `score` and among equals in the order in which they lie.

    INC prunes every weight that ties with the last one to go; gradients in bfloat16 have few values, and many ties.

    Args:
        score: >= 0, float32: of weights [rows, columns], or of blocks.
        kept: The mask so far, bool, [rows, columns]. Zeros of what is pruned already are less than other zeros.
    """
    blocks = kept[:: kept.shape[0] // score.shape[0], :: kept.shape[1] // score.shape[1]]
    order = torch.linspace(1, 2, score.numel(), dtype=torch.float64, device=score.device).view_as(score)
    zeros = torch.where(blocks, order * 1e-60, order * 1e-70)  # less than any score of float32
    # Two different values of float32 are 2**-24 of their size apart, or more: they keep their order.
    return torch.where(score == 0, zeros, score.double() * (1 + order * 2.0**-26))


def _key(name: str) -> str:
    return name.replace(".", "/")


def _inc_pruner(layers: nn.ModuleDict, section: ResolvedPruner) -> Any:
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    from neural_compressor.compression.pruner.pruning import BasicPruning
    from neural_compressor.compression.pruner.utils import process_config
    from neural_compressor.config import WeightPruningConfig

    logging.getLogger("neural_compressor").setLevel(logging.WARNING)  # it reports every update
    config = WeightPruningConfig(
        pruning_configs=[{}],  # fresh lists: INC shares and mutates its defaults
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
