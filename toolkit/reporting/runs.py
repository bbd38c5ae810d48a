"""Which of several manifests belong to one run."""

from collections.abc import Sequence

from toolkit.artifacts import Manifest


def split_runs(manifests: Sequence[Manifest]) -> list[list[Manifest]]:
    """Cuts a sequence where a stage of a task comes again: run after run, each with a stage once."""
    runs: list[list[Manifest]] = []
    seen: set[tuple[str | None, str]] = set()
    for manifest in manifests:
        if not runs or (manifest.task, manifest.stage) in seen:
            runs.append([])
            seen = set()
        seen.add((manifest.task, manifest.stage))
        runs[-1].append(manifest)
    return runs


def stage_of(run: Sequence[Manifest], stage: str, task: str | None = None) -> Manifest | None:
    """The manifest of a stage, where the run has it."""
    return next((m for m in run if (m.stage, m.task) == (stage, task)), None)


def tasks_of(run: Sequence[Manifest]) -> list[str]:
    """Names of the run's tasks, in its order."""
    return list(dict.fromkeys(m.task for m in run if m.task))
