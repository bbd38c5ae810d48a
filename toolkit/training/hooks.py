"""Trainer callbacks for pruning, the training curve and exact checkpoints."""

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from toolkit.core.artifacts import Context
from toolkit.core.errors import UserError
from toolkit.core.files import write_atomic
from toolkit.sparsity.pruners import Sparsifier
from toolkit.training import distributed
from toolkit.training.distillation import LossTerms

_COMPLETE = "whole.json"  # written last into a checkpoint: one without it is incomplete
_SPARSIFIER = "sparsifier.safetensors"


class Hooks(TrainerCallback):
    """Prunes around the optimizer step, records the training curve, and saves both with the Trainer's checkpoints.

    Args:
        sparsifier: Pruner of the model; None: nothing is pruned.
        context: Seed of the run, and progress.
        log_every: Optimizer steps per point of the training curve.

    Attributes:
        bf16: Whether training runs under bfloat16 autocast; set by `load`, or by the caller in a new training.
        step_seconds: Measured seconds of a step by precision, if the precision was chosen by measurement.
        stopped: Whether the time limit has ended the training before its last step.
        log: Function that gets each point of the training curve; None: it is only kept.
    """

    def __init__(self, sparsifier: Sparsifier | None, context: Context, log_every: int) -> None:
        self.bf16, self.stopped = False, False
        self.log: Callable[[dict[str, float]], None] | None = None
        self.step_seconds: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self._sparsifier, self._context, self._log_every = sparsifier, context, log_every
        self._sums: dict[str, Tensor] = {}  # since the last point of the curve; over all processes
        self._own: dict[str, Tensor] = {}  # of this step; of this process only
        self._steps_summed = 0
        self._before, self._began = 0.0, 0.0  # seconds of interrupted runs; start time of this one

    def seconds(self) -> float:
        """Returns the time of all steps so far, those of interrupted runs included, in seconds."""
        return self._before + time.monotonic() - self._began

    def add(self, terms: LossTerms) -> None:
        """Adds the loss of a forward pass to the next point of the curve, without a device synchronisation."""
        for name, term in terms.named():
            if term is not None:
                self._own[name] = self._own.get(name, torch.zeros((), device=term.device)) + term.detach()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if distributed.world_size() > 1:
            # Dropout differs between processes, but is the same when a step is repeated after an interruption.
            torch.manual_seed(hash((self._context.seed, distributed.rank(), state.global_step)))
        chosen = self._sparsifier is not None and self._sparsifier.before_step(state.global_step)
        if chosen and self._sparsifier is not None and distributed.world_size() > 1:
            distributed.assert_equal_across_ranks(self._sparsifier.mask.digest(), "masks")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._sparsifier is not None:
            self._sparsifier.before_optimizer_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._sparsifier is not None:
            self._sparsifier.after_optimizer_step()

    def on_step_end(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        distributed.all_reduce_sum(self._own.values())
        for name, term in self._own.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(term)) + term
        self._own = {}
        self._steps_summed += 1
        step = state.global_step
        if step < state.max_steps and distributed.in_any_process(self._context.time_over()):
            self.stopped = control.should_training_stop = True
            control.should_save = distributed.rank() == 0
        at_point = step % self._log_every == 0 or step == state.max_steps
        # Reading a loss waits for a GPU, so there it is done only where the curve or a checkpoint waits for it anyway.
        if at_point or control.should_save or not any(total.is_cuda for total in self._sums.values()):
            self._require_finite(step, lr_scheduler.base_lrs[0])
        if not at_point:
            last = {k: v for k, v in (self.history[-1] if self.history else {}).items() if k != "step"}
            self._context.progress.update(step, **last)
            return
        row = {name: float(total) / self._steps_summed for name, total in self._sums.items()}
        row["learning_rate"] = float(lr_scheduler.get_last_lr()[0])
        if self._sparsifier is not None:
            row["sparsity"] = self._sparsifier.mask.sparsity()
        self._sums, self._steps_summed = {}, 0
        self.history.append({"step": float(step), **row})
        if self.log is not None:
            self.log(dict(row))
        self._context.progress.update(step, **row)

    def _require_finite(self, step: int, peak: float) -> None:
        """Checks the losses since the last point of the curve; a training that has diverged never recovers."""
        broken = {name: float(total) for name, total in self._sums.items() if not math.isfinite(float(total))}
        if broken:
            name, value = next(iter(broken.items()))
            raise UserError(
                f"the training has diverged: {name} is {value} at step {step}",
                where=f"train.optimizer of {self._context.folder.name.removesuffix('.partial')}",
                instead=f"a learning_rate below {peak:.2g}, or a longer warm-up",
            )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._sparsifier is not None:
            save_file({k: v.contiguous() for k, v in self._sparsifier.state_dict().items()}, folder / _SPARSIFIER)
        sums = {name: float(total) for name, total in self._sums.items()}
        saved = {"step": state.global_step, "history": self.history, "sums": sums, "summed": self._steps_summed}
        saved |= {"bf16": self.bf16, "step_seconds": self.step_seconds, "seconds": self.seconds()}
        write_atomic(folder / _COMPLETE, json.dumps(saved))

    def load(self, folder: Path) -> None:
        """Restores the state that `on_save` has written to a checkpoint."""
        saved = json.loads((folder / _COMPLETE).read_text())
        self.history, self._steps_summed = saved["history"], saved["summed"]
        self.bf16, self._before = saved["bf16"], saved["seconds"]
        self.step_seconds = saved.get("step_seconds", {})  # absent in checkpoints of earlier versions
        self._sums = {name: torch.tensor(total) for name, total in saved["sums"].items()}
        if self._sparsifier is not None:
            self._sparsifier.load_state_dict(load_file(folder / _SPARSIFIER))


def last_complete_checkpoint(checkpoints: Path, context: Context) -> Path | None:
    """Returns the newest complete checkpoint, or None; deletes newer ones that are incomplete."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True)
    for folder in found:
        if (folder / _COMPLETE).is_file():
            context.progress.message(f"resuming from step {folder.name.split('-')[1]}")
            return folder
        context.progress.message(f"{folder.name} is incomplete, falling back to the previous one")
        shutil.rmtree(folder)
    return None
