"""The `Sparsifier` protocol and the pruners that implement it. Back ends select the weights; masking is done here."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from toolkit.recipe import ResolvedPruner
from toolkit.recipe.pruning import RewindingChoice, needs_gradients
from toolkit.sparsity.assignment import reachable_sparsity, require_common_ramp
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.schedule import PruningSchedule, Rewinding
from toolkit.sparsity.scores import SCORES, group_lasso_gradient

_SCORE = "score/"  # prefix of a weight's score in a state dict


class Sparsifier(Protocol):
    """Pruning hooks that the trainer calls around each optimizer step; pruned weights are exactly zero afterwards."""

    @property
    def mask(self) -> SparsityMask:
        """The mask of all matrices that are pruned or locked."""

    def rewinding(self) -> Rewinding | None:
        """Returns how the learning rate is rewound; None without rewinding."""

    def before_step(self, step: int) -> bool:
        """Updates the mask if one is scheduled; returns whether. `step` counts optimizer steps from 0."""

    def before_optimizer_step(self) -> None:
        """Reads or changes the gradients, which are fully accumulated at this point."""

    def after_optimizer_step(self) -> None:
        """Resets pruned weights that the optimizer changed to zero."""

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the state needed to resume, as tensors: packed masks and unchanged scores."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores a state that `state_dict` returned."""


class PatternLock:
    """The paper's pattern lock (section 3): keeps a given mask throughout training."""

    def __init__(self, mask: SparsityMask) -> None:
        self.mask = mask
        self._parameters: dict[str, Tensor] = {}

    def attach(self, matrices: dict[str, nn.Linear]) -> None:
        """Attaches the lock to the matrices (parameter name -> layer) and applies the mask."""
        self._parameters = {name: matrices[name].weight for name in self.mask.tensors}
        self.after_optimizer_step()

    def rewinding(self) -> Rewinding | None:
        return None

    def before_step(self, step: int) -> bool:
        """Does nothing: the mask is fixed."""
        return False

    def before_optimizer_step(self) -> None:
        """Does nothing: the mask is fixed."""

    def after_optimizer_step(self) -> None:
        self.mask = self.mask.on_devices_of(self._parameters)  # training may have moved the model to a GPU
        self.mask.apply_(self._parameters)

    def state_dict(self) -> dict[str, Tensor]:
        return {}  # the mask comes from the checkpoint that the stage starts from

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.after_optimizer_step()


