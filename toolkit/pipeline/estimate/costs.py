"""What a plan will cost, roughly: steps, memory, time and disk of each stage.

Time and memory of training come from a few real steps on this machine (`measure/training_step.py`); time from this run
folder's own steps where the stage ran before with the same batches. Nothing is fetched: of models on the hub the public
sizes are enough, of data on the hub the public numbers of rows.
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
    root_of,
    steps_alike,
    teacher_bf16_of,
    teacher_of,
    tokenizer_of,
    train_of,
)
from toolkit.pipeline.graph import Step, plan
from toolkit.pipeline.requirements import missing_requirement
from toolkit.recipe import (
    VARIANTS,
    Criterion,
    DistillationTrain,
    IntermediateSettings,
    KDLossSettings,
    Optimizer,
    Recipe,
    Train,
)

if TYPE_CHECKING:
    from toolkit.pipeline.estimate.step_cost import StepCost
    from toolkit.pipeline.estimate.synthetic_step import StepShape

Measure = Callable[["StepShape", float], "StepCost"]

_SECONDS = 32.0  # for all measurements together, less the building of their models
_ONE_SHAPE = 6.0  # for one of them at most
_LIBRARIES = 1e9  # bytes of a process that has loaded torch, transformers, NNCF and its data
# Seconds that a stage takes besides its steps and its passes over the dev split, as the shipped recipes' runs showed.
_START = 5.0  # model, data, first step
_QUANTIZE = 20.0  # NNCF, calibration
_EXPORT = 10.0  # of one variant
_BENCHMARK_APP = 0.6  # start of one run


@dataclass(frozen=True)
class Estimate:
    """Of one step of the plan; None: cannot be known here.

    Attributes:
        steps: Optimizer steps; 0: the stage does not train.
        exact: Whether the steps are what the run will count.
        seconds: All of the stage.
        source: Of the seconds: `=` measured in this run folder, `~` measured on a few layers, `≤` the same with every
            example as long as the recipe allows.
        memory: Bytes.
        disk: Bytes that stay.
        remark: What does not fit, and what to write instead.
    """

    step: Step
    steps: int | None
    exact: bool
    seconds: float | None
    source: str
    memory: float | None
    disk: float | None
    remark: str = ""


def estimate(
    recipe: Recipe,
    run_folder: Path,
    measure: Measure | None = None,
    available: float | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> list[Estimate]:
    """What each step of the plan costs.

    Args:
        recipe: What to do.
        run_folder: Where it is, or was, done.
        measure: (shape of a training step, seconds it may take) -> its cost; None: on this machine.
        available: Bytes that training may use; None: this machine's memory.
        say: Told what is being measured.

    Raises:
        UserError: As `pipeline.plan`.
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
    """The costs of the steps that are to be made: shapes that are alike are measured once."""

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
        if lacks := _lacks(step):
            count, exact = self._count(step, train)
            remark = f"{step.label}: {lacks[0]} is not installed, so memory and time are not known; {lacks[1]}"
            return Estimate(step, count, exact, None, "", None, None, remark)
        if shape is None:
            unsized = dict.fromkeys(str(root.path) for root in _roots(step) if config_of(root, self.inputs) is None)
            remark = (
                f"{' and '.join(unsized)}: its size is not known before it is fetched, so neither are memory and time"
            )
            count, exact = self._count(step, train)
            return Estimate(step, count, exact, None, "", None, None, remark)
        cost, asking = self._cost(shape), 0.0
        if teacher_of(step) is None:
            cost = cost.without_teacher()
        elif self._keeps_answers(step):  # the teacher is gone when training begins
            cost, asking = cost.without_teacher(), self._asking(step, cost)
        if train is None:
            return Estimate(
                step, 0, True, self._aside(step, cost), _sign(self._amount(step)), None, self._disk(step, cost)
            )
        count, exact = self._count(step, train)
        need = cost.memory_bytes(train.batch_size) + _LIBRARIES
        if step.stage.name == "quantize":  # the FP32 model that was quantized is still there
            need += 4 * cost.parameters
        before = read_manifest(step.folder)
        seconds, sign = None, ""
        if count is not None and before is not None and steps_alike(before, step, train, self.inputs):
            own = float(before.metrics["seconds_per_step"])
            rest = max(0.0, before.seconds - own * float(before.metrics["steps"]))
            seconds, sign = count * own + rest, "="
        elif count is not None:
            each = cost.step_seconds(train.gradient_accumulation_steps)
            seconds, sign = count * each + asking + self._aside(step, cost), _sign(self._amount(step))
        remark = self._too_much(step, train, cost, need)
        return Estimate(step, count, exact, seconds, sign, need, self._disk(step, cost), remark)

    def _shape(self, step: Step) -> "StepShape | None":
        """Of a stage that does not train: that of the task's evaluation. None: a model's size is not known."""
        from toolkit.pipeline.estimate.synthetic_step import StepShape

        train, section = train_of(step), step.sections[step.stage.name]
        sizes = [config_of(root, self.inputs) for root in _roots(step)]
        config, teacher = sizes[0], sizes[1] if len(sizes) > 1 else None
        if config is None or None in sizes:
            return None
        amount = self._amount(step)
        task, corpus = step.sections.get("task"), step.sections.get("corpus")
        longest = (task or corpus).max_seq_length  # type: ignore[union-attr]
        require_length(longest, usable_positions(json.loads(config)), f"tasks.{step.task}" if task else "corpus")
        settings = self._batches(step)
        return StepShape(
            config=config,
            # A task's steps are measured once, with a teacher: what it takes is told apart.
            teacher=teacher or (config if task else None),
            kind=task.kind if task else None,
            train=_what_costs(settings, bool(task)),
            length=amount.batch_length(settings.batch_size),
            longest=longest,
            masked=corpus.mlm_probability if corpus else 0.0,
            positions=section.distillation.positions if step.stage.name == "student" else "masked",
            quantized=train is not None and step.stage.name == "quantize",
        )

    def _batches(self, step: Step) -> Train:
        """How a step trains; of one that does not, how its task's other stages do, so that nothing more is measured."""
        stages = (self.recipe.section(name, step.task) for name in ("transfer", "task_teacher"))
        return train_of(step) or next((stage.train for stage in stages if stage), Train(steps=1))

    def _cost(self, shape: "StepShape") -> "StepCost":
        if shape not in self.found:
            if self.measure is None:
                self.measure = _here(self.recipe.threads)
            self.log(f"measuring training steps on this machine: {len(self.found) + 1} of {len(self._shapes)}")
            self.found[shape] = self.measure(shape, min(_ONE_SHAPE, _SECONDS / len(self._shapes)))
        return self.found[shape]

    @cached_property
    def _shapes(self) -> "set[StepShape]":
        """All that is to be measured."""
        shapes = (self._shape(step) for step in self.steps if step.manifest is None and not _lacks(step))
        return {shape for shape in shapes if shape is not None}

    def _amount(self, step: Step) -> DataVolume:
        """What the step reads; each task and corpus is read once."""
        root, train = root_of(step), train_of(step)
        task = step.sections.get("task")
        count = train is not None and train.steps is None
        key = (str(root.path), step.task, task is None and count)
        if key not in self.read:
            tokenizer = tokenizer_of(root, self.inputs)
            if task is not None:
                self.read[key] = data_volume.task_volume(task, tokenizer)
            else:
                tasks = step.sections["corpus_tasks"]
                self.read[key] = data_volume.corpus_volume(step.sections["corpus"], tasks, tokenizer, count=count)
        return self.read[key]

    def _count(self, step: Step, train: Train | None) -> tuple[int | None, bool]:
        """Optimizer steps, and whether the run will count as many."""
        if train is None or train.steps is not None:
            return (train.steps if train else 0), True
        amount = self._amount(step)
        if amount.examples is None:
            return None, False
        each = train.batch_size * train.gradient_accumulation_steps
        return -(-amount.examples // each) * (train.epoch or 1), amount.exact

    def _keeps_answers(self, step: Step) -> bool:
        """Whether the teacher's logits are on disk when the step trains: `lessons.task_lesson` has them made."""
        train = train_of(step)
        if step.task is None or train is None or isinstance(criterion_of(train).settings, IntermediateSettings):
            return False
        if self._answered_before(step) or train.steps is None:
            return True
        examples = self._amount(step).examples
        seen = train.steps * train.batch_size * train.gradient_accumulation_steps
        return examples is not None and seen >= examples

    def _answered_before(self, step: Step) -> bool:
        """Whether an earlier step leaves the same teacher's logits of the same task, in the same precision."""
        before = (other for other in self.steps[: self.steps.index(step)] if other.task == step.task)
        return any(
            teacher_of(other) is not None
            and teacher_bf16_of(other) == teacher_bf16_of(step)
            and self._keeps_answers(other)
            for other in before
        )

    def _asking(self, step: Step, cost: "StepCost") -> float:
        """Seconds that the teacher takes to answer all training examples; nothing where it has done so."""
        train, examples = train_of(step), self._amount(step).examples
        if train is None or examples is None or self._answered_before(step):
            return 0.0
        return examples / train.batch_size * cost.teacher_seconds

    def _aside(self, step: Step, cost: "StepCost") -> float:
        """Seconds besides training: starting, and passes over the measured splits."""
        stage, section = step.stage.name, step.sections[step.stage.name]
        if stage in ("teacher", "student"):
            return _START
        amount = self._amount(step)
        batch = self._batches(step).batch_size
        over_dev = amount.dev * cost.forward_seconds / batch
        if stage == "quantize":
            over_tune = amount.tune * cost.forward_seconds / batch
            return _QUANTIZE + over_dev + 2 * over_tune  # FP32 and 8 bits; a search takes more
        if stage == "export":  # torch, then the IR
            return self._variants(step) * (_EXPORT + 2 * over_dev)
        if stage == "benchmark":
            timing, variants = section.evaluation.performance, self._variants(step.inputs["export"])
            asking = 0.0 if self._asked_here(step.inputs["export"]) else variants * over_dev
            return asking + latency.runs(variants, timing) * (timing.seconds + _BENCHMARK_APP)
        return _START + over_dev

    def _asked_here(self, export: Step | Artifact) -> bool:
        """Whether the IRs will have been asked about the dev split on this CPU, by their export."""
        done = export.manifest if isinstance(export, Step) else None
        return done is None or done.machine.get("cpu") == describe()["cpu"]

    def _variants(self, export: Step | Artifact) -> int:
        """IR folders that an export leaves: those that there are models for."""
        assert isinstance(export, Step), "nothing else makes IR folders"
        return sum(VARIANTS[name].source_stage in export.inputs for name in export.sections["export"].variants)

    def _disk(self, step: Step, cost: "StepCost") -> float:
        if step.stage.name == "benchmark":
            return 0.0
        if step.stage.name == "export":
            variants = [VARIANTS[name] for name in step.sections["export"].variants]
            return float(cost.parameters * sum(1 if v.int8 else 4 for v in variants if v.source_stage in step.inputs))
        return float(cost.parameters * 4)

    def _too_much(self, step: Step, train: Train, cost: "StepCost", need: float) -> str:
        """What to write where a stage needs more memory than there is; empty where it does not."""
        if self.available is None:
            self.available = float(memory()[0])
        if need <= self.available:
            return ""
        state = need - train.batch_size * cost.example_bytes
        parts = [n for n in range(train.batch_size - 1, 0, -1) if train.batch_size % n == 0]
        fits = next((n for n in parts if state + n * cost.example_bytes <= self.available), None)
        what = f"{step.label} needs about {gigabytes(need)} of the {gigabytes(self.available)} here"
        if fits is None:
            return f"{what}: a shorter max_seq_length, or another machine"
        forwards = train.gradient_accumulation_steps * train.batch_size // fits
        return f"{what}: write batch_size: {fits} and gradient_accumulation_steps: {forwards} (the same steps)"


def _roots(step: Step) -> list[Artifact]:
    """The checkpoints whose sizes decide what a step costs: that of its model, and that of its teacher's."""
    teaching = teacher_of(step)
    return [root_of(step), *([root_of(teaching)] if teaching else [])]


def _lacks(step: Step) -> tuple[str, str] | None:
    return missing_requirement(step.sections.get(step.stage.name))


def _here(threads: int | None) -> Measure:
    from toolkit.pipeline.estimate.step_cost import measure

    return lambda shape, seconds: measure(shape, seconds, threads)


def _what_costs(train: Train, task: bool) -> DistillationTrain:
    """A training's settings without those that make no difference to the cost of a step, so that more are alike."""
    name, settings = next((n, s) for n, s in train.optimizer if s is not None)
    plain = settings.model_copy(update={"learning_rate": 1e-5, "weight_decay": 0.0})
    criterion = criterion_of(train)
    if task and isinstance(criterion.settings, KDLossSettings):
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


def _sign(amount: DataVolume) -> str:
    return "~" if amount.lengths else "≤"


def gigabytes(value: float | None) -> str:
    """In words; nothing where nothing is known."""
    return "" if value is None else f"{value / 1e9:.1f} GB"
