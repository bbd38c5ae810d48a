"""A report of several runs: separate sections, machines and versions; common ones are named once."""

import io
import re
from pathlib import Path

from rich.console import Console
from typer.testing import CliRunner

from tests.helpers.manifests import VARIANTS, run_manifests, task_manifests
from toolkit import reporting
from toolkit.cli import app
from toolkit.core.artifacts import Manifest

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
        first, second = re.split(r"(?m)^(?:## |<h2>)Run 2 of 2", shown)
        assert "Run 1 of 2" in first
        assert ("The student was pruned in" in first, "The student was pruned in" in second) == (True, False)
    assert "run 1, films" in result.output
    assert "run 2, mnli" in result.output


def test_checks_of_all_runs_are_counted_together_in_the_terminal():
    stream = io.StringIO()
    Console(file=stream, width=100).print(reporting.console([run_manifests(), OF_READY_STUDENT]))
    assert "7 of 7 checks passed." in stream.getvalue()


def elsewhere(run: list[Manifest], *tasks: str, what: str = "machine") -> list[Manifest]:
    """The run with these tasks' stages (all of it without any) as from another machine."""
    other = {"machine": {"cpu": "Other <CPU>", "cores": 64}, "versions": {"openvino": "2099.1"}}[what]
    return [m.model_copy(update={what: other}) if not tasks or m.task in tasks else m for m in run]


def pages(runs: list[list[Manifest]], folder: Path) -> tuple[str, str]:
    """The page as it is shown, without its script, and the Markdown."""
    return reporting.build(runs, folder).read_text().split("</style>")[-1], (folder / "report.md").read_text()


def test_machines_of_runs_that_were_measured_on_different_ones_are_all_named_with_their_runs(tmp_path):
    html, markdown = pages([elsewhere(run_manifests()), run_manifests()], tmp_path)
    assert "· Other &lt;CPU>, 64 cores; Some CPU @ 2.60GHz, 2 cores ·" in markdown
    assert "Machine, run 1 (films): cpu Other &lt;CPU>; cores 64.\n" in markdown
    assert "Machine, run 2 (films): cpu Some CPU @ 2.60GHz;" in markdown
    assert "\nVersions: python 3.11.7" in markdown, "which are the same"
    assert "· Other &lt;CPU&gt;, 64 cores; Some CPU @ 2.60GHz, 2 cores ·" in html
    for whose, cpu in (("run 1 (films)", "Other &lt;CPU&gt;"), ("run 2 (films)", "Some CPU @ 2.60GHz")):
        assert f"<b>machine</b></dt><dd><b>{whose}</b></dd><dt>cpu</dt><dd>{cpu}</dd>" in html.replace("\n", "")


def test_machines_of_a_run_that_was_moved_are_named_with_their_tasks(tmp_path):
    _, markdown = pages([elsewhere(run_manifests(("films", "mnli", "sst2")), "films", "sst2")], tmp_path)
    assert "Machine, films, sst2: cpu Other &lt;CPU>;" in markdown
    assert "Machine, mnli: cpu Some CPU" in markdown


def test_only_the_machine_of_the_benchmark_is_named_where_there_is_one(tmp_path):
    run = run_manifests()
    _, markdown = pages([elsewhere(run[:-1]) + run[-1:]], tmp_path)
    assert "Other" not in markdown
    assert "\nMachine: cpu Some CPU" in markdown
    trained = [m for m in run if m.stage != "benchmark"]
    _, markdown = pages([elsewhere(trained[:2]) + trained[2:]], tmp_path)
    assert "Machine, teacher, student: cpu Other &lt;CPU>;" in markdown
    assert "Machine, films: cpu Some CPU" in markdown


def test_versions_that_differ_between_benchmarks_are_all_named(tmp_path):
    html, markdown = pages([elsewhere(run_manifests(("films", "sst2")), "films", what="versions")], tmp_path)
    assert "Versions, films: openvino 2099.1.\nVersions, sst2: python 3.11.7, " in markdown
    assert "\nMachine: cpu Some CPU" in markdown
    assert "<b>versions</b></dt><dd><b>films</b></dd><dt>openvino</dt><dd>2099.1</dd>" in html.replace("\n", "")


def test_one_machine_behind_all_is_named_once_without_saying_whose(tmp_path):
    html, markdown = pages([run_manifests(("films", "sst2")), OF_READY_STUDENT], tmp_path)
    assert markdown.count("Some CPU @ 2.60GHz, 2 cores") == 1, "in the head"
    assert markdown.count("Machine: ") == 1
    assert "\nMachine: cpu Some CPU @ 2.60GHz; isa avx2; cores 2; " in markdown
    assert "<b>machine</b>" not in html


def test_the_date_is_that_of_what_started_last(tmp_path):
    run = run_manifests(("films", "sst2"))
    run[2] = run[2].model_copy(update={"started": "2031-02-05T00:00:00+00:00"})
    assert "\n2031-02-05 ·" in pages([run], tmp_path)[1]
