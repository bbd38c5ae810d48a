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
            lines = [text.summary(head, stage_of(run, "student")), text.criterion(benchmark)]
            parts += [Text(line) for line in lines if line]
        parts += [Text(line) for line in [text.budget(budgets(run))] if line]
    checks = [c for m in manifests for c in m.checks]
    parts.append(Text(f"{len(checks) - len(failed(checks))} of {len(checks)} checks hold."))
    return Group(*parts)


def _table(head: Headline, title: str) -> "Table":
    from rich.table import Table

    note = f"; {head.note}" if head.note else ""
    table = Table(
        title=title, caption=f"± is one standard error, n = {head.n:,}; × is against dense-fp32, higher is better{note}"
    )
    table.add_column("variant", no_wrap=True)
    for score in head.variants[0].scores:
        table.add_column(score.metric, justify="right")
    for column in (
        "change",
        ".bin",
        "gzip",
        "encoder (paper)",
        f"latency, batch {head.latency_batch}",
        f"throughput, batch {head.throughput_batch}",
    ):
        table.add_column(column, justify="right")
    for v in head.variants:
        table.add_row(v.name, *(text.score(s) for s in v.scores), *_costs(v))
    return table


def _costs(v: Variant) -> tuple[str, ...]:
    change = v.scores[0].change
    return (
        "" if change is None else text.points(change),
        f"{text.megabytes(v.file.value)} {text.times(v.file.ratio)}",
        f"{text.megabytes(v.gzip.value)} {text.times(v.gzip.ratio)}",
        text.times(v.encoder.ratio) if v.encoder else "",
        f"{text.milliseconds(v.latency.value)} {text.times(v.latency.ratio)}" if v.latency else "",
        f"{text.number(v.throughput.value)}/s {text.times(v.throughput.ratio)}" if v.throughput else "",
    )
