"""What a run spent on training, beside what the paper spent; and what more of it bought, where that was measured."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.core.artifacts import Manifest
from toolkit.recipe import SHIPPED
from toolkit.reporting.claims_table import claims_table
from toolkit.reporting.manifests import stage_of

# The paper's pre-training, for the teacher and again for the student: steps * sequences per step.
PAPER_STEPS, PAPER_BATCH = 100_000, 256
# Epochs of the published recipes (fine-tuning with the pattern locked, 8-bit training), for GLUE and for SQuAD.
_PAPER_EPOCHS = {
    "classification": {"transfer": 9.0, "quantize": 3.0},
    "question_answering": {"transfer": 8.0, "quantize": 2.0},
}


@dataclass(frozen=True)
class Budget:
    """Training of one stage.

    Attributes:
        batch: Sequences per optimizer step.
        tokens: Those seen in training; None where they were not counted.
        epochs: Passes over the task's training examples; None for pre-training.
        seconds: Of the whole stage, measuring included.
        speed: Tokens a second in training where they were counted, else sequences; None where a step was not timed.
        paper_sequences: What the paper saw in this stage; None where it gives epochs or nothing.
        paper_epochs: The same in epochs.
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
        """Sequences seen, repeats included."""
        return self.steps * self.batch


def budgets(manifests: Sequence[Manifest]) -> list[Budget]:
    """One for each stage that trained."""
    return [_budget(m) for m in manifests if "steps" in m.metrics]


def _budget(manifest: Manifest) -> Budget:
    train = _train_section(manifest)
    metrics, stage = manifest.metrics, manifest.stage
    seen, examples = metrics.get("examples_seen"), metrics.get("train_n")
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
        paper_sequences=PAPER_STEPS * PAPER_BATCH if stage in ("teacher", "student") else None,
        paper_epochs=_PAPER_EPOCHS.get((manifest.config.get("task") or {}).get("kind", ""), {}).get(stage),
    )


def _train_section(manifest: Manifest) -> dict[str, Any]:
    section = manifest.config.get(manifest.stage) or {}
    # With a teacher, without one in a task's stages, and in the teachers' own stages.
    holders = (section.get("distillation"), section.get("pruning"), section.get("quantization"), section)
    return next((h["train"] for h in holders if h and h.get("train")), {})


@dataclass(frozen=True)
class Gain:
    """The same task after two pre-training budgets of the student, all else in its recipe alike."""

    task: str
    metric: str
    n: int
    steps: tuple[int, int]
    scores: tuple[float, float]


def budget_gains(runs: Sequence[Sequence[Manifest]]) -> list[Gain]:
    """What more student steps bought, from runs that differ in nothing else: the least against the most."""
    found: dict[tuple[str, str], list[tuple[int, Manifest]]] = {}
    for run in runs:
        student = stage_of(run, "student")
        if student is None:
            continue
        for m in run:
            if m.stage == "benchmark" and SHIPPED in m.metrics["variants"]:
                key = (m.task or "", _all_but_length(run, m.task))
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


# The stages that shape a task's score, the student's first.
_SHAPING = ("student", "task_teacher", "transfer", "quantize")
# Keys by which no score changes.
_ASIDE = frozenset({"log_every", "checkpoint_every"})
# What a longer training of the student brings with it: its length, and when it prunes.
_IN_STEPS = frozenset({"steps", "start_step", "end_step", "update_frequency_on_step"})
_LENGTH = _IN_STEPS | {"epoch", "start_epoch", "end_epoch", "update_frequency"}


def _all_but_length(run: Sequence[Manifest], task: str | None) -> str:
    """All that a task's score comes from, less the student's length: equal texts, equal recipes and data."""
    stages = [stage_of(run, stage, None if stage == "student" else task) for stage in _SHAPING]
    # What these stages made differs with the student, or is told by the stage itself; ready inputs tell of themselves.
    made = {m.artifact.sha256 for m in stages if m}
    parts: list[Any] = []
    for m in stages:
        if m is None:
            parts.append(None)
            continue
        left_out = _ASIDE | _LENGTH if m.stage == "student" else _ASIDE
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
