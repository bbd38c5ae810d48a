"""What training knows of pruning: one Protocol. Back ends choose the weights; the mask and its zeros are ours."""

import importlib
from typing import Protocol

import torch
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.recipe import Pruning, WeightCompression
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.schedule import PruningSchedule


class Sparsifier(Protocol):
    """Called by the trainer around each optimizer step; after it, pruned weights are exactly zero."""

    mask: SparsityMask

    def attach(self, matrices: dict[str, nn.Linear]) -> None:
        """Takes hold of the matrices (parameter name -> layer)."""

    def before_step(self, step: int) -> None:
        """Prunes further where the schedule says so; `step` counts optimizer steps from 0."""

    def after_optimizer_step(self) -> None:
        """Puts back to zero what the optimizer moved."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that resuming needs, as tensors."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes up where `state_dict` was taken."""


class PatternLock:
    """Keeps a given pattern: the paper's pattern lock (section 3)."""

    def __init__(self, mask: SparsityMask) -> None:
        self.mask = mask
        self._parameters: dict[str, Tensor] = {}

    def attach(self, matrices: dict[str, nn.Linear]) -> None:
        self._parameters = {name: matrices[name].weight for name in self.mask.tensors}
        self.after_optimizer_step()

    def before_step(self, step: int) -> None:
        """Nothing to prune: the pattern is fixed."""

    def after_optimizer_step(self) -> None:
        self.mask = self.mask.beside(self._parameters)  # training may have moved the model to a GPU
        self.mask.apply_(self._parameters)

    def state_dict(self) -> dict[str, Tensor]:
        return {}  # the pattern comes from the checkpoint that the stage starts from

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.after_optimizer_step()


class GradualPruner:
    """Gradual pruning by a schedule. A back end says which weights stay, in `choose`; the rest is here.

    Pruned weights are zero, so by magnitude they stay the smallest: the pattern only ever shrinks.
    """

    def __init__(self, section: WeightCompression) -> None:
        self.section = section.resolved()
        self.schedule = PruningSchedule.from_section(section)
        self.mask = SparsityMask({})
        self._parameters: dict[str, Tensor] = {}

    def choose(self, sparsity: float) -> dict[str, Tensor]:
        """Parameter name -> bool tensor of the weights to keep at this sparsity."""
        raise AssertionError("a back end defines it")

    def attach(self, matrices: dict[str, nn.Linear]) -> None:
        self._parameters = {name: module.weight for name, module in matrices.items()}
        self.mask = SparsityMask({n: torch.ones_like(p.data, dtype=torch.bool) for n, p in self._parameters.items()})

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        if self.schedule.updates_at(step):
            self.mask = self.mask.beside(self._parameters)
            self.mask = SparsityMask(self.choose(self.schedule.sparsity(step)))
            self.after_optimizer_step()

    def after_optimizer_step(self) -> None:
        self.mask = self.mask.beside(self._parameters)  # training may have moved the model to a GPU
        self.mask.apply_(self._parameters)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.mask.tensors)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mask = SparsityMask({name: state[name] for name in self._parameters})
        self.after_optimizer_step()


def make_sparsifier(section: Pruning) -> GradualPruner:
    """The back end that the recipe names, loaded only then.

    Raises:
        UserError: The back end cannot do the pattern.
    """
    module = importlib.import_module(f"toolkit.sparsity.{section.backend}")
    compression = section.approach.weight_compression.resolved()
    if not module.can_do(compression.pattern):
        raise UserError(
            f"{section.backend} cannot prune in pattern {compression.pattern!r}",
            where="student.pruning",
            instead="backend: inc (1x1, 4x1, N:M), or pattern: tile_pattern_1x1",
        )
    pruner: GradualPruner = module.Pruner(compression)
    return pruner
