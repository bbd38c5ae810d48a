"""Costs of `pruneofa plan`: steps, memory, time and disk per stage, as a table or as JSON values."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.pipeline.estimate.costs import Estimate, gigabytes
from toolkit.recipe import Recipe

if TYPE_CHECKING:
    from rich.table import Table


def plan_document(recipe: Recipe, run_folder: Path, rows: Sequence[Estimate]) -> dict[str, Any]:
    """Returns the estimated costs as JSON values: seconds and bytes; null where a figure is unknown."""
    steps = [
        {
            "step": row.step.label,
            "stage": row.step.stage.name,
            "task": row.step.task,
            "cached": row.step.manifest is not None,
            "steps": row.steps,
            "steps_exact": row.exact,
            "seconds": row.seconds,
            "seconds_source": _SOURCES.get(row.source),
            "memory_bytes": row.memory,
            "disk_bytes": row.disk,
            "groups": row.groups or None,
            "remark": row.remark,
        }
        for row in rows
    ]
    return {"name": recipe.name, "folder": run_folder, "steps": steps}


_SOURCES = {"=": "measured in this folder", "~": "estimated", "≤": "upper limit"}


def table_of(recipe: Recipe, run_folder: Path, rows: Sequence[Estimate]) -> "Table":
    """Returns the estimated costs as a table with one row per step."""
    from rich.table import Table
    from rich.text import Text

    legend = (
        "~ estimated from a few steps on the first layers; ≤ the same, with all examples at maximum length; "
        "= measured in this folder"
    )
    remarks = [row.remark for row in rows if row.remark]
    for row in rows:
        if row.groups:
            size = recipe.tasks[row.step.task or ""].ranking.group
            remarks.append(f"{row.step.task}: {row.groups:,} groups of {size} candidates")
    table = Table(title=f"{recipe.name}: {run_folder}", caption="\n".join([legend, *dict.fromkeys(remarks)]))
    table.add_column("stage")
    table.add_column("cached")
    for column in ("steps", "memory", "time", "disk"):
        table.add_column(column, justify="right")
    for row in rows:
        need = gigabytes(row.memory)
        table.add_row(
            row.step.label,
            Text("yes", "green") if row.step.manifest else "no",
            "?" if row.steps is None else f"{'' if row.exact else '~ '}{row.steps:,}" if row.steps else "",
            Text(need, "red") if row.remark and row.memory else need,
            "?" if row.seconds is None else f"{row.source} {_duration(row.seconds)}",
            "?" if row.disk is None else f"{row.disk / 1e6:,.0f} MB",
        )
    to_do = [row.seconds for row in rows if row.step.manifest is None]
    known_ones = sum(seconds for seconds in to_do if seconds is not None)
    table.add_section()
    table.add_row("to do", "", "", "", f"{'~' if None not in to_do else '>'} {_duration(known_ones)}", "")
    return table


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.1f} days"
