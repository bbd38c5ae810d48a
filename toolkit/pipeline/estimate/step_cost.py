"""Cost of a training step on this machine, extrapolated from models of one and two layers.

All layers of an encoder have the same size. Models with one and two layers are built with random weights and trained
for a few real steps: the difference is the cost of a layer, the rest that of embeddings and head, and the full model is
extrapolated linearly. No weights are loaded: a model's `config.json` is enough.
"""

import contextlib
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, replace

import torch

from toolkit.core.machine import memory
from toolkit.models.architectures import hidden_size, layer_count
from toolkit.pipeline.estimate.synthetic_step import FLOAT, Seconds, StepShape, SyntheticStep, now
from toolkit.recipe import SGDSettings, Train

_MIN_ROUNDS, _MAX_ROUNDS = 2, 9
_MIN_TOKENS = 256  # per batch
_Point = tuple[int, int]  # layers, examples


@dataclass(frozen=True)
class StepCost:
    """Cost of a training step of the full model, at the batch size of `StepShape.train`.

    Attributes:
        pass_seconds: Forward and backward pass of one batch, without the teacher.
        teacher_seconds: The teacher's forward pass of one batch; 0 without a teacher.
        update_seconds: Work once per optimizer step: gradient clipping, optimizer, masking.
        forward_seconds: Forward pass of one batch without gradients, as in evaluation.
        state_bytes: Weights, gradients and optimizer state.
        teacher_bytes: The teacher's weights.
        fixed_bytes: Activations kept for the backward pass, and logits: the part independent of the batch size.
        example_bytes: The same per example of `longest` tokens.
        parameters: Number of trained parameters.
        batch: Number of examples in the measured batch; smaller than the recipe's if that takes too long.
    """

    pass_seconds: float
    teacher_seconds: float
    update_seconds: float
    forward_seconds: float
    state_bytes: float
    teacher_bytes: float
    fixed_bytes: float
    example_bytes: float
    parameters: int
    batch: int

    def step_seconds(self, accumulation: int) -> float:
        """Returns the seconds of an optimizer step of `accumulation` batches."""
        return accumulation * (self.pass_seconds + self.teacher_seconds) + self.update_seconds

    def memory_bytes(self, batch: int) -> float:
        """Returns the peak memory of a step with batches of this size, without libraries and data."""
        return self.state_bytes + self.teacher_bytes + self.fixed_bytes + batch * self.example_bytes

    def without_teacher(self) -> "StepCost":
        """Returns the cost of the same step without its teacher; the KD loss itself is negligible."""
        return replace(self, teacher_seconds=0.0, teacher_bytes=0.0)


