"""`precision: auto` on CPUs with bfloat16 instructions: the training step is timed in both precisions."""

import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from toolkit.core.files import write_atomic
from toolkit.data.batches import Batch
from toolkit.recipe import Train
from toolkit.training import distributed
from toolkit.training.distillation import LossTerms
from toolkit.training.hardware import bf16, has_bf16_instructions

MOST_EXAMPLES = 8  # of the first batch: enough for matrix products of the usual speed, and a step takes seconds at most
_ROUNDS, _BUDGET = 5, 5.0  # at most; seconds, after which no other round begins
_WIN = 1.05  # bf16 is chosen if an FP32 step takes at least this many times as long


def choose_bf16(
    train: Train, model: Any, loss: Callable[[Any, Batch], LossTerms], first_batch: Callable[[], Batch], record: Path
) -> tuple[bool, dict[str, float]]:
    """Returns whether to train under bfloat16 autocast, and the seconds of a step in both precisions if measured.

    Only `auto` on a CPU with bfloat16 instructions is measured, and once for a training: a run that was killed before
    its first checkpoint makes the same choice when it starts again. Every process returns the same.

    Args:
        train: The training's settings.
        model: The model to train.
        loss: (model, batch) -> terms.
        first_batch: Returns at most MOST_EXAMPLES examples of this process's first batch.
        record: File of the times, written by rank 0.
    """
    if train.precision != "auto" or not has_bf16_instructions():
        return bf16(train), {}
    with distributed.main_process_first():  # all processes find the record, or none: it is written after they have met
        seconds: dict[str, float] = json.loads(record.read_text()) if record.is_file() else {}
    if not seconds:
        times = torch.tensor(measure(model, loss, first_batch()))
        distributed.all_reduce_sum([times])
        seconds = dict(zip(("fp32", "bf16"), (times / distributed.world_size()).tolist(), strict=True))
        if distributed.rank() == 0:
            record.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(record, json.dumps(seconds))
    return seconds["fp32"] > _WIN * seconds["bf16"], seconds


def measure(model: Any, loss: Callable[[Any, Batch], LossTerms], batch: Batch) -> tuple[float, float]:
    """Returns the median seconds of a forward and backward pass in FP32 and under bfloat16 autocast.

    The two alternate, so that other work on the machine falls on both, after one pass each that is not counted. Random
    states, gradients and the model's mode are afterwards as before, so the training depends on the choice alone.
    """
    training, found = model.training, ([], [])  # type: ignore[var-annotated]
    began = time.monotonic()
    model.train()
    with torch.random.fork_rng(devices=[]):
        for number in itertools.count():
            for seconds, enabled in zip(found, (False, True), strict=True):
                started = time.monotonic()
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    total = loss(model, batch).total
                total.backward()
                model.zero_grad(set_to_none=True)
                seconds.append(time.monotonic() - started)
            if number == _ROUNDS or (number and time.monotonic() - began > _BUDGET):
                break
    model.train(training)
    return statistics.median(found[0][1:]), statistics.median(found[1][1:])
