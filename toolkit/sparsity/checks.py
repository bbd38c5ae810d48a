"""Sparsity metrics for the manifest, and the checks of a pruned model against its recipe."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from toolkit.core.artifacts import Check
from toolkit.recipe import ResolvedPruner
from toolkit.sparsity.assignment import reachable_sparsity
from toolkit.sparsity.mask import SparsityMask

_TOLERANCE = 0.001  # 0.1 percentage points


def sparsity_metrics(mask: SparsityMask) -> dict[str, Any]:
    """Returns the sparsity of all matrices together and of each matrix."""
    return {"sparsity": mask.sparsity(), "per_matrix": mask.per_matrix()}


def check_locked(mask: SparsityMask, matrices: Mapping[str, nn.Linear]) -> Check:
    """Returns the check that every weight outside the mask is exactly zero."""
    outside = sum(mask.violations({name: module.weight for name, module in matrices.items()}).values())
    return Check(name="non-zero weights outside the mask", ok=outside == 0, measured=float(outside), limit=0.0)


def check_target(pruner: ResolvedPruner, mask: SparsityMask) -> Check:
    """Returns the check that a pruner's matrices, each or all together, have the target sparsity.

    Args:
        pruner: The pruner with its target.
        mask: The mask of this pruner's matrices only.
    """
    if pruner.prune_domain == "local" or pruner.tile.zeros:
        shapes = {name: (int(kept.shape[0]), int(kept.shape[1])) for name, kept in mask.tensors.items()}
        targets = reachable_sparsity(pruner, shapes)
        off = max(abs(sparsity - targets[name]) for name, sparsity in mask.per_matrix().items())
        where = "each matrix"
    else:  # single matrices may deviate
        off, where = abs(mask.sparsity() - pruner.target_sparsity), "all matrices together"
    name = f"{pruner.prune_type}: sparsity of {where}, off {pruner.target_sparsity:g} by"
    return Check(name=name, ok=off <= _TOLERANCE, measured=off, limit=_TOLERANCE)
