"""`pruneofa report`, and the report at the end of `pruneofa run`."""

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.terminal import Outcome
from toolkit.core.errors import CompressionFailed

if TYPE_CHECKING:
    from toolkit.core.artifacts import Manifest


def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders")],
    out: Annotated[Path | None, typer.Option(help="folder to write; default: <first run>/report")] = None,
) -> None:
    """Regenerate the report (HTML, Markdown) of finished runs, and the model cards of their IRs, from the manifests."""
    from toolkit import reporting
    from toolkit.cli.terminal import Console
    from toolkit.pipeline.graph import finished_manifests

    found = [finished_manifests(folder) for folder in runs]
    page = reporting.build(found, out or runs[0] / "report")
    Console().print(reporting.console(found))
    for folder, manifests in zip(runs, found, strict=True):
        show_cards(manifests, folder)
    typer.echo(f"Report: {page}")


def reported(
    manifests: "list[Manifest]", folder: Path, *, with_report: bool = True, latency_counts: bool = True
) -> Outcome:
    """Writes and prints the report of a run, and returns the run's outcome.

    Args:
        manifests: Manifests of the finished stages.
        folder: Run folder.
        with_report: Whether the report is written and printed; otherwise only the outcome is returned.
        latency_counts: Whether compression has failed where a dense variant is faster.
    """
    from toolkit.reporting.report import PAGE
    from toolkit.reporting.rows import stage_rows, variant_rows

    error = None
    try:
        if with_report:
            show_report(manifests, folder, latency_counts=latency_counts)
    except CompressionFailed as missed:  # everything is finished: the document says what was made
        error = missed
    page = folder / "report" / PAGE
    document = {
        "folder": folder,
        "report": page if with_report and page.is_file() else None,
        "stages": stage_rows(manifests, folder),
        "variants": variant_rows(manifests, folder),
    }
    return Outcome(document, error=error)


def show_cards(manifests: "list[Manifest]", folder: Path, task: str | None = None) -> None:
    """Writes the model cards of a run's exported IRs, and prints those written or changed by hand, which stay.

    No card is worth a run: errors of the file system are printed, except for a full disk.

    Args:
        manifests: Manifests of the run's finished stages.
        folder: The run folder.
        task: Name of the only task whose cards are written; None: all.
    """
    from toolkit.cli.terminal import Console
    from toolkit.pipeline.requirements import missing_module
    from toolkit.reporting import write_cards

    if missing_module("report"):
        return
    try:
        kept = write_cards(manifests, folder, task)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        path = error.filename2 or error.filename
        lines = [f"{path}: the model cards were not written: {(error.strerror or str(error)).lower()}"]
    else:
        lines = [f"{path}: written or changed by hand, so it stays; delete it to have a new one" for path in kept]
    for line in lines:
        Console().print(line, highlight=False, soft_wrap=True)


def show_report(manifests: "list[Manifest]", folder: Path, *, latency_counts: bool = True) -> None:
    """Writes and prints the report.

    Raises:
        CompressionFailed: Accuracy is at chance, an accuracy criterion is not met, or, if latency counts, a dense
            variant is faster.
    """
    from toolkit import reporting

    write_report(manifests, folder)
    if failed := reporting.failures(manifests, latency_counts=latency_counts):
        raise CompressionFailed("\n".join(failed))


def write_report(manifests: "list[Manifest]", folder: Path) -> None:
    """Writes and prints the report, of a run that is complete or not."""
    from toolkit import reporting
    from toolkit.cli.terminal import Console
    from toolkit.core.artifacts import failed_checks
    from toolkit.measure.manifest_schema import require_recorded
    from toolkit.pipeline.requirements import install_command, missing_module

    for m in manifests:  # those of cached stages may be of an older version
        require_recorded(m, folder / m.artifact.path, m.stage, m.task, complete=True)
    terminal = Console()
    terminal.print(reporting.console([manifests]))
    if module := missing_module("report"):  # optional, e.g. on a machine that only trains
        found = f"No report page: {module} is not installed; {install_command('report')}"
    else:
        page = reporting.build([manifests], folder / "report")
        found = f"Report: {page}"
    if any(m.stage == "export" and not failed_checks(m.checks) for m in manifests):
        found += f"\nIR folders: {folder}/tasks/<task>/export/<variant>"
    terminal.print(found, highlight=False, soft_wrap=True)
