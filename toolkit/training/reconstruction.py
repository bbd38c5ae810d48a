"""Sparsifiers that reconstruct a model: at each mask update, or with its pattern locked before the first step."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.core.artifacts import Context
from toolkit.core.errors import UserError
from toolkit.data.corpus import CorpusData
from toolkit.data.corpus.sequences import draw, in_proportion
from toolkit.data.task_kinds import Split
from toolkit.models.load import prunable_matrices
from toolkit.recipe import Reconstruction
from toolkit.sparsity.layerwise import (
    Errors,
    Job,
    Locked,
    jobs_of,
    layer_errors,
    layer_names,
    prune_by_magnitude,
    reconstruct_layers,
)
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.pruners import GradualPruner, PatternLock, PrunerGroup
from toolkit.training import distributed
from toolkit.training.datasets import on_device, unmasked_batches
from toolkit.training.hardware import device

_HELD_OUT = 64  # sequences on which the errors of the layers are measured
_MATRICES, _LAYERS, _SECONDS = "errors/matrices", "errors/layers", "errors/seconds"  # keys of a state dict
_UNKNOWN = (-1.0, -1.0)  # errors of a matrix that has not been updated yet


class ReconstructingPruner(PrunerGroup):
    """A group of pruners whose mask updates reconstruct the model instead of choosing weights by magnitude.

    At each update the target is the frozen dense model, and the model as it is now is the start, so that weights that
    were pruned may return. Adam's moments are left as they are: they hold gradients of pruned weights too, and the
    mask is applied after every step.

    Args:
        group: The pruners and locks, already attached.
        model: The model that is pruned.
        dense: The dense model with the same layers.
        settings: The recipe's section.
        text: The corpus; its train split calibrates, its validation split measures.
        pad_id: The tokenizer's padding id.
        context: Seed of the choice of sequences, and progress.
    """

    def __init__(
        self,
        group: PrunerGroup,
        model: Any,
        dense: Any,
        settings: Reconstruction,
        text: CorpusData,
        pad_id: int,
        context: Context,
    ) -> None:
        super().__init__(group.pruners, group.rewinding_choice)
        self._model, self._dense, self._settings = model, dense, settings
        self._log = context.progress.message
        self._linears = prunable_matrices(model)
        chosen = draw(text.train, settings.calibration.sequences, context.seed)
        self._texts = unmasked_batches(chosen, pad_id)
        held_out = [text.valid.example(i) for part in in_proportion(text.valid, _HELD_OUT) for i in part]
        self._held_out = unmasked_batches(held_out, pad_id)
        self.sequences, self.tokens = len(chosen), sum(len(example["input_ids"]) for example in chosen)
        widest = max(self._linears[name].in_features for name in self._names())
        wanted, key = settings.calibration.sequences, "student.pruning.reconstruction.calibration.sequences"
        require_tokens(self.tokens, widest, self.sequences, wanted, key)
        self.errors, self.seconds = Errors(), 0.0

    def before_step(self, step: int) -> bool:
        due = {p: p.schedule.sparsity(step) for p in self.pruners_with_schedule if p.schedule.updates_at(step)}
        due = {pruner: sparsity for pruner, sparsity in due.items() if sparsity > 0}
        if not due:
            return False
        self._model.to(device())  # in every process: all of them take part in the broadcast
        names = [name for pruner in due for name in pruner.mask.tensors]
        masks = {name: torch.ones_like(self._linears[name].weight, dtype=torch.bool) for name in names}
        if distributed.rank() == 0:
            masks = self._reconstruct(due)
        linears = [self._linears[name] for name in names]
        values = [p.detach() for linear in linears for p in (linear.weight, linear.bias) if p is not None]
        distributed.broadcast([*values, *(masks[name].view(torch.uint8) for name in names)])
        for pruner in due:
            pruner.mask = SparsityMask({name: masks[name] for name in pruner.mask.tensors})
            pruner.after_optimizer_step()
        return True

    @torch.no_grad()
    def _reconstruct(self, due: Mapping[GradualPruner, float]) -> dict[str, Tensor]:
        """Prunes the model in place to the sparsity of each pruner, and returns the masks."""
        began, training = time.monotonic(), self._model.training
        self._model.eval()
        self._dense.eval().to(device())
        texts, held_out = on_device(self._texts), on_device(self._held_out)
        jobs: dict[str, Job] = {}
        for pruner, sparsity in due.items():
            jobs |= jobs_of(pruner.section, sparsity, self._dense, list(pruner.mask.tensors), texts)
        weights = {name: self._linears[name].weight.detach().clone() for name in jobs}
        prune_by_magnitude(jobs, self._linears)
        before = layer_errors(self._model, self._dense, self._linears, held_out)
        for name, weight in weights.items():
            self._linears[name].weight.copy_(weight)
        masks, errors = reconstruct_layers(
            self._model, self._dense, jobs, self._linears, texts, self._settings, self._log
        )
        after = layer_errors(self._model, self._dense, self._linears, held_out)
        self._model.train(training)
        errors.layers = {name: (before[name], after[name]) for name in after}
        self.errors = Errors(self.errors.matrices | errors.matrices, errors.layers)
        self.seconds += time.monotonic() - began
        self._log(_summary(self._settings, SparsityMask(masks).sparsity(), errors, time.monotonic() - began))
        return masks

    def metrics(self) -> dict[str, Any]:
        """Returns the settings, the text and the errors of the last update, for the manifest."""
        return {
            "method": self._settings.method,
            "error_correction": self._settings.error_correction,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "matrices": _named(self.errors.matrices),
            "layers": _named(self.errors.layers),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the state of the pruners, and the errors of the last update, by the order of the names."""
        stored = {_MATRICES: (self.errors.matrices, self._names()), _LAYERS: (self.errors.layers, self._layers())}
        errors = {key: _numbers([found.get(n, _UNKNOWN) for n in names]) for key, (found, names) in stored.items()}
        return super().state_dict() | errors | {_SECONDS: _numbers([self.seconds])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        rows = {_MATRICES: self._names(), _LAYERS: self._layers()}
        found = [
            {name: (row[0], row[1]) for name, row in zip(names, state[key].tolist(), strict=True) if row[0] >= 0}
            for key, names in rows.items()
        ]
        self.errors, self.seconds = Errors(*found), float(state[_SECONDS])

    def _names(self) -> list[str]:
        return [name for pruner in self.pruners_with_schedule for name in pruner.mask.tensors]

    def _layers(self) -> list[str]:
        return layer_names(self._linears)


class ReconstructedLock(PrunerGroup):
    """A pattern lock whose kept weights are computed again before the first step, for the outputs of a task teacher.

    Embeddings and head have no zeros and become the teacher's. The student's own weights stay if its last hidden state
    is closer to the teacher's with them, on examples that play no part in the computation: a student that was distilled
    for long from the same teacher, such as that of an embedding model, is better than what is computed anew.

    Args:
        lock: The lock, already attached to the matrices of `model`.
        model: The sparse model of the task.
        teacher: The dense model of the task.
        examples: Training examples, as `model` and `teacher` read them.
        count: Number of examples on which the inputs of the matrices are measured.
        pad_id: The tokenizer's padding id.
        context: Seed of the choice of examples, and progress.

    Raises:
        UserError: The teacher has other parameters than the student, or there are too few tokens.
    """

    def __init__(
        self, lock: PatternLock, model: Any, teacher: Any, examples: Split, count: int, pad_id: int, context: Context
    ) -> None:
        super().__init__([lock])
        self._model, self._teacher, self._lock = model, teacher, lock
        self._log = context.progress.message
        self._linears = prunable_matrices(model)
        own, others = ({n: tuple(p.shape) for n, p in one.named_parameters()} for one in (model, teacher))
        if differ := sorted(own.items() ^ others.items()):
            raise UserError(
                f"the task teacher and the student have different parameters, such as {differ[0][0]}",
                where="transfer.reconstruction",
                instead="remove the key, or use a student with the layers of its teacher",
            )
        chosen = np.random.default_rng(context.seed).permutation(len(examples))[: count + _HELD_OUT]
        calibrating = chosen[: min(count, len(chosen) - min(_HELD_OUT, len(chosen) // 5))]
        rows = [examples[int(index)] for index in calibrating]
        judging = [examples[int(index)] for index in chosen[len(calibrating) :]]
        self._texts, self._held_out = unmasked_batches(rows, pad_id), unmasked_batches(judging or rows, pad_id)
        self.examples, self.tokens = len(rows), sum(len(row["input_ids"]) for row in rows)
        widest = max(self._linears[name].in_features for name in lock.mask.tensors)
        require_tokens(self.tokens, widest, self.examples, count, "transfer.reconstruction.examples")
        self.errors, self.seconds = Errors(), 0.0
        self.last_layer = _UNKNOWN  # its error before and after

    def before_step(self, step: int) -> bool:
        if step:
            return False
        if distributed.rank() == 0:
            self._reconstruct()
        distributed.broadcast(parameter.detach() for parameter in self._model.parameters())
        self.after_optimizer_step()
        return True

    @torch.no_grad()
    def _reconstruct(self) -> None:
        began, training = time.monotonic(), self._model.training
        self._model.eval().to(device())
        self._teacher.eval().to(device())
        within = tuple(f"{name}." for name in layer_names(self._linears))
        own = dict(self._model.named_parameters())
        for name, value in self._teacher.named_parameters():
            if not name.startswith(within):
                own[name].copy_(value)
        mask = self._lock.mask.on_devices_of({n: self._linears[n].weight for n in self._lock.mask.tensors})
        jobs = {name: Locked(kept) for name, kept in mask.tensors.items()}
        texts, held_out = on_device(self._texts), on_device(self._held_out)
        saved = {name: value.clone() for name, value in own.items() if name.startswith(within)}
        before = self._last_error(held_out)
        _, self.errors = reconstruct_layers(
            self._model, self._teacher, jobs, self._linears, texts, Reconstruction(), self._log
        )
        after = self._last_error(held_out)
        if after >= before:
            for name, value in saved.items():
                own[name].copy_(value)
        self._model.train(training)
        self.seconds, self.last_layer = time.monotonic() - began, (before, after)
        taken = "taken" if after < before else "not taken: the student's own are closer to the task teacher"
        self._log(
            f"kept weights computed again, and {taken}: relative error of the last layer {after:.3f}, {before:.3f} "
            f"before ({self.seconds:.0f} s)"
        )

    def _last_error(self, texts: Sequence[Any]) -> float:
        *_, last = layer_errors(self._model, self._teacher, self._linears, texts).values()
        return last

    def metrics(self) -> dict[str, Any]:
        """Returns the examples and the errors, for the manifest."""
        return {
            "examples": self.examples,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "taken": self.last_layer[1] < self.last_layer[0],
            "last_layer": {"before": self.last_layer[0], "after": self.last_layer[1]},
            "matrices": _named(self.errors.matrices),
        }

    def state_dict(self) -> dict[str, Tensor]:
        rows = _numbers([self.errors.matrices.get(name, _UNKNOWN) for name in self._lock.mask.tensors])
        own = {_MATRICES: rows, _LAYERS: _numbers([self.last_layer]), _SECONDS: _numbers([self.seconds])}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        rows = zip(self._lock.mask.tensors, state[_MATRICES].tolist(), strict=True)
        self.errors = Errors({name: (row[0], row[1]) for name, row in rows})
        self.seconds = float(state[_SECONDS])
        before, after = state[_LAYERS][0].tolist() if _LAYERS in state else _UNKNOWN  # not in older checkpoints
        self.last_layer = before, after


def reconstruct_once(sparsifier: PrunerGroup) -> dict[str, float]:
    """Reconstructs a model that is not trained, and returns the metrics of a training without steps.

    Raises:
        WorkerDone: This process is not rank 0.
    """
    sparsifier.before_step(0)
    if distributed.rank():
        raise distributed.WorkerDone
    return {"steps": 0}


def _named(errors: Mapping[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    return {name: {"before": before, "after": after} for name, (before, after) in errors.items()}


def _numbers(values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _summary(settings: Reconstruction, sparsity: float, errors: Errors, seconds: float) -> str:
    before, after = ([pair[i] for pair in errors.layers.values()] for i in (0, 1))
    return (
        f"reconstruction to {sparsity:.1%} zeros by {settings.method}: mean relative error of the layers on held-out "
        f"text {sum(after) / len(after):.3f}, of magnitude {sum(before) / len(before):.3f} ({seconds:.0f} s)"
    )


def require_tokens(tokens: int, widest: int, sequences: int, wanted: int, key: str) -> None:
    """Checks that the covariance of the inputs can have full rank; below, weights would be fitted to single tokens.

    Raises:
        UserError: There are fewer tokens than the widest matrix has columns.
    """
    if tokens >= widest:
        return
    needed = -(-widest * sequences // tokens)
    raise UserError(
        f"{sequences:,} sequences have {tokens:,} tokens, but the {widest:,} columns of the widest matrix need as many",
        where=key,
        instead=f"at least {needed:,} sequences" + ("" if sequences == wanted else ", which takes more text"),
    )
