"""What a plan will cost, roughly: steps, time and disk of each stage.

Time comes from an earlier run of the same stage in this run folder where there is one; otherwise from counting
floating-point operations against this machine's measured matrix speed. Both are marked, neither is a promise.
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import sources
from toolkit.artifacts import read_manifest
from toolkit.pipeline import Step, plan
from toolkit.recipe import Recipe, Student, Train

if TYPE_CHECKING:
    from rich.table import Table

# Share of the machine's plain matrix speed that a training step reaches: measured on the quickstart (small matrices,
# softmax, LayerNorm and the optimizer cost the rest).
_EFFICIENCY = 0.35


def plan_table(recipe: Recipe, run_folder: Path) -> "Table":
    """One row per step: cached or not, optimizer steps, time, disk."""
    from rich.table import Table

    table = Table(title=f"{recipe.name}: {run_folder}", caption="~ estimated from operation counts; = measured before")
    for column, justify in (
        ("stage", "left"),
        ("cached", "left"),
        ("steps", "right"),
        ("time", "right"),
        ("disk", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    config = json.loads((sources.model_folder(recipe.model.source) / "config.json").read_text())
    speed = _matrix_flops()
    total = 0.0
    for step in plan(recipe, run_folder):
        steps, seconds, measured = _cost(recipe, step, config, speed)
        total += 0.0 if step.manifest else seconds
        table.add_row(
            step.label,
            "[green]yes[/]" if step.manifest else "no",
            f"{steps:,}" if steps else "",
            f"{'=' if measured else '~'} {_duration(seconds)}",
            f"{_disk(step, config) / 1e6:,.0f} MB",
        )
    table.add_section()
    table.add_row("to do", "", "", f"~ {_duration(total)}", "")
    return table


def _cost(recipe: Recipe, step: Step, config: dict[str, Any], flops: float) -> tuple[int, float, bool]:
    """Optimizer steps, seconds, and whether the seconds were measured."""
    train = _train_of(step)
    before = read_manifest(step.folder)
    if train is None:
        return 0, before.seconds if before else 60.0, before is not None
    steps = optimizer_steps(recipe, step, train)
    if before and before.metrics.get("seconds_per_step"):
        return steps, steps * float(before.metrics["seconds_per_step"]), True
    length = (step.sections.get("corpus") or step.sections["task"]).max_seq_length
    tokens = train.batch_size * train.gradient_accumulation_steps * length
    hidden, layers, inner = _shape(config)
    encoder = layers * (4 * hidden * hidden + 2 * hidden * inner)
    masked = step.sections["corpus"].mlm_probability if "corpus" in step.sections else 0.0
    weights = encoder + masked * hidden * config["vocab_size"]
    passes = 6 + (2 if step.stage.name in ("student", "transfer", "quantize") else 0)  # the teacher's forward pass
    fake_quantization = 2.0 if step.stage.name == "quantize" else 1.0
    return steps, steps * tokens * weights * passes * fake_quantization / (flops * _EFFICIENCY), False


def optimizer_steps(recipe: Recipe, step: Step, train: Train) -> int:
    """Steps of a training stage; epochs are counted in lines of the training file."""
    if train.steps is not None:
        return train.steps
    task = step.sections.get("task")
    files = sources.task_files(task)[:1] if task else sources.corpus_files(recipe.corpus, step.sections["corpus_tasks"])  # type: ignore[arg-type]
    lines = 0
    for path in files:
        with sources.open_text(path) as stream:
            lines += sum(1 for _ in stream)
    return -(-lines // (train.batch_size * train.gradient_accumulation_steps)) * (train.epoch or 1)


def _train_of(step: Step) -> Train | None:
    section = step.sections.get(step.stage.name)
    return section.distillation.train if isinstance(section, Student) else getattr(section, "train", None)


def _shape(config: dict[str, Any]) -> tuple[int, int, int]:
    """Hidden size, layers, feed-forward size; DistilBERT has names of its own."""
    hidden = config.get("hidden_size") or config["dim"]
    return (
        hidden,
        config.get("num_hidden_layers") or config["n_layers"],
        config.get("intermediate_size") or config["hidden_dim"],
    )


def _disk(step: Step, config: dict[str, Any]) -> float:
    hidden, layers, inner = _shape(config)
    parameters = layers * (4 * hidden * hidden + 2 * hidden * inner) + config["vocab_size"] * hidden
    per_parameter = {"export": 4 + 4 + 1 + 1, "benchmark": 0}.get(step.stage.name, 4)
    return parameters * per_parameter


def _matrix_flops() -> float:
    """Floating-point operations per second of a single-precision matrix product on this machine, best of five."""
    import numpy as np

    matrix = np.ones((1024, 1024), dtype=np.float32)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return float(2 * 1024**3 / best)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
