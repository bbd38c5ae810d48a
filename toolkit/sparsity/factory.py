"""Builds the pruners of a recipe, by the back end that it names."""

from collections.abc import Callable

from torch import nn

from toolkit.core.errors import UserError
from toolkit.recipe import LOCK, Pruning, ResolvedPruner, StudentPruning
from toolkit.recipe.pruning import Backend, unsupported
from toolkit.sparsity.assignment import assign_matrices, require_zeros
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.pruners import GradualPruner, PatternLock, PrunerGroup


def _magnitude() -> type[GradualPruner]:
    from toolkit.sparsity.backends.magnitude import MagnitudePruner

    return MagnitudePruner


def _inc() -> type[GradualPruner]:
    from toolkit.sparsity.backends.inc import INCPruner

    return INCPruner


def _nncf() -> type[GradualPruner]:
    from toolkit.sparsity.backends.nncf import NNCFPruner

    return NNCFPruner


# Back end -> pruner class; the back end's library is imported only when it is used.
_BACKENDS: dict[Backend, Callable[[], type[GradualPruner]]] = {"magnitude": _magnitude, "inc": _inc, "nncf": _nncf}


def make_sparsifier(pruning: Pruning, matrices: dict[str, nn.Linear], steps_per_epoch: int) -> PrunerGroup:
    """Returns the recipe's pruners, each attached to the matrices that it selects.

    Args:
        pruning: The recipe's pruning section.
        matrices: Parameter name -> layer of all prunable matrices.
        steps_per_epoch: Optimizer steps per epoch; converts ramps given in epochs.

    Raises:
        UserError: The back end does not support a setting, the names do not fit the model, a pattern lock selects
            dense matrices, or a ramp in steps and epochs ends before it begins.
    """
    where = "pruning.approach.weight_compression"
    sections = pruning.approach.weight_compression.resolve(steps_per_epoch)
    pruners: list[PatternLock | GradualPruner] = []
    for section, names in zip(sections, assign_matrices(sections, matrices, where), strict=True):
        if section.prune_type != LOCK and section.end_step < section.start_step:
            raise UserError(
                f"the ramp would end before it begins: at step {section.end_step}, and at {section.start_step}",
                where=where,
                instead="start and end in the same unit, steps or epochs",
            )
        selected = {name: matrices[name] for name in names}
        pruner = _lock(selected, where) if section.prune_type == LOCK else _gradual(pruning, section, where)
        pruner.attach(selected)
        pruners.append(pruner)
    return PrunerGroup(pruners, pruning.learning_rate_rewinding)


def _lock(matrices: dict[str, nn.Linear], where: str) -> PatternLock:
    mask = SparsityMask.from_zeros({name: module.weight for name, module in matrices.items()})
    require_zeros(mask.sparsity(), list(matrices), where)
    return PatternLock(mask)


def _gradual(pruning: Pruning, section: ResolvedPruner, where: str) -> GradualPruner:
    if isinstance(pruning, StudentPruning) and pruning.reconstruction:
        return GradualPruner(section)  # its mask is set by `training.reconstruction`
    problem = unsupported(pruning.backend, section)
    if problem:
        raise UserError(f"{pruning.backend} does not support {problem}", where=where, instead="backend: inc")
    return _BACKENDS[pruning.backend]()(section)
