"""Cost estimate of a plan: steps, memory, time and disk of each stage.

Time and memory of training come from a few real steps on this machine (`step_cost.py`); time from the stage's earlier
run in the same folder if its batches were the same. Nothing is downloaded: for models and data on the hub, published
sizes and row counts are used.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.artifacts import Artifact, Manifest, read_manifest
from toolkit.core.machine import describe, memory
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.measure import latency
from toolkit.models.architectures import usable_positions
from toolkit.models.checkpoint import require_length
from toolkit.pipeline.estimate import data_volume
from toolkit.pipeline.estimate.data_volume import DataVolume
from toolkit.pipeline.estimate.step_facts import (
    config_of,
    criterion_of,
    group_of,
    root_of,
    steps_alike,
    teacher_bf16_of,
    teacher_of,
    tokenizer_of,
    train_of,
    unlabelled_of,
)
from toolkit.pipeline.graph import Step, plan
from toolkit.pipeline.requirements import missing_requirement
from toolkit.recipe import (
    VARIANTS,
    Criterion,
    DistillationTrain,
    Optimizer,
    Recipe,
    Student,
    StudentPruning,
    Train,
    Transfer,
)

if TYPE_CHECKING:
    from toolkit.pipeline.estimate.step_cost import StepCost
    from toolkit.pipeline.estimate.synthetic_step import StepShape

Measure = Callable[["StepShape", float], "StepCost"]

_SECONDS = 32.0  # budget of all measurements together, excluding model construction
_ONE_SHAPE = 6.0  # maximum for one measurement
_LIBRARIES = 1e9  # bytes of a process with torch, transformers, NNCF and its data loaded
# Seconds of a stage besides its steps and its passes over the dev split, measured on runs of the shipped recipes.
_START = 5.0  # model, data, first step
_QUANTIZE = 20.0  # NNCF, calibration
_EXPORT = 10.0  # per variant
_RECONSTRUCTION = 9  # forward passes of the text that calibrates that take as long; MiniLM on one core
_BENCHMARK_APP = 0.6  # start of one run of benchmark_app


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of one step of a plan; figures that cannot be determined here are None.

    Attributes:
        step: The step of the plan.
        steps: Number of optimizer steps; 0 if the stage does not train.
        exact: Whether `steps` is exact rather than an estimate.
        seconds: Duration of the stage in seconds.
        source: Source of `seconds`: `=` measured in this run folder, `~` extrapolated from a few layers, `≤` the same
            with every example at the maximum length.
        memory: Peak memory in bytes; None also if the stage is finished or does not train.
        disk: Size of the stage's folder in bytes.
        remark: Why figures are missing or do not fit, and what to write instead; empty if neither applies.
        groups: Number of groups of candidates that a reranking task is trained on; 0 for others.
    """

    step: Step
    steps: int | None
    exact: bool
    seconds: float | None
    source: str
    memory: float | None
    disk: float | None
    remark: str = ""
    groups: int = 0


