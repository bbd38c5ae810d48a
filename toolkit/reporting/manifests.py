"""Lookups in the manifests of a run: stages, tasks, scores, machines and versions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from toolkit.core.artifacts import Manifest
from toolkit.reporting.claims_table import Score, score_of


def stage_of(run: Sequence[Manifest], stage: str, task: str | None = None) -> Manifest | None:
    """Returns the manifest of a stage, or None if the run does not have it."""
    return next((m for m in run if (m.stage, m.task) == (stage, task)), None)


def tasks_of(run: Sequence[Manifest]) -> list[str]:
    """Returns the names of a run's tasks, in order."""
    return list(dict.fromkeys(m.task for m in run if m.task))


def provenance_groups(
    runs: Sequence[Sequence[Manifest]], what: Literal["machine", "versions"]
) -> list[tuple[str, dict[str, Any]]]:
    """Returns distinct machines or versions, each with its runs and tasks: run 1 (films, sst2); run 2 (mnli).

    Runs need not share a machine, and a run folder can be moved between machines. Of a run with benchmarks only those
    count, since they determine the speed; otherwise every stage does. The first entry of a pair is empty if all figures
    have the same machine or versions.
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
    """Scores of one metric of a task after each of its training stages.

    Attributes:
        task: Name of the task.
        metric: Name of the metric.
        n: Number of dev examples or questions.
        scores: Stage -> score; stages that did not run are absent.
    """

    task: str
    metric: str
    n: int
    scores: dict[str, Score]

    @property
    def has_intervals(self) -> bool:
        """Whether the metric is a fraction of the examples, so that its scores have intervals."""
        return any(score.interval for score in self.scores.values())


def stage_scores(run: Sequence[Manifest]) -> list[StageScores]:
    """Returns the scores of each metric of each trained task."""
    rows = []
    for task in tasks_of(run):
        found = {stage: m for stage in STAGES if (m := stage_of(run, stage, task)) and m.metrics.get("dev")}
        metrics = dict.fromkeys(metric for m in found.values() for metric in m.metrics["dev"])
        for metric in metrics:
            scores = {
                stage: score_of(metric, m.metrics["dev"][metric], count_of(m.metrics, metric))
                for stage, m in found.items()
                if metric in m.metrics["dev"]  # the stage may predate a metric of the recipe
            }
            rows.append(StageScores(task, metric, next(iter(scores.values())).n, scores))
    return rows


def count_of(metrics: dict[str, Any], metric: str) -> int:
    """Returns the number of examples of a metric's dev split; older manifests record the first split's only."""
    return int(metrics.get("counts", {}).get(metric, metrics["dev_n"]))
