"""What training knows of pruning: one Protocol. Back ends choose the weights; the mask and its zeros are ours."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from toolkit.core.errors import UserError
from toolkit.models.checkpoint import MIN_SPARSITY
from toolkit.recipe import LOCK, Pruning, ResolvedPruner
from toolkit.recipe.pruning import Backend, needs_gradients, unsupported
from toolkit.sparsity.assignment import assign_matrices, reachable_sparsity
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.schedule import PruningSchedule
from toolkit.sparsity.scores import SCORES, group_lasso_gradient

_SCORE = "score/"  # before a weight's name: its score in a state dict


class Sparsifier(Protocol):
    """Called by the trainer around each optimizer step; after it, pruned weights are exactly zero."""

    @property
    def mask(self) -> SparsityMask:
        """The pattern of all matrices that are pruned or locked."""

    def rewinding_schedule(self) -> PruningSchedule | None:
        """The schedule along which the learning rate is rewound; None: it is not."""

    def before_step(self, step: int) -> bool:
        """Prunes further where the schedule says so; `step` counts optimizer steps from 0. True: it has chosen anew."""

    def before_optimizer_step(self) -> None:
        """Looks at the gradients, which are whole now."""

    def after_optimizer_step(self) -> None:
        """Puts back to zero what the optimizer moved."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that resuming needs, as tensors: masks as bits, scores as they are."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes up where `state_dict` was taken."""


class PatternLock:
    """Keeps a given pattern: the paper's pattern lock (section 3)."""

    def __init__(self, mask: SparsityMask) -> None:
        self.mask = mask
        self._parameters: dict[str, Tensor] = {}

    def attach(self, matrices: dict[str, nn.Linear]) -> None:
        """Takes hold of the matrices (parameter name -> layer)."""
        self._parameters = {name: matrices[name].weight for name in self.mask.tensors}
        self.after_optimizer_step()

    def rewinding_schedule(self) -> PruningSchedule | None:
        return None

    def before_step(self, step: int) -> bool:
        """Nothing to prune: the pattern is fixed."""
        return False

    def before_optimizer_step(self) -> None:
        """Nothing to learn from gradients: the pattern is fixed."""

    def after_optimizer_step(self) -> None:
        self.mask = self.mask.on_devices_of(self._parameters)  # training may have moved the model to a GPU
        self.mask.apply_(self._parameters)

    def state_dict(self) -> dict[str, Tensor]:
        return {}  # the pattern comes from the checkpoint that the stage starts from

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.after_optimizer_step()


class GradualPruner:
    """Gradual pruning by a schedule. A back end says which weights stay, in `choose`; the rest is here.

    Attributes:
        section: What the recipe asks of this pruner.
        schedule: Its sparsity over the steps.
        mask: The pattern of its matrices.
    """

    def __init__(self, section: ResolvedPruner) -> None:
        self.section = section
        self.schedule = PruningSchedule.from_pruner(section)
        self.mask = SparsityMask({})
        self._parameters: dict[str, Tensor] = {}
        self._scores: dict[str, Tensor] = {}  # of the prune types that go by gradients; empty before the first one

    def choose(self, sparsity: float) -> dict[str, Tensor]:
        """Parameter name -> bool tensor of the weights to keep at this sparsity, which is more than 0."""
        raise AssertionError("a back end defines it")

    def attach(self, matrices: dict[str, nn.Linear]) -> None:
        """Takes hold of the matrices (parameter name -> layer)."""
        self._parameters = {name: module.weight for name, module in matrices.items()}
        reachable_sparsity(self.section, {n: (p.shape[0], p.shape[1]) for n, p in self._parameters.items()})
        self.mask = SparsityMask({n: torch.ones_like(p.data, dtype=torch.bool) for n, p in self._parameters.items()})

    def rewinding_schedule(self) -> PruningSchedule | None:
        return None  # one pruner of several cannot say; `PrunerGroup` does

    @torch.no_grad()
    def before_step(self, step: int) -> bool:
        sparsity = self.schedule.sparsity(step)
        if not self.schedule.updates_at(step) or sparsity == 0:
            return False
        assert self._scores or not needs_gradients(self.section), "`attach` lets no such schedule pass"
        self.mask = self.mask.on_devices_of(self._parameters)
        self._move_scores_to_weights()
        self.mask = SparsityMask(self.choose(sparsity))
        self.after_optimizer_step()
        return True

    @torch.no_grad()
    def before_optimizer_step(self) -> None:
        """Updates the scores that need gradients; for group lasso, adds the penalty's gradient."""
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
        """To where the weights are: those of a checkpoint come on the CPU, before the model is on its GPU."""
        self._scores = {name: score.to(self._parameters[name].device) for name, score in self._scores.items()}

    def _score(self, name: str) -> Tensor:
        """The importance score of a matrix, >= 0, in its shape; the smallest are pruned first."""
        if needs_gradients(self.section):
            return self._scores[name]
        return SCORES[self.section.prune_type](self._parameters[name].detach(), None, None)


