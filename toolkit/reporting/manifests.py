"""What belongs to a run: the manifests of its folder, each stage of each task once."""

from collections.abc import Sequence
from typing import Any, Literal

from toolkit.core.artifacts import Manifest


def stage_of(run: Sequence[Manifest], stage: str, task: str | None = None) -> Manifest | None:
    """The manifest of a stage, where the run has it."""
    return next((m for m in run if (m.stage, m.task) == (stage, task)), None)


def tasks_of(run: Sequence[Manifest]) -> list[str]:
    """Names of the run's tasks, in its order."""
    return list(dict.fromkeys(m.task for m in run if m.task))


def behind(
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
