"""Which matrices each pruner gets, what it can do with them, and how sparse they become. Loads no torch."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from toolkit.core.errors import UserError
from toolkit.recipe.pruning import ResolvedPruner, needs_gradients


def assign_matrices(pruners: Sequence[ResolvedPruner], names: Iterable[str], where: str) -> list[list[str]]:
    """Weight names of each pruner, in the order of `names`.

    A pruner gets what one of its `names` is found in, less what one of its `exclude_names` is found in; the one pruner
    without `names` gets what no other names.

    Args:
        pruners: As the recipe has them.
        names: Of all prunable weights, such as `bert.encoder.layer.0.attention.self.query.weight`.
        where: The recipe's key, for messages.

    Raises:
        UserError: An expression matches nothing, a matrix is named twice, or a pruner gets nothing.
    """
    names = list(names)
    named = [[name for name in names if _found(pruner.names, name)] for pruner in pruners]
    for pruner in pruners:
        for expression in pruner.names:
            if not any(re.search(expression, name) for name in names):
                raise UserError(
                    f"{expression!r} matches no prunable matrix",
                    where=f"{where}.pruners",
                    instead=f"a regular expression on names such as {names[0]}",
                )
    mine = [[n for n in group if not _found(p.exclude_names, n)] for p, group in zip(pruners, named, strict=True)]
    taken: dict[str, int] = {}
    for number, group in enumerate(mine):
        for name in group:
            if name in taken:
                first, second = (_first(pruners[n].names, name) for n in (taken[name], number))
                raise UserError(
                    f"{name} is named by pruners {taken[name] + 1} and {number + 1}: {first!r} and {second!r}",
                    where=f"{where}.pruners",
                    instead=f"exclude_names: [{re.escape(name)!r}] in one of them",
                )
            taken[name] = number
    for number, pruner in enumerate(pruners):
        if not pruner.names:
            mine[number] = [n for n in names if n not in taken and not _found(pruner.exclude_names, n)]
        if not mine[number]:
            raise UserError(
                f"pruner {number + 1} gets no matrix: all are excluded, or named by others",
                where=f"{where}.pruners",
                instead="fewer exclude_names, or one pruner less",
            )
    return mine


def _found(expressions: Iterable[str], name: str) -> bool:
    return any(re.search(expression, name) for expression in expressions)


def _first(expressions: Iterable[str], name: str) -> str:
    return next(expression for expression in expressions if re.search(expression, name))


def reachable_sparsity(pruner: ResolvedPruner, shapes: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Weight name -> sparsity that the pattern leads to; with prune_domain global, only the whole is held to it.

    Raises:
        UserError: The pattern does not divide a matrix, or gradients should decide before there is one.
    """
    # Falling back on magnitudes would prune by a rule that nobody asked for.
    at_once = pruner.initial_sparsity if pruner.end_step else pruner.target_sparsity
    if needs_gradients(pruner) and pruner.start_step == 0 and at_once > 0:
        raise UserError(
            f"{pruner.prune_type} goes by gradients, and there is none before step 0",
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


def require_end_within(end: float, length: float, where: str, unit: Literal["step", "epoch"] = "step") -> None:
    """Refuses a ramp whose last pruning comes after the training; before hours are spent on it.

    Args:
        end: Step or epoch at whose beginning the last pruning takes place.
        length: Steps or epochs of the training.
        where: The recipe's key, for messages.
        unit: What both are counted in.

    Raises:
        UserError: The training ends first.
    """
    if end >= length:
        raise UserError(
            f"the last pruning is at the beginning of {unit} {end:g}, but the training has {length:g} {unit}s, "
            "counted from 0",
            where=where,
            instead=f"end_{unit}: {length // 2:g}, or a longer training",
        )
