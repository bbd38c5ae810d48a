"""What belongs to a run: the manifests of its folder, each stage of each task once."""

from collections.abc import Sequence

from toolkit.artifacts import Manifest


def stage_of(run: Sequence[Manifest], stage: str, task: str | None = None) -> Manifest | None:
    """The manifest of a stage, where the run has it."""
    return next((m for m in run if (m.stage, m.task) == (stage, task)), None)


def tasks_of(run: Sequence[Manifest]) -> list[str]:
    """Names of the run's tasks, in its order."""
    return list(dict.fromkeys(m.task for m in run if m.task))
