"""What each training stage of a task came to in PyTorch, on the dev split: a run without IRs has nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.core.artifacts import Manifest
from toolkit.reporting.claims_table import Score, score_of
from toolkit.reporting.manifests import stage_of, tasks_of

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
