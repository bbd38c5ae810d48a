"""The one training loop: transformers' Trainer with a loss of ours, pruning hooks and an exact resume."""

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.core.artifacts import Context
from toolkit.core.errors import UserError
from toolkit.data.batches import Batch
from toolkit.recipe import Train
from toolkit.sparsity.pruners import Sparsifier
from toolkit.training import distributed, lr_schedule
from toolkit.training.datasets import TrainingData
from toolkit.training.distillation import LossTerms
from toolkit.training.hardware import bf16, keep_freed_memory
from toolkit.training.hooks import Hooks, last_complete_checkpoint
from toolkit.training.trainer import CompressionTrainer, optimizer_class, training_arguments


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@dataclass
class TrainingResult:
    """What a training run leaves behind besides the weights.

    Attributes:
        history: The training curve.
        steps: Optimizer steps.
        seconds_per_step: Of all steps, those before an interruption too.
        processes: How many trained together.
        bf16: Under bfloat16 autocast.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds_per_step: float = 0.0
    processes: int = 1
    bf16: bool = False

    def metrics(self) -> dict[str, float]:
        """For the manifest."""
        figures = {"steps": self.steps, "seconds_per_step": self.seconds_per_step}
        figures |= {"processes": self.processes} if self.processes > 1 else {}
        return figures | ({"bf16": True} if self.bf16 else {})

    def tokens(self, data: TrainingData) -> dict[str, float]:
        """For the manifest of pre-training: tokens of all examples, and as many a second as at this run's speed."""
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
    """Trains in place, from the last whole checkpoint in `context.work` where there is one.

    An interrupted run that is started again ends with the same weights, bit for bit (same machine and threads):
    examples and masking are functions of the step, and a checkpoint keeps the generators, optimizer and mask.
    Several processes (`toolkit.training.distributed`) share each batch; the first one writes, and alone it returns.

    Args:
        model: Anything that `loss` can be computed of.
        data: The stream of examples.
        section: Steps, batch, optimizer, checkpoints.
        loss: (model, batch) -> terms; `terms.total` is differentiated.
        context: Where checkpoints and progress go.
        sparsifier: Attached already; prunes before steps, puts zeros back after them, and says whether the learning
            rate is rewound along its schedule. None: nothing is pruned.

    Raises:
        UserError: The batch cannot be divided among the processes; or the rate would be rewound far above its peak.
        PartDone: This is not the first process.
    """
    keep_freed_memory()
    rank, processes = distributed.rank(), distributed.world_size()
    stage = context.folder.name.removesuffix(".partial")
    if section.batch_size % processes:
        raise UserError(
            f"a batch of {section.batch_size} cannot be divided among {processes} processes",
            where=f"train.batch_size of {stage}",
            instead=f"batch_size: {processes * (section.batch_size // processes + 1)}",
        )
    checkpoints = context.work / "checkpoints"
    hooks = Hooks(sparsifier, context, section.log_every, bf16(section))
    with distributed.main_process_first():
        resume = last_complete_checkpoint(checkpoints, context)
    if resume is not None:
        hooks.load(resume)
    distributed.broadcast(value for value in model.state_dict().values() if isinstance(value, Tensor))
    trainer = CompressionTrainer(
        model=model,
        args=training_arguments(section, data.steps, checkpoints, context.seed),
        train_dataset=data.stream if processes == 1 else data.stream.shard(rank, processes),
        data_collator=data.collate,
        hooks=hooks,
        # Normalised by the whole optimizer step: given like this, the Trainer does not divide it by the passes again.
        compute_loss_func=loss,
        multiplier=_multiplier(section, data.steps, sparsifier, stage),
        autocast=hooks.bf16,  # as the run began, wherever it goes on
        optimizer_cls_and_kwargs=optimizer_class(section),
    )
    context.progress.start(data.steps)
    with compiled(model if section.compile else None), recomputed(model if section.recompute else None):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if rank:
        raise distributed.WorkerDone
    return TrainingResult(hooks.history, data.steps, hooks.seconds() / data.steps, processes, hooks.bf16)


@contextlib.contextmanager
def compiled(model: Any) -> Iterator[None]:
    """The encoder runs as what torch.compile makes of it; heads and losses, whose sizes change, as they are."""
    if model is None:
        yield
        return
    model.base_model.compile()
    try:
        yield
    finally:
        model.base_model._compiled_call_impl = None  # evaluation has a shape for every batch


@contextlib.contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """Layers keep what went into them and run again in the backward pass, with the same random numbers."""
    if model is None:
        yield
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


def _multiplier(section: Train, steps: int, sparsifier: Sparsifier | None, stage: str) -> Callable[[int], float]:
    warmup = round(section.warmup_ratio * steps)
    rewound = sparsifier.rewinding_schedule() if sparsifier else None
    if rewound is None:
        return lambda step: lr_schedule.linear(step, steps, warmup)
    lr_schedule.require_bounded_rewinding(steps, warmup, rewound.start, rewound.end, f"{stage}.pruning")
    return lambda step: lr_schedule.rewinding(step, steps, warmup, rewound.start, rewound.end, rewound.frequency)
