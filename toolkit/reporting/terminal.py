"""The report's first table and its main statements, for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.artifacts import Manifest, failed
from toolkit.reporting import text
from toolkit.reporting.budgets import budgets
from toolkit.reporting.headline import Headline, Variant, headline
from toolkit.reporting.runs import split_runs, stage_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def console(manifests: Sequence[Manifest]) -> "RenderableType":
    """The claims table of each task, what it says in words, the budget and the checks."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    runs = split_runs(manifests)
    for number, run in enumerate(runs, start=1):
        for benchmark in (m for m in run if m.stage == "benchmark"):
            head = headline(benchmark)
            parts.append(_table(head, f"run {number}, {head.task}" if len(runs) > 1 else head.task))
            lines = [text.summary(head, stage_of(run, "transfer", head.task)), text.criterion(benchmark)]
            parts += [Text(line) for line in lines if line]
        parts += [Text(line) for line in [text.budget(budgets(run))] if line]
    checks = [c for m in manifests for c in m.checks]
    parts.append(Text(f"{len(checks) - len(failed(checks))} of {len(checks)} checks hold."))
    return Group(*parts)


def _table(head: Headline, title: str) -> "Table":
    """Second lines of the cells compare with dense FP32, so that the table fits 80 columns."""
    from rich.box import SIMPLE
    from rich.table import Table

    note = f"\n{head.note}" if head.note else ""
    table = Table(
        title=title,
        box=SIMPLE,
        padding=0,
        caption=f"n = {head.n:,}; ± one standard error; second lines: points and × against dense-fp32{note}",
    )
    table.add_column("variant", no_wrap=True)
    columns = [s.metric for s in head.variants[0].scores]
    columns += [".bin", "gzip", "encoder\n(paper)"]
    columns += [f"latency\nbatch {head.latency_batch}", f"examples/s\nbatch {head.throughput_batch}"]
    for column in columns:
        table.add_column(column, justify="right")
    for v in head.variants:
        table.add_row(v.name, *_cells(v))
    return table


def _cells(v: Variant) -> list[str]:
    scores = [f"{text.score(s)}\n{text.points(s.change) if s.change is not None else ''}" for s in v.scores]
    costs = [
        (v.file, text.storage),
        (v.gzip, text.storage),
        (v.encoder, text.storage),
        (v.latency, text.milliseconds),
        (v.throughput, text.number),
    ]
    return scores + [f"{shown(m.value)}\n{text.times(m.ratio)}" if m else "" for m, shown in costs]
