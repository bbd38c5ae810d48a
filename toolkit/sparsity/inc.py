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
from torch.nn.utils import skip_init

from toolkit.errors import UserError
from toolkit.recipe import WeightCompression
from toolkit.sparsity.sparsifier import GradualPruner


def can_do(pattern: str) -> bool:
    """1x1, blocks such as 4x1, and N:M (N zeros in every M neighbours of a row)."""
    return _blocks(pattern) is not None or _zeros(pattern) is not None


class Pruner(GradualPruner):
    """Asks an INC pruner over the same layers for its masks."""

    def attach(self, matrices: dict[str, nn.Linear]) -> None:
        super().attach(matrices)
        _must_fit(self.section, {name: tuple(p.shape) for name, p in self._parameters.items()})
        # INC finds layers by walking a model and leaves the last one out as a head: it gets the layers alone, and one
        # more at the end to leave out. Module names cannot hold dots.
        layers = nn.ModuleDict({name.replace(".", "/"): module for name, module in matrices.items()})
        layers["left out"] = skip_init(nn.Linear, 1, 1)  # draws no random number
        self._inc = _inc_pruner(layers, self.section)

    def choose(self, sparsity: float) -> dict[str, Tensor]:
        inc = self._inc
        inc.masks = {name.replace(".", "/"): kept.float() for name, kept in self.mask.tensors.items()}
        inc.pattern.keep_mask_layers = {}  # the layers INC found full at earlier updates: lost when a run is resumed
        inc.criterion.on_step_begin()
        masks = inc.pattern.get_masks(inc.criterion.scores, sparsity, inc.masks)
        return {name: masks[name.replace(".", "/")].bool().view_as(p) for name, p in self._parameters.items()}


def _blocks(pattern: str) -> tuple[int, int] | None:
    """(rows, columns) of a tile pattern."""
    found = re.fullmatch(r"tile_pattern_([1-9]\d*)x([1-9]\d*)", pattern)
    return (int(found[1]), int(found[2])) if found else None


def _zeros(pattern: str) -> tuple[int, int] | None:
    """(N, M) of an N:M pattern."""
    found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", pattern)
    return (int(found[1]), int(found[2])) if found and int(found[1]) < int(found[2]) else None


def _must_fit(section: WeightCompression, shapes: dict[str, tuple[int, ...]]) -> None:
    """INC would leave matrices that the pattern does not divide dense, or fail somewhere inside."""
    where = "student.pruning.approach.weight_compression"
    zeros = _zeros(section.pattern)
    if zeros is not None and section.target_sparsity > zeros[0] / zeros[1]:
        raise UserError(
            f"{section.pattern} cannot reach a sparsity of {section.target_sparsity:g}",
            where=where,
            instead=f"target_sparsity: {zeros[0] / zeros[1]:g}",
        )
    rows, columns = (1, zeros[1]) if zeros else _blocks(section.pattern) or (1, 1)
    for name, shape in shapes.items():
        if shape[0] % rows or shape[1] % columns:
            raise UserError(
                f"pattern {section.pattern!r} does not divide {name} of shape {shape}",
                where=where,
                instead="pattern: tile_pattern_1x1",
            )


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
