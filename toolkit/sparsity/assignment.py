"""Assignment of prunable matrices to pruners, and the sparsity that each matrix can reach. Does not import torch."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from toolkit.core.errors import UserError
from toolkit.models.checkpoint import MIN_SPARSITY
from toolkit.recipe.pruning import ResolvedPruner, needs_gradients


def assign_matrices(pruners: Sequence[ResolvedPruner], names: Iterable[str], where: str) -> list[list[str]]:
    """Returns the weight names of each pruner, in the order of `names`.

    A pruner gets the matrices that match one of its `names` and none of its `exclude_names`. The only pruner without
    `names` gets the matrices that no other pruner selects.

    Args:
        pruners: The recipe's pruners, in their order.
        names: Names of all prunable weights, such as `bert.encoder.layer.0.attention.self.query.weight`.
        where: The recipe key to report in errors.

    Raises:
        UserError: An expression matches no matrix, two pruners select the same matrix, or a pruner gets no matrix.
    """
    names = list(names)
    selected = [[name for name in names if _matches(pruner.names, name)] for pruner in pruners]
    for pruner in pruners:
        for expression in pruner.names:
            if not any(re.search(expression, name) for name in names):
                raise UserError(
                    f"{expression!r} matches no prunable matrix",
                    where=f"{where}.pruners",
                    instead=f"a regular expression on names such as {names[0]}",
                )
    assigned = [
        [n for n in group if not _matches(p.exclude_names, n)] for p, group in zip(pruners, selected, strict=True)
    ]
    taken: dict[str, int] = {}
    for number, group in enumerate(assigned):
        for name in group:
            if name in taken:
                first, second = (_first_match(pruners[n].names, name) for n in (taken[name], number))
                raise UserError(
                    f"{name} is selected by pruners {taken[name] + 1} and {number + 1}: {first!r} and {second!r}",
                    where=f"{where}.pruners",
                    instead=f"exclude_names: [{re.escape(name)!r}] in one of them",
                )
            taken[name] = number
    for number, pruner in enumerate(pruners):
        if not pruner.names:
            assigned[number] = [n for n in names if n not in taken and not _matches(pruner.exclude_names, n)]
        if not assigned[number]:
            raise UserError(
                f"pruner {number + 1} gets no matrix: all are excluded or selected by other pruners",
                where=f"{where}.pruners",
                instead="fewer exclude_names, or remove this pruner",
            )
    return assigned


def _matches(expressions: Iterable[str], name: str) -> bool:
    return any(re.search(expression, name) for expression in expressions)


def _first_match(expressions: Iterable[str], name: str) -> str:
    return next(expression for expression in expressions if re.search(expression, name))


def reachable_sparsity(pruner: ResolvedPruner, shapes: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Returns weight name -> sparsity that a pruner can reach in this matrix, given its pattern.

    With prune_domain global this is the target itself, which only all matrices together have to meet.

    Args:
        pruner: The pruner.
        shapes: Weight name -> (rows, columns) of the pruner's matrices.

    Raises:
        UserError: The pattern does not divide a matrix, or a gradient-based pruner would prune before the first step.
    """
    # Falling back to magnitude scores would silently change the pruning criterion.
    at_once = pruner.initial_sparsity if pruner.end_step else pruner.target_sparsity
    if needs_gradients(pruner) and pruner.start_step == 0 and at_once > 0:
        raise UserError(
            f"{pruner.prune_type} needs gradients, but none are available before step 0",
            where="weight_compression",
            instead="start_step: 1, or initial_sparsity: 0 and an end_step after start_step",
        )
    tile = pruner.tile
    found = {}
    for name, shape in shapes.items():
        if not tile.divides(shape):
            raise UserError(
                f"pattern {pruner.pattern!r} does not divide {name} of shape {shape[0]}x{shape[1]}",
                where="weight_compression.pattern",
                instead="tile_pattern_1x1, or exclude_names for this matrix",
            )
        if tile.zeros:
            found[name] = tile.zeros / tile.columns
        elif pruner.prune_domain == "global":
            found[name] = pruner.target_sparsity
        else:
            blocks = math.prod(shape) // (tile.rows * tile.columns)
            found[name] = int(pruner.target_sparsity * blocks) / blocks
    return found


def require_common_ramp(ramps: Iterable[tuple[int, int, int]], where: str) -> None:
    """Checks that all pruners update their masks at the same steps, as learning-rate rewinding requires.

    Args:
        ramps: First step, last step and steps between updates of each pruner.
        where: The recipe key to report in errors.

    Raises:
        UserError: They differ.
    """
    if len(set(ramps)) > 1:
        raise UserError(
            "the pruners prune at different steps, so there is no common learning rate to rewind to",
            where=where,
            instead="the same start, end and frequency for all, or learning_rate_rewinding: false",
        )


def require_zeros(zeros: float, names: Sequence[str], where: str) -> None:
    """Checks that a pattern lock selects matrices that have a pattern.

    Args:
        zeros: Fraction of the matrices' weights that are zero.
        names: Names of the matrices.
        where: The recipe key to report in errors.

    Raises:
        UserError: The matrices are dense.
    """
    if zeros < MIN_SPARSITY:
        raise UserError(
            f"pattern_lock selects {len(names)} matrices without zeros, e.g. {names[0]}",
            where=f"{where}.pruners",
            instead="names of matrices that are already sparse",
        )


def require_end_within(end: float, length: float, where: str, unit: Literal["step", "epoch"] = "step") -> None:
    """Checks before training that the last pruning step of a ramp falls within the training.

    Args:
        end: Step or epoch at whose beginning the last mask update takes place.
        length: Length of the training in steps or epochs.
        where: The recipe key to report in errors.
        unit: Unit of `end` and `length`.

    Raises:
        UserError: The training ends before the ramp does.
    """
    if end >= length:
        raise UserError(
            f"the last pruning step is at the start of {unit} {end:g}, but the training has only {length:g} {unit}s "
            "(counted from 0)",
            where=where,
            instead=f"end_{unit} below {length:g}, or a longer training",
        )
