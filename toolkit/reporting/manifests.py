"""What belongs to a run: the manifests of its folder, each stage of each task once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from toolkit.core.artifacts import Manifest
from toolkit.reporting.claims_table import Score, score_of


def stage_of(run: Sequence[Manifest], stage: str, task: str | None = None) -> Manifest | None:
    """The manifest of a stage, where the run has it."""
    return next((m for m in run if (m.stage, m.task) == (stage, task)), None)


def tasks_of(run: Sequence[Manifest]) -> list[str]:
    """Names of the run's tasks, in its order."""
    return list(dict.fromkeys(m.task for m in run if m.task))


def provenance_groups(
    runs: Sequence[Sequence[Manifest]], what: Literal["machine", "versions"]
) -> list[tuple[str, dict[str, Any]]]:
    """Each machine, or set of versions, behind the figures, with whose they are: run 1 (films, sst2); run 2 (mnli).

    A run may have been moved, and several runs need not share a machine. What counts is where a benchmark ran, since
    speed is of that machine; in a run without one every stage counts. Whose it is stays empty where there is only one.
    """
    found: list[tuple[dict[str, Any], dict[int, list[str]]]] = []
    for number, run in enumerate(runs, start=1):
        for m in [m for m in run if m.stage == "benchmark"] or run:
            values = getattr(m, what)
            owners = next((owners for known, owners in found if known == values), None)
            if owners is None:
                found.append((values, owners := {}))
            owners.setdefault(number, []).append(m.task or m.stage)
    return [(_whose(owners, len(runs)) if len(found) > 1 else "", values) for values, owners in found]


def _whose(owners: dict[int, list[str]], runs: int) -> str:
    names = {number: ", ".join(dict.fromkeys(of_run)) for number, of_run in owners.items()}
    return "; ".join(f"run {number} ({of_run})" if runs > 1 else of_run for number, of_run in names.items())


STAGES = ("task_teacher", "transfer", "quantize")


@dataclass(frozen=True)
class StageScores:
    """One metric of a task after each of its training stages.

    Attributes:
        n: Dev examples, or questions.
        scores: Stage -> score; stages that did not run are missing.
    """

    task: str
    metric: str
    n: int
    scores: dict[str, Score]


def stage_scores(run: Sequence[Manifest]) -> list[StageScores]:
    """A row for each metric of each task that was trained."""
    rows = []
    for task in tasks_of(run):
        found = {stage: m for stage in STAGES if (m := stage_of(run, stage, task)) and m.metrics.get("dev")}
        metrics = dict.fromkeys(metric for m in found.values() for metric in m.metrics["dev"])
        for metric in metrics:
            scores = {
                stage: score_of(metric, m.metrics["dev"][metric], _count(m, metric))
                for stage, m in found.items()
                if metric in m.metrics["dev"]  # a stage may be older than the recipe's `metrics`
            }
            rows.append(StageScores(task, metric, next(iter(scores.values())).n, scores))
    return rows


def _count(manifest: Manifest, metric: str) -> int:
    """A second dev split has a size of its own; manifests made before told the first one's alone."""
    return int(manifest.metrics.get("counts", {}).get(metric, manifest.metrics["dev_n"]))
