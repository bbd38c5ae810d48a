"""The one training loop: `transformers.Trainer` with a custom loss, pruning hooks and exact resuming."""

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.core.artifacts import Context
from toolkit.core.errors import TimeLimitReached
from toolkit.data.batches import Batch
from toolkit.models.load import require_finite
from toolkit.recipe import Train
from toolkit.sparsity.pruners import Sparsifier
from toolkit.training import distributed, lr_schedule
from toolkit.training.datasets import TrainingData
from toolkit.training.distillation import LossTerms
from toolkit.training.hardware import keep_freed_memory
from toolkit.training.hooks import Hooks, last_complete_checkpoint
from toolkit.training.precision import MOST_EXAMPLES, choose_bf16
from toolkit.training.trainer import CompressionTrainer, optimizer_class, tracked, training_arguments


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@dataclass
class TrainingResult:
    """Training curve, step count and timing of a finished run.

    Attributes:
        history: The training curve: a dict of values per point.
        steps: Number of optimizer steps.
        seconds_per_step: Mean over all steps, those before an interruption included.
        processes: Number of data-parallel processes.
        bf16: Whether the model ran under bfloat16 autocast.
        step_seconds: Seconds of a step by precision, if the precision was chosen by measurement.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds_per_step: float = 0.0
    processes: int = 1
    bf16: bool = False
    step_seconds: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """Returns the metrics of the run for the manifest."""
        found: dict[str, Any] = {"steps": self.steps, "seconds_per_step": self.seconds_per_step}
        found |= {"processes": self.processes} if self.processes > 1 else {}
        found |= {"measured_step_seconds": self.step_seconds} if self.step_seconds else {}
        return found | ({"bf16": True} if self.bf16 else {})

    def tokens(self, data: TrainingData) -> dict[str, float]:
        """Returns the metrics of pre-training for the manifest: number of tokens seen, and tokens per second."""
        seen = data.tokens_seen()
        return {"tokens_seen": seen, "tokens_per_second": seen / self.steps / self.seconds_per_step}


def fit(
    model: nn.Module,
    data: TrainingData,
    section: Train,
    loss: Callable[[Any, Batch], LossTerms],
    context: Context,
    *,
    sparsifier: Sparsifier | None = None,
) -> TrainingResult:
    """Trains a model in place, from the last complete checkpoint in `context.work` if there is one.

    A resumed run ends with the same weights as an uninterrupted one, bit for bit (same machine and threads): examples
    and masking are functions of the step, and checkpoints contain random states, optimizer and mask. Several processes
    (`toolkit.training.distributed`) split each batch; only rank 0 writes files and returns.

    Args:
        model: The model to train; any that `loss` accepts.
        data: The training examples.
        section: Steps, batch size, optimizer and checkpoints.
        loss: (model, batch) -> terms; `terms.total` is differentiated.
        context: Folder of the checkpoints, seed, and progress.
        sparsifier: Pruner attached to the model: prunes before steps, restores zeros after them, and may have a
            schedule for learning-rate rewinding. None: nothing is pruned.

    Raises:
        UserError: An input was changed while it was read; the batch cannot be divided among the processes; the rate
            would be rewound far above its peak; or the training diverges: a loss or a weight is NaN or infinite.
        TimeLimitReached: The run's time is over; a checkpoint was saved at the last step made, which is at least one.
        WorkerDone: This process is not rank 0.
    """
    context.require_unchanged()  # all data and models are read by now; a checkpoint never holds other data
    keep_freed_memory()
    rank, processes = distributed.rank(), distributed.world_size()
    stage = context.folder.name.removesuffix(".partial")
    distributed.require_divisible(section.batch_size, stage)
    checkpoints = context.work / "checkpoints"
    hooks = Hooks(sparsifier, context, section.log_every)
    with distributed.main_process_first():
        resume = last_complete_checkpoint(checkpoints, context)
    if resume is not None:
        hooks.load(resume)
    distributed.broadcast(value for value in model.state_dict().values() if isinstance(value, Tensor))
    stream = data.stream if processes == 1 else data.stream.shard(rank, processes)
    if resume is None:
        count = min(MOST_EXAMPLES, section.batch_size // processes)
        with recomputed(model if section.recompute else None), dropout(model, section.dropout):
            hooks.bf16, hooks.step_seconds = choose_bf16(
                section,
                model,
                loss,
                lambda: data.collate([stream[i] for i in range(count)]),
                context.work / "precision.json",
            )
    with tracked(context.tracking):
        trainer = CompressionTrainer(
            model=model,
            args=training_arguments(section, data.steps, checkpoints, context.seed, context.tracking),
            train_dataset=stream,
            data_collator=data.collate,
            hooks=hooks,
            # Normalised over the entire optimizer step; passed like this, the Trainer does not divide it by the passes.
            compute_loss_func=loss,
            multiplier=_multiplier(section, data.steps, sparsifier, stage),
            autocast=hooks.bf16,  # as when the run started, even if it resumes on other hardware
            optimizer_cls_and_kwargs=optimizer_class(section),
        )
        if context.tracking is not None:
            hooks.log = trainer.log
        context.progress.start(data.steps)
        with (
            compiled(model if section.compile else None),
            recomputed(model if section.recompute else None),
            dropout(model, section.dropout),
        ):
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    require_finite(model, f"train.optimizer of {stage}", "a lower learning_rate, or a longer warm-up")
    if rank:
        raise distributed.WorkerDone
    if hooks.stopped:
        raise TimeLimitReached(f"at step {trainer.state.global_step} of {data.steps}")
    seconds = hooks.seconds() / data.steps
    return TrainingResult(hooks.history, data.steps, seconds, processes, hooks.bf16, hooks.step_seconds)


@contextlib.contextmanager
def compiled(model: Any) -> Iterator[None]:
    """Runs the encoder under torch.compile within the `with`; heads and losses, whose shapes vary, are not compiled."""
    if model is None:
        yield
        return
    model.base_model.compile()
    try:
        yield
    finally:
        model.base_model._compiled_call_impl = None  # evaluation has a different shape in each batch


@contextlib.contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """Enables gradient checkpointing within the `with`: layers save their inputs and run again in the backward pass,
    with the same random numbers.
    """
    if model is None:
        yield
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


@contextlib.contextmanager
def dropout(model: nn.Module, probability: float | None) -> Iterator[None]:
    """Sets the probability of every dropout of a model within the `with`; None: they stay as they are."""
    places = [] if probability is None else list(_dropouts(model))
    before = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, probability)
    try:
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


def _dropouts(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            yield module, "p"
        elif isinstance(getattr(module, "attention_dropout", None), float):  # ModernBERT
            yield module, "attention_dropout"


def _multiplier(section: Train, steps: int, sparsifier: Sparsifier | None, stage: str) -> Callable[[int], float]:
    warmup = round(section.warmup_ratio * steps)
    found = sparsifier.rewinding() if sparsifier else None
    if found is None:
        return lambda step: lr_schedule.linear(step, steps, warmup)
    ramp = found.schedule
    if found.cyclic:
        return lambda step: lr_schedule.cyclic(step, steps, warmup, ramp.start, ramp.end, ramp.frequency)
    lr_schedule.require_bounded_rewinding(steps, warmup, ramp.start, ramp.end, f"{stage}.pruning")
    return lambda step: lr_schedule.rewinding(step, steps, warmup, ramp.start, ramp.end, ramp.frequency)