class GradualPruner:
    """Gradual pruning by a schedule. A back end implements only `choose`, which selects the weights to keep.

    Attributes:
        section: The pruner's settings in the recipe.
        schedule: The sparsity at each step.
        mask: The mask of the pruner's matrices.
    """

    def __init__(self, section: ResolvedPruner) -> None:
        self.section = section
        self.schedule = PruningSchedule.from_pruner(section)
        self.mask = SparsityMask({})
        self._parameters: dict[str, Tensor] = {}
        self._scores: dict[str, Tensor] = {}  # gradient-based prune types only; empty before the first gradient

    def choose(self, sparsity: float) -> dict[str, Tensor]:
        """Returns parameter name -> bool tensor, True for the weights to keep at this sparsity (> 0)."""
        raise AssertionError("must be implemented by a back end")

    def attach(self, matrices: dict[str, nn.Linear]) -> None:
        """Attaches the pruner to the matrices (parameter name -> layer).

        Raises:
            UserError: The pruner's settings are impossible for these matrices.
        """
        self._parameters = {name: module.weight for name, module in matrices.items()}
        reachable_sparsity(self.section, {n: (p.shape[0], p.shape[1]) for n, p in self._parameters.items()})
        self.mask = SparsityMask({n: torch.ones_like(p.data, dtype=torch.bool) for n, p in self._parameters.items()})

    def rewinding(self) -> Rewinding | None:
        return None  # depends on all pruners: `PrunerGroup` decides

    @torch.no_grad()
    def before_step(self, step: int) -> bool:
        sparsity = self.schedule.sparsity(step)
        if not self.schedule.updates_at(step) or sparsity == 0:
            return False
        assert self._scores or not needs_gradients(self.section), "no gradient yet; `attach` rejects such schedules"
        self.mask = self.mask.on_devices_of(self._parameters)
        self._move_scores_to_weights()
        self.mask = SparsityMask(self.choose(sparsity))
        self.after_optimizer_step()
        return True

    @torch.no_grad()
    def before_optimizer_step(self) -> None:
        """Updates gradient-based scores; for group lasso, adds the gradient of the penalty."""
        kind = self.section.prune_type
        self._move_scores_to_weights()
        for name, parameter in self._parameters.items():
            if needs_gradients(self.section):
                self._scores[name] = SCORES[kind](parameter, parameter.grad, self._scores.get(name))
            elif kind == "group_lasso":
                assert parameter.grad is not None, name
                parameter.grad += self.section.alpha * group_lasso_gradient(parameter, self.section.tile)

    def after_optimizer_step(self) -> None:
        self.mask = self.mask.on_devices_of(self._parameters)  # training may have moved the model to a GPU
        self.mask.apply_(self._parameters)

    def state_dict(self) -> dict[str, Tensor]:
        masks = {name: torch.from_numpy(bits) for name, bits in self.mask.bits().items()}
        return masks | {f"{_SCORE}{name}": score for name, score in self._scores.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        self.mask = SparsityMask.from_bits({name: state[name].cpu().numpy() for name in shapes}, shapes)
        self._scores = {n: state[f"{_SCORE}{n}"] for n in self._parameters if f"{_SCORE}{n}" in state}
        self.after_optimizer_step()

    def _move_scores_to_weights(self) -> None:
        """Moves the scores to the devices of the weights. A checkpoint is loaded on the CPU, before the model moves."""
        self._scores = {name: score.to(self._parameters[name].device) for name, score in self._scores.items()}

    def _score(self, name: str) -> Tensor:
        """Returns the importance scores (>= 0) of a matrix, in its shape; the smallest are pruned first."""
        if needs_gradients(self.section):
            return self._scores[name]
        return SCORES[self.section.prune_type](self._parameters[name].detach(), None, None)


class PrunerGroup:
    """A group of pruners and pattern locks over disjoint matrices; behaves like a single `Sparsifier`.

    Attributes:
        pruners: The pruners and locks, already attached.
        rewinding_choice: Whether and how the learning rate is rewound at mask updates.
    """

    def __init__(self, pruners: "Sequence[PatternLock | GradualPruner]", rewinding: RewindingChoice = False) -> None:
        self.pruners = tuple(pruners)
        self.rewinding_choice = rewinding

    @property
    def mask(self) -> SparsityMask:
        return SparsityMask({name: kept for pruner in self.pruners for name, kept in pruner.mask.tensors.items()})

    @property
    def pruners_with_schedule(self) -> list[GradualPruner]:
        """The gradual pruners, without the pattern locks."""
        return [pruner for pruner in self.pruners if isinstance(pruner, GradualPruner)]

    def rewinding(self) -> Rewinding | None:
        """Returns how the learning rate is rewound; None without rewinding.

        Raises:
            UserError: The pruners update their masks at different steps.
        """
        schedules = [pruner.schedule for pruner in self.pruners_with_schedule]
        if not self.rewinding_choice or not schedules:
            return None
        require_common_ramp([(s.start, s.end, s.frequency) for s in schedules], "pruning")
        return Rewinding(schedules[0], cyclic=self.rewinding_choice == "cyclic")

    def before_step(self, step: int) -> bool:
        return any(
            [pruner.before_step(step) for pruner in self.pruners]
        )  # a list, so that `any` does not skip a pruner

    def before_optimizer_step(self) -> None:
        for pruner in self.pruners:
            pruner.before_optimizer_step()

    def after_optimizer_step(self) -> None:
        for pruner in self.pruners:
            pruner.after_optimizer_step()

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value for pruner in self.pruners for name, value in pruner.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for pruner in self.pruners:
            pruner.load_state_dict(state)