class PrunerGroup:
    """Several pruners and locks, each with its own matrices, as one.

    Attributes:
        pruners: Attached already.
    """

    def __init__(self, pruners: "Sequence[PatternLock | GradualPruner]", rewinding: bool = False) -> None:
        self.pruners = tuple(pruners)
        self._rewinding = rewinding

    @property
    def mask(self) -> SparsityMask:
        return SparsityMask({name: kept for pruner in self.pruners for name, kept in pruner.mask.tensors.items()})

    @property
    def pruners_with_schedule(self) -> list[GradualPruner]:
        """Those that prune."""
        return [pruner for pruner in self.pruners if isinstance(pruner, GradualPruner)]

    def rewinding_schedule(self) -> PruningSchedule | None:
        """The schedule along which the learning rate is rewound, if it is.

        Raises:
            UserError: The pruners prune at different steps.
        """
        schedules = [pruner.schedule for pruner in self.pruners_with_schedule]
        if not self._rewinding or not schedules:
            return None
        if len({(s.start, s.end, s.frequency) for s in schedules}) > 1:
            raise UserError(
                "the pruners prune at different steps, so there is no one rate to rewind to",
                where="pruning",
                instead="the same start, end and frequency for all, or learning_rate_rewinding: false",
            )
        return schedules[0]

    def before_step(self, step: int) -> bool:
        return any([pruner.before_step(step) for pruner in self.pruners])  # a list: each of them has its turn

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


def _magnitude() -> type[GradualPruner]:
    from toolkit.sparsity.backends.magnitude import MagnitudePruner

    return MagnitudePruner


def _inc() -> type[GradualPruner]:
    from toolkit.sparsity.backends.inc import INCPruner

    return INCPruner


def _nncf() -> type[GradualPruner]:
    from toolkit.sparsity.backends.nncf import NNCFPruner

    return NNCFPruner


# Back end -> its pruner; its library is loaded only when it is used.
_BACKENDS: dict[Backend, Callable[[], type[GradualPruner]]] = {"magnitude": _magnitude, "inc": _inc, "nncf": _nncf}


def make_sparsifier(pruning: Pruning, matrices: dict[str, nn.Linear], steps_per_epoch: int) -> PrunerGroup:
    """The pruners of a recipe, each with the matrices that it names, by the back end that the recipe names.

    Args:
        pruning: The recipe's section.
        matrices: Parameter name -> layer, of everything that can be pruned.
        steps_per_epoch: For ramps that are said in epochs.

    Raises:
        UserError: The back end cannot do it, the names do not fit, or there are no zeros to lock.
    """
    where = "pruning.approach.weight_compression"
    sections = pruning.approach.weight_compression.resolve(steps_per_epoch)
    made: list[PatternLock | GradualPruner] = []
    for section, names in zip(sections, assign_matrices(sections, matrices, where), strict=True):
        mine = {name: matrices[name] for name in names}
        pruner = _lock(mine, where) if section.prune_type == LOCK else _gradual(pruning, section, where)
        pruner.attach(mine)
        made.append(pruner)
    return PrunerGroup(made, pruning.learning_rate_rewinding)


def _lock(matrices: dict[str, nn.Linear], where: str) -> PatternLock:
    mask = SparsityMask.from_zeros({name: module.weight for name, module in matrices.items()})
    if mask.sparsity() < MIN_SPARSITY:
        raise UserError(
            f"pattern_lock gets {len(matrices)} matrices without zeros, e.g. {next(iter(matrices))}",
            where=f"{where}.pruners",
            instead="names of matrices that are sparse already",
        )
    return PatternLock(mask)


def _gradual(pruning: Pruning, section: ResolvedPruner, where: str) -> GradualPruner:
    problem = unsupported(pruning.backend, section)
    if problem:
        raise UserError(f"{pruning.backend} cannot do {problem}", where=where, instead="backend: inc")
    return _BACKENDS[pruning.backend]()(section)
