"""What pruning comes to: figures for the manifest, and the checks that hold a stage to its recipe."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from toolkit.core.artifacts import Check
from toolkit.recipe import ResolvedPruner
from toolkit.sparsity.assignment import reachable_sparsity
from toolkit.sparsity.mask import SparsityMask

_TOLERANCE = 0.001  # a tenth of a point


def sparsity_metrics(mask: SparsityMask) -> dict[str, Any]:
    """Sparsity of all matrices together and of each."""
    return {"sparsity": mask.sparsity(), "per_matrix": mask.per_matrix()}


def check_locked(mask: SparsityMask, matrices: Mapping[str, nn.Linear]) -> Check:
    """No weight outside the pattern differs from zero."""
    outside = sum(mask.violations({name: module.weight for name, module in matrices.items()}).values())
    return Check(name="non-zero weights outside the mask", ok=outside == 0, measured=float(outside), limit=0.0)


def check_target(pruner: ResolvedPruner, mask: SparsityMask) -> Check:
    """A pruner's matrices have the sparsity that it was asked for: each of them, or all together.

    Args:
        pruner: What was asked for.
        mask: The pattern of its matrices, and of no others.
    """
    if pruner.prune_domain == "local" or pruner.tile.zeros:
        shapes = {name: (int(kept.shape[0]), int(kept.shape[1])) for name, kept in mask.tensors.items()}
        targets = reachable_sparsity(pruner, shapes)
        off = max(abs(share - targets[name]) for name, share in mask.per_matrix().items())
        where = "each matrix"
    else:  # matrices may differ
        off, where = abs(mask.sparsity() - pruner.target_sparsity), "all matrices together"
    name = f"{pruner.prune_type}: sparsity of {where}, off {pruner.target_sparsity:g} by"
    return Check(name=name, ok=off <= _TOLERANCE, measured=off, limit=_TOLERANCE)
