"""Intel Neural Compressor as the one who chooses: its criterion and patterns, our schedule and our zeros.

INC 3.7's own hooks keep their state in no checkpoint and its `cube` is not Zhu and Gupta's cubic, so only its judgement
is used: scores from its criterion, masks from its pattern.
"""

import logging
import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.recipe import WeightCompression
from toolkit.sparsity.sparsifier import GradualPruner


def can_do(pattern: str) -> bool:
    """1x1, blocks such as 4x1, and N:M."""
    return re.fullmatch(r"tile_pattern_\d+x\d+|\d+:\d+", pattern) is not None


class Pruner(GradualPruner):
    """Asks an INC pruner over the same layers for its masks."""

    def attach(self, matrices: dict[str, nn.Linear]) -> None:
        super().attach(matrices)
        # INC finds layers by walking a model and leaves the last one out as a head: it gets the layers alone, and one
        # more at the end to leave out. Module names cannot hold dots.
        layers = nn.ModuleDict({name.replace(".", "/"): module for name, module in matrices.items()})
        layers["left out"] = nn.Linear(1, 1)
        self._inc = _inc_pruner(layers, self.section)

    def choose(self, step: int, sparsity: float) -> dict[str, Tensor]:
        inc = self._inc
        inc.masks = {name.replace(".", "/"): kept.float() for name, kept in self.mask.tensors.items()}
        inc.criterion.on_step_begin()
        masks = inc.pattern.get_masks(inc.criterion.scores, sparsity, inc.masks)
        return {name: masks[name.replace(".", "/")].bool().view_as(p) for name, p in self._parameters.items()}


def _inc_pruner(layers: nn.ModuleDict, section: WeightCompression) -> Any:
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
        pruning_type="magnitude",
        pattern=section.pattern.removeprefix("tile_pattern_"),
        pruning_scope=section.prune_domain,
        start_step=0,
        end_step=1,
        max_sparsity_ratio_per_op=0.999,  # INC's default of 0.98 would cap a global domain
    )
    with torch.no_grad():
        return BasicPruning(process_config(config), layers).pruners[0]
