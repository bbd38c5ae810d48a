"""What a training step costs on this machine, measured on the first layers of the model.

Layers of an encoder are alike. A model with one of them and a model with two are built with random weights and trained
for a few real steps: the difference is what a layer costs, the rest is embeddings and head, and the whole model is a
line through both. Nothing is loaded: a model's `config.json` is enough.
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

_LEAST_ROUNDS, _MOST_ROUNDS = 2, 9
_FEWEST = 256  # tokens
_Point = tuple[int, int]  # layers, examples


@dataclass(frozen=True)
class StepCost:
    """Of the whole model, at the batch size of `StepShape.train`.

    Attributes:
        pass_seconds: Forward and backward pass of one batch.
        teacher_seconds: The teacher's forward pass; 0 without a teacher.
        update_seconds: What comes once in an optimizer step: clipping, optimizer, zeros.
        forward_seconds: Forward pass of one batch without gradients, as in evaluation.
        state_bytes: Weights, gradients, the optimizer's state.
        teacher_bytes: The teacher's weights.
        fixed_bytes: What autograd keeps from forward to backward pass, and logits, whatever the batch.
        example_bytes: The same for each example of `longest` tokens.
        parameters: Trained ones.
        batch: Examples of the batch that was measured; smaller than the recipe's where that takes too long.
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
        """Of an optimizer step of `accumulation` batches."""
        return accumulation * (self.pass_seconds + self.teacher_seconds) + self.update_seconds

    def memory_bytes(self, batch: int) -> float:
        """Highest need of a step with batches of this size; what other libraries and the data take is not in it."""
        return self.state_bytes + self.teacher_bytes + self.fixed_bytes + batch * self.example_bytes

    def without_teacher(self) -> "StepCost":
        """Of the same step without its teacher, where its loss costs next to nothing."""
        return replace(self, teacher_seconds=0.0, teacher_bytes=0.0)


def measure(shape: StepShape, seconds: float, threads: int | None = None) -> StepCost:
    """Trains models of one and two layers for a few steps.

    Args:
        shape: What is measured. Where one of its batches takes too long, or much of the memory, a smaller one is
            measured and time is carried on to the whole one.
        seconds: How long it may take, about; not counting the building of the models.
        threads: Torch's threads; None: as they are.

    Raises:
        UserError: transformers does not know the architecture.
    """
    examples = shape.train.batch_size
    with _threads(threads), torch.random.fork_rng():
        torch.manual_seed(0)
        jobs = {layers: SyntheticStep(shape, layers) for layers in (1, 2)}
        kept = {(layers, n): float(job.kept_bytes(n)) for layers, job in jobs.items() for n in (1, 2)}
        if shape.train.recompute:  # of all layers but one only what goes into them is kept
            width = hidden_size(json.loads(shape.config))
            kept |= {(2, n): kept[1, n] + FLOAT * n * shape.longest * width for n in (1, 2)}
        fits = int(memory()[1] / 4 / max(1.0, kept[2, 2] - kept[2, 1]))
        batch = _affordable(jobs[2], 1 + shape.quantized, min(examples, max(2, fits)), seconds / 2)
        # Quantizing the weights takes the same time whatever the batch: a second size tells it apart.
        sizes = (batch // 2, batch) if shape.quantized and 1 < batch < examples else (batch,)
        points = [(layers, size) for layers in jobs for size in sizes]
        jobs[1].step(batch)  # the first of its kind
        steps: list[dict[_Point, Seconds]] = []
        began = now()
        while len(steps) < _LEAST_ROUNDS or (len(steps) < _MOST_ROUNDS and now() - began < seconds / 2):
            steps.append({point: jobs[point[0]].step(point[1]) for point in points})
        forward = {p: statistics.median(jobs[p[0]].forward(p[1]) for _ in range(_LEAST_ROUNDS)) for p in points}

    def median(part: str) -> dict[_Point, float]:
        return {point: statistics.median(getattr(step[point], part) for step in steps) for point in points}

    layers, taught = (
        layer_count(json.loads(shape.config)),
        layer_count(json.loads(shape.teacher)) if shape.teacher else 1,
    )
    parameters = round(_line(jobs[1].parameters, jobs[2].parameters, layers))
    of_teacher = _line(jobs[1].of_teacher, jobs[2].of_teacher, taught)
    update = median("update")
    # Memory is bilinear in layers and examples, exactly: four forward passes say all of it.
    fixed = _line(_line(kept[1, 1], kept[1, 2], 0), _line(kept[2, 1], kept[2, 2], 0), layers)
    example = _line(kept[1, 2] - kept[1, 1], kept[2, 2] - kept[2, 1], layers)
    return StepCost(
        pass_seconds=_whole(median("own"), layers, examples),
        teacher_seconds=_whole(median("teacher"), taught, examples),
        update_seconds=_line(update[1, batch], update[2, batch], layers),
        forward_seconds=_whole(forward, layers, examples),
        state_bytes=FLOAT * parameters * (2.0 + _optimizer_values(shape.train)),
        teacher_bytes=FLOAT * of_teacher,
        fixed_bytes=max(0.0, fixed),
        example_bytes=example,
        parameters=parameters,
        batch=batch,
    )


def _whole(seconds: Mapping[_Point, float], layers: int, examples: int) -> float:
    """Of all layers and a whole batch, from those of one and two layers and of one or two smaller batches."""
    small, batch = min(size for _, size in seconds), max(size for _, size in seconds)
    at = {}
    for depth in (1, 2):
        most = seconds[depth, batch]
        slope = most / batch
        if small < batch:  # whatever noise says, between all and a quarter of the time grows with the batch
            slope = min(slope, max(slope / 4, (most - seconds[depth, small]) / (batch - small)))
        at[depth] = most + (examples - batch) * slope
    return _line(at[1], at[2], layers)


def _line(one: float, two: float, where: float) -> float:
    """At `where`, the line through the values at 1 and 2; it never falls."""
    return one + (where - 1) * max(0.0, two - one)


def _affordable(job: SyntheticStep, least: int, most: int, seconds: float) -> int:
    """The largest batch from `least` to `most`, by doubling, whose rounds take no more than `seconds`.

    In batches of very few tokens the time is not the tokens': none is smaller than it takes to have `_FEWEST`.
    """
    batch = min(most, max(least, _FEWEST // job.length))
    job.step(batch)  # the very first step sets much up
    while batch < most:
        took = min(
            sum(astuple(job.step(batch))) for _ in range(2)
        )  # a machine that does other things too may stall once
        if 2 * took * 2 * _LEAST_ROUNDS > seconds:
            break
        batch = min(most, 2 * batch)
    return batch


def _optimizer_values(train: Train) -> int:
    """Values that the optimizer keeps for each parameter."""
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
