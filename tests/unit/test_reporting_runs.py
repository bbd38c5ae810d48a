"""A report of several runs: each stays itself, on its own machine, and what they have in common is said only if so."""

import io
from pathlib import Path

from report_manifests import VARIANTS, run_manifests, task_manifests
from rich.console import Console
from typer.testing import CliRunner

from toolkit import reporting
from toolkit.artifacts import Manifest
from toolkit.cli import app

OF_READY_STUDENT = [
    m.model_copy(update={"inputs": {"student": "ff" * 32}, "run": {"name": "second", "model": "bert"}})
    for m in task_manifests("mnli", 500, 0.0, tuple(VARIANTS))
]


def written(folder: Path, run: list[Manifest]) -> str:
    """A run folder with these manifests."""
    for m in run:
        (folder / m.artifact.path).mkdir(parents=True)
        (folder / m.artifact.path / "manifest.json").write_text(m.model_dump_json())
    return str(folder)


def test_runs_of_different_tasks_are_not_taken_for_one_with_one_student(tmp_path):
    runs = [written(tmp_path / "a", run_manifests()), written(tmp_path / "b", OF_READY_STUDENT)]
    result = CliRunner().invoke(app, ["report", *runs, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    for name in ("report.md", "report.html"):
        shown = (tmp_path / name).read_text().split("</style>")[-1]
        assert "One sparse model" not in shown
        first, _, second = shown.partition("Run 2 of 2")
        assert "Run 1 of 2" in first
        assert ("The student was pruned in" in first, "The student was pruned in" in second) == (True, False)
    assert "run 1, films" in result.output
    assert "run 2, mnli" in result.output


def test_checks_of_all_runs_are_counted_together_in_the_terminal():
    stream = io.StringIO()
    Console(file=stream, width=100).print(reporting.console([run_manifests(), OF_READY_STUDENT]))
    assert "7 of 7 checks hold." in stream.getvalue()