def measure(shape: StepShape, seconds: float, threads: int | None = None) -> StepCost:
    """Measures the cost of a training step by training models of one and two layers for a few steps.

    Args:
        shape: The step to measure. If one of its batches takes too long, or too much of the memory, a smaller batch
            is measured and its time extrapolated.
        seconds: Approximate time budget, excluding model construction.
        threads: Number of threads of torch; None: unchanged.

    Raises:
        UserError: The architecture is unknown to transformers.
    """
    examples = shape.train.batch_size
    with _threads(threads), torch.random.fork_rng():
        torch.manual_seed(0)
        jobs = {layers: SyntheticStep(shape, layers) for layers in (1, 2)}
        kept = {(layers, n): float(job.kept_bytes(n)) for layers, job in jobs.items() for n in (1, 2)}
        if shape.train.recompute:  # of all layers but one only the input is kept
            width = hidden_size(json.loads(shape.config))
            kept |= {(2, n): kept[1, n] + FLOAT * n * shape.longest * width for n in (1, 2)}
        fits = int(memory()[1] / 4 / max(1.0, kept[2, 2] - kept[2, 1]))
        batch = _affordable(jobs[2], 1 + shape.quantized, min(examples, max(2, fits)), seconds / 2)
        # Weight quantization takes the same time for any batch size: a second size separates it from the rest.
        sizes = (batch // 2, batch) if shape.quantized and 1 < batch < examples else (batch,)
        points = [(layers, size) for layers in jobs for size in sizes]
        jobs[1].step(batch)  # warm-up
        steps: list[dict[_Point, Seconds]] = []
        began = now()
        while len(steps) < _MIN_ROUNDS or (len(steps) < _MAX_ROUNDS and now() - began < seconds / 2):
            steps.append({point: jobs[point[0]].step(point[1]) for point in points})
        forward = {p: statistics.median(jobs[p[0]].forward(p[1]) for _ in range(_MIN_ROUNDS)) for p in points}

    def median(part: str) -> dict[_Point, float]:
        return {point: statistics.median(getattr(step[point], part) for step in steps) for point in points}

    layers, teacher_layers = (
        layer_count(json.loads(shape.config)),
        layer_count(json.loads(shape.teacher)) if shape.teacher else 1,
    )
    parameters = round(_line(jobs[1].parameters, jobs[2].parameters, layers))
    teacher_parameters = _line(jobs[1].teacher_parameters, jobs[2].teacher_parameters, teacher_layers)
    update = median("update")
    # Memory is exactly bilinear in layers and examples: four forward passes determine it.
    fixed = _line(_line(kept[1, 1], kept[1, 2], 0), _line(kept[2, 1], kept[2, 2], 0), layers)
    example = _line(kept[1, 2] - kept[1, 1], kept[2, 2] - kept[2, 1], layers)
    return StepCost(
        pass_seconds=_extrapolate(median("own"), layers, examples),
        teacher_seconds=_extrapolate(median("teacher"), teacher_layers, examples),
        update_seconds=_line(update[1, batch], update[2, batch], layers),
        forward_seconds=_extrapolate(forward, layers, examples),
        state_bytes=FLOAT * parameters * (2.0 + _optimizer_values(shape.train)),
        teacher_bytes=FLOAT * teacher_parameters,
        fixed_bytes=max(0.0, fixed),
        example_bytes=example,
        parameters=parameters,
        batch=batch,
    )


def _extrapolate(seconds: Mapping[_Point, float], layers: int, examples: int) -> float:
    """Returns the seconds of all layers and a full batch, from one and two layers and one or two smaller batches."""
    small, batch = min(size for _, size in seconds), max(size for _, size in seconds)
    at = {}
    for depth in (1, 2):
        most = seconds[depth, batch]
        slope = most / batch
        if small < batch:  # limits noise: between a quarter and all of the time is proportional to the batch
            slope = min(slope, max(slope / 4, (most - seconds[depth, small]) / (batch - small)))
        at[depth] = most + (examples - batch) * slope
    return _line(at[1], at[2], layers)


def _line(one: float, two: float, where: float) -> float:
    """Returns the value at `where` of the line through the values at 1 and 2; the slope is at least 0."""
    return one + (where - 1) * max(0.0, two - one)


def _affordable(job: SyntheticStep, least: int, most: int, seconds: float) -> int:
    """Returns the largest batch from `least` to `most`, by doubling, whose rounds take at most `seconds`.

    A batch has at least `_MIN_TOKENS` tokens, since the time of smaller ones is dominated by overhead.
    """
    batch = min(most, max(least, _MIN_TOKENS // job.length))
    job.step(batch)  # the first step includes initialization
    while batch < most:
        took = min(sum(astuple(job.step(batch))) for _ in range(2))  # the minimum ignores one stall by another process
        if 2 * took * 2 * _MIN_ROUNDS > seconds:
            break
        batch = min(most, 2 * batch)
    return batch


def _optimizer_values(train: Train) -> int:
    """Returns the number of values that the optimizer stores per parameter."""
    settings = train.optimizer.settings
    return (1 if settings.momentum else 0) if isinstance(settings, SGDSettings) else 2


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
