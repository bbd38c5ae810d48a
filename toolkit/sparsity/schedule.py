"""Pruning schedules: sparsity as a pure function of the optimizer step. Does not import torch."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from toolkit.recipe import ResolvedPruner

# Progress from the initial to the final sparsity (0 to 1) after a fraction `t` of the ramp.
# `cubic` is Zhu and Gupta's (To prune, or not to prune, 2017, equation 1); the others are INC's, of the same names.
_SHAPES: dict[str, Callable[[float], float]] = {
    "cubic": lambda t: 1 - (1 - t) ** 3,
    "linear": lambda t: t,
    "cos": lambda t: 1 - math.cos(t * math.pi / 2),
    "cube": lambda t: t**3,
}


@dataclass(frozen=True)
class PruningSchedule:
    """Sparsity at each step of a ramp.

    Attributes:
        start: First step at which weights are pruned.
        end: Step at which the final sparsity is reached.
        frequency: Steps between two updates of the mask.
        initial: Sparsity at `start`.
        final: Sparsity from `end` on.
        shape: One of cubic, linear, cos, exp, cube.
    """

    start: int
    end: int
    frequency: int
    initial: float
    final: float
    shape: str = "cubic"

    @classmethod
    def from_pruner(cls, pruner: ResolvedPruner) -> "PruningSchedule":
        """Returns the schedule of a pruner of the recipe."""
        return cls(
            pruner.start_step,
            pruner.end_step,
            pruner.update_frequency_on_step,
            pruner.initial_sparsity,
            pruner.target_sparsity,
            pruner.sparsity_decay_type,
        )

    def sparsity(self, step: int) -> float:
        """Returns the fraction of zeros after the last update at or before `step`; 0 before `start`."""
        if step < self.start:
            return 0.0
        if step >= self.end:
            return self.final
        step -= (step - self.start) % self.frequency
        t = (step - self.start) / (self.end - self.start)
        if self.shape == "exp":  # as in INC: the density shrinks by the same factor at each step
            density = (1 - self.initial) * ((1 - self.final) / (1 - self.initial)) ** t
            return 1 - density
        return self.initial + (self.final - self.initial) * _SHAPES[self.shape](t)

    def updates_at(self, step: int) -> bool:
        """Returns whether the mask is updated before `step`: every `frequency` steps from `start`, and at `end`."""
        if step == self.end:
            return True
        return self.start <= step < self.end and (step - self.start) % self.frequency == 0


@dataclass(frozen=True)
class Rewinding:
    """Learning-rate rewinding at the mask updates of a ramp.

    Attributes:
        schedule: The ramp.
        cyclic: Whether the rate starts a new cycle at its peak; else it returns to its value at the start of the ramp.
    """

    schedule: PruningSchedule
    cyclic: bool