def estimate(
    recipe: Recipe,
    run_folder: Path,
    measure: Measure | None = None,
    available: float | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> list[Estimate]:
    """Returns the estimated cost of each step of a recipe's plan, and the actual cost of finished steps.

    Args:
        recipe: The recipe.
        run_folder: Folder of the run; need not exist.
        measure: Measures the cost of a training step, given its shape and a time budget in seconds; None: measure on
            this machine.
        available: Memory that training may use, in bytes; None: this machine's memory.
        log: Receives progress messages.

    Raises:
        UserError: `plan` rejects the recipe, or a sequence length exceeds the model's positions.
    """
    inputs = ResolvedInputs()
    steps = plan(recipe, run_folder, inputs)
    costs = _Costs(recipe, steps, inputs, measure, available, log)
    return [_finished(step, step.manifest) if step.manifest else costs.of(step) for step in steps]


def _finished(step: Step, manifest: Manifest) -> Estimate:
    disk = float(sum(f.stat().st_size for f in step.folder.rglob("*") if f.is_file()))
    return Estimate(step, int(manifest.metrics.get("steps", 0)), True, manifest.seconds, "=", None, disk)


@dataclass
class _Costs:
    """Costs of the steps that have not run; each distinct `StepShape` is measured once."""

    recipe: Recipe
    steps: list[Step]
    inputs: ResolvedInputs
    measure: Measure | None
    available: float | None
    log: Callable[[str], None]
    found: "dict[StepShape, StepCost]" = field(default_factory=dict)
    read: dict[tuple[Any, ...], DataVolume] = field(default_factory=dict)

    def of(self, step: Step) -> Estimate:
        shape, train = self._shape(step), train_of(step)
        if missing := _missing_module(step):
            count, exact = self._count(step, train)
            remark = f"{step.label}: {missing[0]} is not installed, so memory and time are unknown; {missing[1]}"
            return Estimate(step, count, exact, None, "", None, None, remark)
        if shape is None:
            unsized = dict.fromkeys(
                str(root_of(model).path) for model in _models(step) if config_of(model, self.inputs) is None
            )
            remark = f"{' and '.join(unsized)}: size unknown before the download, and so are memory and time"
            count, exact = self._count(step, train)
            return Estimate(step, count, exact, None, "", None, None, remark)
        cost, teacher_seconds = self._cost(shape), 0.0
        if teacher_of(step) is None:
            cost = cost.without_teacher()
        elif self._caches_logits(step):  # the teacher is unloaded before training begins
            cost, teacher_seconds = cost.without_teacher(), self._teacher_seconds(step, cost)
        if train is None:
            return Estimate(
                step, 0, True, self._overhead(step, cost), _sign(self._volume(step)), None, self._disk(step, cost)
            )
        count, exact = self._count(step, train)
        need = cost.memory_bytes(train.batch_size) + _LIBRARIES
        if step.stage.name == "quantize":  # the FP32 model stays in memory beside the quantized one
            need += 4 * cost.parameters
        before = read_manifest(step.folder)
        seconds, sign = None, ""
        if count is not None and before is not None and steps_alike(before, step, train, self.inputs):
            own = float(before.metrics["seconds_per_step"])
            rest = max(0.0, before.seconds - own * float(before.metrics["steps"]))
            seconds, sign = count * own + rest, "="
        elif count is not None:
            each = cost.step_seconds(train.gradient_accumulation_steps)
            seconds = count * each + teacher_seconds + self._overhead(step, cost)
            sign = _sign(self._volume(step))
        remark = self._too_much(step, train, cost, need)
        groups = self._volume(step).groups
        return Estimate(step, count, exact, seconds, sign, need, self._disk(step, cost), remark, groups)

    def _shape(self, step: Step) -> "StepShape | None":
        """Returns the shape of a step, or of its evaluation if it does not train; None if a model's size is unknown."""
        from toolkit.pipeline.estimate.synthetic_step import StepShape

        train, section = train_of(step), step.sections[step.stage.name]
        sizes = [config_of(model, self.inputs) for model in _models(step)]
        config, teacher = sizes[0], sizes[1] if len(sizes) > 1 else None
        if config is None or None in sizes:
            return None
        volume = self._volume(step)
        task, corpus = step.sections.get("task"), step.sections.get("corpus")
        longest = task.max_seq_length if task else corpus.longest  # type: ignore[union-attr]
        require_length(longest, usable_positions(json.loads(config)), f"tasks.{step.task}" if task else "corpus")
        settings = self._batches(step)
        return StepShape(
            config=config,
            # A task's steps are measured once, always with a teacher: its cost is measured separately.
            teacher=teacher or (config if task else None),
            kind=task.kind if task else None,
            train=_cost_settings(settings, bool(task)),
            length=volume.batch_length(settings.batch_size),
            longest=longest,
            masked=corpus.mlm_probability if corpus else 0.0,
            positions=section.distillation.positions if step.stage.name == "student" and train else "masked",
            quantized=train is not None and step.stage.name == "quantize",
        )

    def _batches(self, step: Step) -> Train:
        """Returns the training settings of a step, or, to save a measurement, of its task's other stages."""
        stages = (self.recipe.section(name, step.task) for name in ("transfer", "task_teacher"))
        return train_of(step) or next((stage.train for stage in stages if stage), Train(steps=1))

    def _cost(self, shape: "StepShape") -> "StepCost":
        if shape not in self.found:
            if self.measure is None:
                self.measure = _measure_here(self.recipe.threads)
            self.log(f"measuring training steps on this machine: {len(self.found) + 1} of {len(self._shapes)}")
            self.found[shape] = self.measure(shape, min(_ONE_SHAPE, _SECONDS / len(self._shapes)))
        return self.found[shape]

    @cached_property
    def _shapes(self) -> "set[StepShape]":
        """All distinct shapes to measure."""
        shapes = (self._shape(step) for step in self.steps if step.manifest is None and not _missing_module(step))
        return {shape for shape in shapes if shape is not None}

    def _volume(self, step: Step) -> DataVolume:
        """Returns the data volume of a step; each task and corpus is read once."""
        root, train = root_of(step), train_of(step)
        task = step.sections.get("task")
        count = train is not None and train.steps is None
        unlabelled = unlabelled_of(step)
        key = (str(root.path), step.task, task is None and count, unlabelled)
        if key not in self.read:
            tokenizer = tokenizer_of(root, self.inputs)
            if task is not None:
                own = data_volume.task_volume(task, tokenizer)
                more = data_volume.with_unlabelled
                self.read[key] = more(own, task, unlabelled, tokenizer) if unlabelled else own
            else:
                tasks = step.sections["corpus_tasks"]
                self.read[key] = data_volume.corpus_volume(step.sections["corpus"], tasks, tokenizer, count=count)
        return self.read[key]

    def _count(self, step: Step, train: Train | None) -> tuple[int | None, bool]:
        """Returns the number of optimizer steps (None if unknown), and whether it is exact."""
        if train is None or train.steps is not None:
            return (train.steps if train else 0), True
        volume = self._volume(step)
        if volume.examples is None:
            return None, False
        each = train.batch_size * train.gradient_accumulation_steps
        return -(-volume.examples // each) * (train.epoch or 1), volume.exact

    def _caches_logits(self, step: Step) -> bool:
        """Returns whether a step trains with cached teacher logits: follows `teacher_logits.task_distillation`."""
        train = train_of(step)
        if step.task is None or train is None or criterion_of(train).layers is not None:
            return False
        if self._cached_before(step) or train.steps is None:
            return True
        examples = self._volume(step).examples
        seen = train.steps * train.batch_size * train.gradient_accumulation_steps
        return examples is not None and seen >= examples

    def _cached_before(self, step: Step) -> bool:
        """Returns whether an earlier step caches the same teacher's logits of the same task, in the same precision."""
        before = (other for other in self.steps[: self.steps.index(step)] if other.task == step.task)
        return any(
            teacher_of(other) is not None
            and teacher_bf16_of(other) == teacher_bf16_of(step)
            and unlabelled_of(other) == unlabelled_of(step)
            and self._caches_logits(other)
            for other in before
        )

    def _teacher_seconds(self, step: Step, cost: "StepCost") -> float:
        """Returns the seconds to compute the teacher's logits of all training examples; 0 if they are cached."""
        train, examples = train_of(step), self._volume(step).examples
        if train is None or examples is None or self._cached_before(step):
            return 0.0
        return examples / train.batch_size * cost.teacher_seconds

    def _overhead(self, step: Step, cost: "StepCost") -> float:
        """Returns the seconds besides training: startup, and passes over the evaluation splits."""
        stage, section = step.stage.name, step.sections[step.stage.name]
        if isinstance(section, Student) and section.pruning and section.pruning.reconstruction:
            sequences = section.pruning.reconstruction.calibration.sequences
            each = _RECONSTRUCTION * cost.forward_seconds / self._batches(step).batch_size
            return _START + self._updates(section.pruning) * sequences * each
        if stage in ("teacher", "student"):
            return _START
        volume = self._volume(step)
        batch = self._batches(step).batch_size
        over_dev = volume.dev * cost.forward_seconds / batch
        if isinstance(section, Transfer) and section.reconstruction:
            over_dev += _RECONSTRUCTION * section.reconstruction.examples * cost.forward_seconds / batch
        if (unlabelled := unlabelled_of(step)) and unlabelled.pairs:  # each text of the pairs, half an example, once
            over_dev += (volume.examples or 0) / unlabelled.pairs / 2 * cost.forward_seconds / batch
        if stage == "quantize":
            over_tune = volume.tune * cost.forward_seconds / batch
            return _QUANTIZE + over_dev + 2 * over_tune  # FP32 and INT8; further trials take longer
        if stage == "export":  # the torch model and the IR
            return self._variants(step) * (_EXPORT + 2 * over_dev)
        if stage == "benchmark":
            timing, variants = section.evaluation.performance, self._variants(step.inputs["export"])
            accuracy = 0.0 if self._exported_here(step.inputs["export"]) else variants * over_dev
            return accuracy + latency.runs(variants, timing) * (timing.seconds + _BENCHMARK_APP)
        return _START + over_dev

    @staticmethod
    def _updates(section: StudentPruning) -> int:
        """Returns how often a student is reconstructed; a ramp in epochs, whose updates are unknown, counts as one."""
        ramps = section.approach.weight_compression.resolve(steps_per_epoch=1)
        return max(-(-(r.end_step - r.start_step) // r.update_frequency_on_step) + 1 for r in ramps)

    def _exported_here(self, export: Step | Artifact) -> bool:
        """Returns whether an export on this CPU caches the IRs' predictions, so that the benchmark reuses them."""
        done = export.manifest if isinstance(export, Step) else None
        return done is None or done.machine.get("cpu") == describe()["cpu"]

    def _variants(self, export: Step | Artifact) -> int:
        """Returns the number of IR folders of an export: the variants whose model exists."""
        assert isinstance(export, Step), "an export cannot be a ready artifact"
        return sum(VARIANTS[name].source_stage in export.inputs for name in export.sections["export"].variants)

    def _disk(self, step: Step, cost: "StepCost") -> float:
        if step.stage.name == "benchmark":
            return 0.0
        if step.stage.name == "export":
            variants = [VARIANTS[name] for name in step.sections["export"].variants]
            return float(cost.parameters * sum(1 if v.int8 else 4 for v in variants if v.source_stage in step.inputs))
        return float(cost.parameters * 4)

    def _too_much(self, step: Step, train: Train, cost: "StepCost", need: float) -> str:
        """Returns a remark with settings that fit if a stage needs more memory than available, else an empty string."""
        if self.available is None:
            self.available = float(memory()[0])
        if need <= self.available:
            return ""
        state = need - train.batch_size * cost.example_bytes
        group = group_of(step)
        parts = [n for n in range(train.batch_size - 1, 0, -1) if train.batch_size % n == 0 and n % group == 0]
        fits = next((n for n in parts if state + n * cost.example_bytes <= self.available), None)
        what = f"{step.label} needs about {gigabytes(need)}, but only {gigabytes(self.available)} are available"
        if fits is None:
            return f"{what}: reduce max_seq_length or use another machine"
        forwards = train.gradient_accumulation_steps * train.batch_size // fits
        batch = f"batch_size: {fits // group} and gradient_accumulation_steps: {forwards}"
        return f"{what}: write {batch} (same number of steps)"


def _models(step: Step) -> list[Step | Artifact]:
    """Returns the steps or checkpoints whose sizes determine a step's cost: its own and, if any, its teacher's."""
    teacher = teacher_of(step)
    return [step, *([teacher] if teacher else [])]


def _missing_module(step: Step) -> tuple[str, str] | None:
    return missing_requirement(step.sections.get(step.stage.name))


def _measure_here(threads: int | None) -> Measure:
    from toolkit.pipeline.estimate.step_cost import measure

    return lambda shape, seconds: measure(shape, seconds, threads)


def _cost_settings(train: Train, task: bool) -> DistillationTrain:
    """Returns training settings reduced to those that affect the cost of a step, so that fewer shapes differ."""
    name, settings = next((n, s) for n, s in train.optimizer if s is not None)
    plain = settings.model_copy(update={"learning_rate": 1e-5, "weight_decay": 0.0})
    criterion = criterion_of(train)
    if task and criterion.layers is None:
        criterion = Criterion()
    return DistillationTrain(
        steps=1,
        batch_size=train.batch_size,
        precision=train.precision,
        teacher_precision=getattr(train, "teacher_precision", None),
        compile=train.compile,
        recompute=train.recompute,
        optimizer=Optimizer(**{name: plain}),
        criterion=criterion,
    )


def _sign(volume: DataVolume) -> str:
    return "~" if volume.lengths else "≤"


def gigabytes(value: float | None) -> str:
    """Returns bytes as text in GB, or "" if unknown."""
    return "" if value is None else f"{value / 1e9:.1f} GB"
