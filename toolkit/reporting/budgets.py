"""Training budgets of a run and of the paper, and the effect of a larger budget on scores."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.core.artifacts import Manifest
from toolkit.recipe import SHIPPED
from toolkit.reporting.claims_table import claims_table
from toolkit.reporting.manifests import stage_of

# Pre-training in the paper, for teacher and student each: optimizer steps, and sequences per step.
PAPER_STEPS, PAPER_BATCH = 100_000, 256
# Epochs of the published recipes (fine-tuning with the pattern locked, quantization-aware training): GLUE, SQuAD.
_PAPER_EPOCHS = {
    "classification": {"transfer": 9.0, "quantize": 3.0},
    "question_answering": {"transfer": 8.0, "quantize": 2.0},
}


@dataclass(frozen=True)
class Budget:
    """Training budget of one stage.

    Attributes:
        stage: Name of the stage.
        task: Name of the task; empty for pre-training.
        steps: Number of optimizer steps.
        batch: Sequences per optimizer step.
        tokens: Training tokens, repeats included; None if they were not counted.
        epochs: Passes over the task's training examples; None for pre-training.
        seconds: Duration of the stage, including evaluation.
        speed: Training throughput per second, in tokens if they were counted, else in sequences; None if not timed.
        paper_sequences: Training sequences of this stage in the paper; None if it reports epochs or nothing.
        paper_epochs: Training epochs of this stage in the paper; None if it reports sequences or nothing.
    """

    stage: str
    task: str
    steps: int
    batch: int
    tokens: int | None
    epochs: float | None
    seconds: float
    speed: float | None
    paper_sequences: int | None
    paper_epochs: float | None

    @property
    def sequences(self) -> int:
        """Number of training sequences, repeats included."""
        return self.steps * self.batch


def budgets(manifests: Sequence[Manifest]) -> list[Budget]:
    """Returns the budget of each stage that trained; a student that was only reconstructed has none."""
    return [_budget(m) for m in manifests if m.metrics.get("steps")]


def _budget(manifest: Manifest) -> Budget:
    train = _train_section(manifest)
    metrics, stage = manifest.metrics, manifest.stage
    seen, examples = metrics.get("examples_seen"), metrics.get("train_n")
    as_in_paper = stage != "student" or metrics.get("sparsity") is not None  # else a dense student of fewer layers
    batch = train.get("batch_size", 1) * train.get("gradient_accumulation_steps", 1)
    return Budget(
        stage=stage,
        task=manifest.task or "",
        steps=int(metrics["steps"]),
        batch=batch,
        tokens=metrics.get("tokens_seen"),
        epochs=seen / examples if seen and examples else None,
        seconds=manifest.seconds,
        speed=metrics.get("tokens_per_second") or (batch / each if (each := metrics.get("seconds_per_step")) else None),
        paper_sequences=PAPER_STEPS * PAPER_BATCH if stage in ("teacher", "student") and as_in_paper else None,
        paper_epochs=_PAPER_EPOCHS.get((manifest.config.get("task") or {}).get("kind", ""), {}).get(stage),
    )


def _train_section(manifest: Manifest) -> dict[str, Any]:
    section = manifest.config.get(manifest.stage) or {}
    # In order: with distillation; without it in `transfer` and `quantize`; the teachers' stages.
    holders = (section.get("distillation"), section.get("pruning"), section.get("quantization"), section)
    return next((h["train"] for h in holders if h and h.get("train")), {})


@dataclass(frozen=True)
class Gain:
    """Scores of a task after two training budgets of the student, with otherwise equal recipes.

    Attributes:
        task: Name of the task.
        metric: Name of its first metric.
        n: Number of dev examples.
        steps: Pruning steps of the student, smaller budget first.
        scores: Scores of the shipped variant, in the same order.
    """

    task: str
    metric: str
    n: int
    steps: tuple[int, int]
    scores: tuple[float, float]


def budget_gains(runs: Sequence[Sequence[Manifest]]) -> list[Gain]:
    """Compares the smallest with the largest student budget, among runs that differ in nothing else."""
    found: dict[tuple[str, str], list[tuple[int, Manifest]]] = {}
    for run in runs:
        student = stage_of(run, "student")
        if student is None:
            continue
        for m in run:
            if m.stage == "benchmark" and SHIPPED in m.metrics["variants"]:
                key = (m.task or "", _identity(run, m.task))
                found.setdefault(key, []).append((int(student.metrics["steps"]), m))
    result = []
    for (task, _), measured in found.items():
        (few, first), (many, last) = min(measured, key=lambda x: x[0]), max(measured, key=lambda x: x[0])
        before, after = claims_table(first).variant(SHIPPED), claims_table(last).variant(SHIPPED)
        if few == many or before is None or after is None or first.metrics["dev_n"] != last.metrics["dev_n"]:
            continue
        scores = (before.scores[0].value, after.scores[0].value)
        result.append(Gain(task, before.scores[0].metric, int(first.metrics["dev_n"]), (few, many), scores))
    return result


# Stages that affect a task's score, in execution order.
_SCORING_STAGES = ("student", "task_teacher", "transfer", "quantize")
# Keys without effect on scores.
_NEUTRAL = frozenset({"log_every", "checkpoint_every"})
# Keys that change with the student's budget: its length and its pruning schedule.
_IN_STEPS = frozenset({"steps", "start_step", "end_step", "update_frequency_on_step"})
_LENGTH = _IN_STEPS | {"epoch", "start_epoch", "end_epoch", "update_frequency"}


def _identity(run: Sequence[Manifest], task: str | None) -> str:
    """Returns a text that is equal for runs with equal recipes and data, up to the student's budget."""
    stages = [stage_of(run, stage, None if stage == "student" else task) for stage in _SCORING_STAGES]
    # These stages' outputs depend on the budget, so their settings are compared instead; ready inputs by their hash.
    made = {m.artifact.sha256 for m in stages if m}
    parts: list[Any] = []
    for m in stages:
        if m is None:
            parts.append(None)
            continue
        left_out = _NEUTRAL | _LENGTH if m.stage == "student" else _NEUTRAL
        config = m.config | {m.stage: _without(m.config.get(m.stage), left_out)}
        if "task" in config:
            config["task"] = {key: value for key, value in config["task"].items() if key != "note"}
        files = sorted(entry["sha256"] for entry in m.data.values() if isinstance(entry, dict) and "sha256" in entry)
        inputs = {name: digest for name, digest in m.inputs.items() if digest not in made}
        parts.append([config, files, inputs, m.seed, round(m.metrics.get("sparsity", 0), 3)])
    return json.dumps(parts, sort_keys=True)


def _without(value: Any, keys: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    return [_without(inner, keys) for inner in value] if isinstance(value, list | tuple) else value
