"""The report for the terminal: claims tables, summary sentences and checks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from toolkit.core.artifacts import Manifest, failed_checks
from toolkit.reporting import formatting, sentences
from toolkit.reporting.budgets import budgets
from toolkit.reporting.claims_table import ClaimsTable, Score, VariantRow, claims_table, variants_of
from toolkit.reporting.manifests import STAGES, StageScores, stage_of, stage_scores, tasks_of
from toolkit.reporting.verdicts import Verdict, chosen_of, verdicts

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def console(runs: Sequence[Sequence[Manifest]]) -> "RenderableType":
    """Returns what to deploy, then tables and summaries of each task of each run, its budget and its checks."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for number, run in enumerate(runs, start=1):
        heads = [claims_table(m) for m in run if m.stage == "benchmark"]
        found = verdicts(run)
        for verdict in found:
            parts.append(Text.assemble(_headline(verdict), f" {verdict.reason}\n"))
        if len(heads) > 1:
            parts.append(_overview(heads))
        for benchmark in (m for m in run if m.stage == "benchmark"):
            head = claims_table(benchmark)
            title = f"run {number}, {head.task}" if len(runs) > 1 else head.task
            parts.append(_table(head, title, chosen_of(found, head.task)))
            quantized = stage_of(run, "quantize", head.task)
            sparse = stage_of(run, "transfer", head.task) or quantized
            lines = [sentences.summary(head, sparse, chosen_of(found, head.task)), sentences.criterion(benchmark)]
            lines += sentences.left_out(stage_of(run, "export", head.task))
            parts += [Text(line) for line in lines if line]
            if quantized and quantized.metrics.get("tuning"):
                parts += _tuning(quantized.metrics["tuning"])
        measured = {head.task for head in heads}
        if rows := [row for row in stage_scores(run) if row.task not in measured]:
            parts.append(_in_pytorch(rows))
        for task in tasks_of(run):
            lines = [] if task in measured else sentences.left_out(stage_of(run, "export", task))
            parts += [Text(f"{task}: {line}") for line in lines + sentences.rows_left_out(run, task)]
        parts += [Text(line) for line in [sentences.budget(budgets(run))] if line]
    if checks := [c for run in runs for m in run for c in m.checks]:
        parts.append(Text(f"{len(checks) - len(failed_checks(checks))} of {len(checks)} checks passed."))
    return Group(*parts)


def _headline(verdict: Verdict) -> tuple[str, str]:
    task = f"{verdict.task}: " if verdict.task else ""
    return f"{task}{verdict.headline}.", "bold red" if verdict.failed else "bold green"


def _in_pytorch(rows: Sequence[StageScores]) -> "Table":
    """Returns the table of scores after each stage, for tasks that were not benchmarked."""
    from rich.box import SIMPLE
    from rich.table import Table

    intervals = any(row.has_intervals for row in rows)
    caption = "in parentheses: 95 % interval" if intervals else None
    table = Table(box=SIMPLE, padding=0, title="PyTorch models, dev split", caption=caption)
    table.add_column("task", no_wrap=True)
    table.add_column("metric")
    for name in ("n", *(stages := [stage for stage in STAGES if any(stage in row.scores for row in rows)])):
        table.add_column(name, justify="right")
    for row in rows:
        scores = [formatting.score(row.scores[stage]) if stage in row.scores else "" for stage in stages]
        table.add_row(row.task, row.metric, f"{row.n:,}", *scores)
    return table


def _tuning(found: dict[str, Any]) -> "list[RenderableType]":
    """Returns summary and table of the trials; empty if the first trial met the criterion."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    summary = sentences.tuning(found)
    if not summary:
        return []
    table = Table(
        box=SIMPLE, padding=0, title=f"trials on {found['examples']:,} training examples set aside for tuning"
    )
    for column in (
        "trial",
        "in FP32",
        found["metric"],
        f"lost (max {formatting.percent(found['limit'], 2)})",
        "criterion",
    ):
        table.add_column(column, justify="right")
    if found["costs"]:
        table.add_column(found["objective"], justify="right")
    for trial in found["trials"]:
        selected = trial["number"] == found["kept"]
        table.add_row(
            f"{trial['number']}{' selected' if selected else ''}",
            str(len(trial["returned"])),
            formatting.percent(trial["metric"], 2),
            formatting.percent(trial["loss"], 2),
            "met" if trial["met"] else "not met",
            *([sentences.tuning_cost(found, trial["number"])] if found["costs"] else []),
            style="bold" if selected else None,
        )
    return [Text(summary), table]


def _overview(heads: Sequence[ClaimsTable]) -> "Table":
    """Returns the table of each task's first metric for all variants."""
    from rich.box import SIMPLE
    from rich.table import Table

    names, intervals = variants_of(heads), any(head.has_intervals for head in heads)
    table = Table(
        box=SIMPLE,
        padding=0,
        title=f"{len(heads)} tasks",
        caption="second line: change from dense-fp32 in points" + ("; third line: 95 % interval" if intervals else ""),
    )
    table.add_column("task", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for head in heads:
        scores = [v.scores[0] if (v := head.variant(name)) else None for name in names]
        table.add_row(f"{head.task}\n{head.variants[0].scores[0].metric}", *(_compared(s) if s else "" for s in scores))
    return table


def _table(head: ClaimsTable, title: str, chosen: str | None) -> "Table":
    """Returns a claims table; comparisons and intervals are on further lines, so that it fits 80 columns."""
    from rich.box import SIMPLE
    from rich.table import Table

    lines = [f"n = {formatting.examples(head)}", "second line: change in points from, or ratio to, dense-fp32"]
    if head.has_intervals:
        lines.append("third line: 95 % interval")
    if chosen:
        lines.append("bold: the best variant")
    note = f"\n{head.note}" if head.note else ""
    table = Table(title=title, box=SIMPLE, padding=0, caption="; ".join(lines) + note)
    table.add_column("variant", no_wrap=True)
    columns = [s.metric.replace("_", "_\n") for s in head.variants[0].scores]
    has_gzip = len(columns) <= 2  # three scores leave no room for it; the report has it
    columns += [".bin", *(["gzip"] if has_gzip else []), "encoder\n(paper)"]
    columns += [f"latency\nbatch {head.latency_batch}", f"examples\nper s,\nbatch {head.throughput_batch}"]
    for column in columns:
        table.add_column(column, justify="right")
    for v in head.variants:
        table.add_row(v.name, *_cells(v, has_gzip), style="bold" if v.name == chosen else None)
    return table


def _compared(score: Score) -> str:
    change = "" if score.change is None else formatting.points(score.change)
    return "\n".join((formatting.percent(score.value), change, formatting.interval(score))).rstrip("\n")


def _cells(v: VariantRow, has_gzip: bool) -> list[str]:
    scores = [_compared(s) for s in v.scores]
    costs = [
        (v.file, formatting.storage),
        *([(v.gzip, formatting.storage)] if has_gzip else []),
        (v.encoder, formatting.storage),
        (v.latency, formatting.milliseconds),
        (v.throughput, formatting.number),
    ]
    return scores + [f"{shown(m.value)}\n{formatting.times(m.ratio)}" if m else "" for m, shown in costs]
