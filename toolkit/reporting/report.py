"""The report: one HTML file that opens offline, and the same tables in Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.core.artifacts import Manifest, failed_checks
from toolkit.measure.size import BUNDLE, FILE, GZIP
from toolkit.recipe import DENSE, DENSE_INT8, SHIPPED
from toolkit.reporting import figures, formatting, sentences
from toolkit.reporting.budgets import Budget, budget_gains, budgets
from toolkit.reporting.claims_table import ClaimsTable, claims_table, variants_of
from toolkit.reporting.manifests import STAGES, StageScores, provenance_groups, stage_of, stage_scores, tasks_of
from toolkit.reporting.verdicts import Verdict, headline, verdicts

_EXTENSION = re.compile(r"(?<=-extensions )('[^']*'|\S+)")  # the kernels' place on the machine that measured

PAGE, MARKDOWN = "report.html", "report.md"


@dataclass(frozen=True)
class SizeRow:
    """One definition of size: bytes and ratio to dense FP32 of each variant; None where it does not apply."""

    label: str
    cells: tuple[tuple[int, float | None] | None, ...]


@dataclass
class TaskView:
    """Template data of a benchmarked task."""

    head: ClaimsTable
    verdict: Verdict
    summary: str
    criterion: str
    sizes: list[SizeRow]
    parity: list[dict[str, Any]]
    matmuls: list[dict[str, Any]]
    stored: str  # variant whose matrices are listed
    left_out: list[str]
    folder: str
    speeds: list[tuple[str, dict[str, Any]]]
    tuning: dict[str, Any] | None
    tuning_text: str
    plots: list[str] = field(default_factory=list)


@dataclass
class RunView:
    """Template data of a run."""

    title: str
    about: str  # the student's sparsity, layers and steps; empty without a student
    sparse: bool  # whether one sparse student serves all tasks
    verdicts: list[Verdict]
    manifests: Sequence[Manifest]
    tasks: list[TaskView]
    variants: list[str]  # of all tasks
    student: Manifest | None
    pattern: Manifest | None  # has the sparsity of each matrix: the student, else a transfer from a ready one
    stages: tuple[str, ...]  # stages with scores, the columns of `scores`
    scores: list[StageScores]
    budgets: list[Budget]
    budget: str
    checks_failed: int
    data: list[tuple[str, str, str]]
    reconstruction: str = ""
    heat: figures.Heat | None = None
    curves: list[tuple[str, str]] = field(default_factory=list)


def build(runs: Sequence[Sequence[Manifest]], folder: Path) -> Path:
    """Writes `report.html` and `report.md` into `folder`, from the manifests alone.

    Args:
        runs: Manifests of each run, in the order of the data flow.
        folder: Output folder, created if it is missing.

    Returns:
        Path of `report.html`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    manifests = [m for run in runs for m in run]
    assert manifests, "a report needs a finished stage"
    views = [_run_view(run, f"Run {i} of {len(runs)}" if len(runs) > 1 else "") for i, run in enumerate(runs, 1)]
    machines = provenance_groups(runs, "machine")
    values = {
        "runs": views,
        "headline": headline([verdict for view in views for verdict in view.verdicts]),
        "verdict_count": sum(len(view.verdicts) for view in views),
        "colours": figures.COLOURS,
        "gains": budget_gains(runs),
        "subjects": list(dict.fromkeys(_subject(m) for m in manifests if m.run)),
        "machines": machines,
        "hardware": formatting.hardware([machine for _, machine in machines]),
        "versions": provenance_groups(runs, "versions"),
        "commits": list(dict.fromkeys(m.commit for m in manifests if m.commit)),
        "date": max(m.started for m in manifests)[:10],
        "seeds": sorted({m.seed for m in manifests}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for template, file, html in ((f"{PAGE}.j2", PAGE, True), (f"{MARKDOWN}.j2", MARKDOWN, False)):
        environment = Environment(
            loader=PackageLoader("toolkit.reporting", "templates"),
            autoescape=html,
            finalize=None if html else formatting.in_markdown,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        environment.filters |= formatting.FILTERS
        environment.globals |= {"tuning_cost": sentences.tuning_cost, "criterion_name": sentences.criterion_name}
        environment.globals |= {"shipped": SHIPPED}
        (folder / file).write_text(environment.get_template(template).render(**values))
    return folder / PAGE


def _subject(manifest: Manifest) -> str:
    """Returns the name, description and base model of a run as one line."""
    run = manifest.run
    about = f": {run['description']}" if run.get("description") else ""
    return formatting.portable(f"{run.get('name', '')}{about} (from {run.get('model', '')})")


def _run_view(run: Sequence[Manifest], prefix: str) -> RunView:
    from markupsafe import Markup

    student = stage_of(run, "student")
    sparse = student is not None and student.metrics.get("sparsity") is not None
    pruned = (m for m in (student, *run) if m is not None and m.metrics.get("per_matrix"))
    pattern = next((m for m in pruned if sentences.has_zeros(m)), None)
    mark = prefix.lower().replace(" ", "-") or "run"  # plots need identifiers that are unique in the page
    spent, scores = budgets(run), stage_scores(run)
    found = verdicts(run)
    tasks = [t for t in (_task_view(run, task, f"{mark}-{i}", found) for i, task in enumerate(tasks_of(run))) if t]
    view = RunView(
        title=prefix,
        about=sentences.run_title(student) if student else "",
        sparse=sparse,
        verdicts=found,
        manifests=run,
        tasks=tasks,
        variants=variants_of([t.head for t in tasks]),
        student=student,
        pattern=pattern,
        stages=tuple(stage for stage in STAGES if any(stage in row.scores for row in scores)),
        scores=scores,
        budgets=spent,
        budget=sentences.budget(spent),
        checks_failed=len(failed_checks(c for m in run for c in m.checks)),
        data=_data(run),
        reconstruction=sentences.reconstruction(student),
    )
    if pattern is not None:
        view.heat = figures.sparsity(pattern.metrics["per_matrix"])
    for i, m in enumerate(run):
        if m.history:
            label = f"{m.task}: {m.stage}" if m.task else m.stage
            curve = figures.training_curve(m.history, label, f"{mark}-curve-{i}")
            view.curves.append((label, Markup(curve)))
    return view


def _task_view(run: Sequence[Manifest], task: str, mark: str, found: Sequence[Verdict]) -> TaskView | None:
    """Returns the template data of a task, or None if it was not benchmarked."""
    from markupsafe import Markup

    benchmark, export = stage_of(run, "benchmark", task), stage_of(run, "export", task)
    quantized = stage_of(run, "quantize", task)
    tuning = quantized.metrics.get("tuning") if quantized else None
    if benchmark is None:
        return None
    head = claims_table(benchmark)
    measured = benchmark.metrics["variants"]
    exported = export.metrics if export else {}
    exported_variants: dict[str, dict[str, Any]] = exported.get("variants", {})
    stored = SHIPPED if SHIPPED in exported_variants else DENSE_INT8
    verdict = next(v for v in found if v.task == task and v.of_benchmark)
    view = TaskView(
        head=head,
        verdict=verdict,
        summary=sentences.summary(head, stage_of(run, "transfer", task) or quantized, verdict.chosen),
        criterion=sentences.criterion(benchmark),
        sizes=_sizes(benchmark),
        parity=[{"variant": v, **m} for v, m in exported_variants.items() if "torch" in m],
        matmuls=exported_variants.get(stored, {}).get("matmuls", []),
        stored=stored,
        left_out=[formatting.portable(s) for s in sentences.left_out(export) + sentences.rows_left_out(run, task)],
        folder=benchmark.artifact.path.as_posix(),
        tuning=tuning,
        tuning_text=sentences.tuning(tuning) if tuning else "",
        speeds=sorted(
            (
                (v, p | {"command": _EXTENSION.sub("$(pruneofa kernels path)", p["command"])})
                for v, m in measured.items()
                for p in m["performance"]
            ),
            key=lambda x: x[1]["batch"],
        ),
    )
    view.plots = [Markup(figures.against_size(head, f"{mark}-size"))]
    if any(v.latency for v in head.variants):
        view.plots.insert(0, Markup(figures.against_latency(head, f"{mark}-latency")))
    return view


def _sizes(benchmark: Manifest) -> list[SizeRow]:
    """Returns all sizes; files are compared with dense FP32's file, the rest with its parameters at four bytes each."""
    variants = benchmark.metrics["variants"]
    reference = benchmark.metrics["sizes_reference"]
    dense = variants.get(DENSE, {}).get("sizes", {})
    labels = list(dict.fromkeys(label for v in variants.values() for label in v["sizes"]))
    rows = []
    for label in sorted(labels, key=_family):
        baseline = dense.get(label) if label in (FILE, GZIP, BUNDLE) else reference.get(label.partition(":")[0])
        cells = []
        for v in variants.values():
            size = v["sizes"].get(label)
            cells.append(None if size is None else (size, baseline / size if baseline and size else None))
        rows.append(SizeRow(label, tuple(cells)))
    return rows


def _family(label: str) -> int:
    """Returns the sort key of a label: files first, then the encoder, then the full model."""
    families = ("file", "encoder", "whole model", "")
    return families.index(found if (found := label.partition(":")[0]) in families else "")


def _data(run: Sequence[Manifest]) -> list[tuple[str, str, str]]:
    """Returns the distinct data files of all stages: name, SHA-256 and further details."""
    found: dict[str, tuple[str, str, str]] = {}
    for manifest in run:
        for name, entry in manifest.data.items():
            if not entry:
                continue
            values = dict(entry) if isinstance(entry, dict) else {"": entry}
            digest = str(values.pop("sha256", ""))
            rest = ", ".join(f"{key.replace('_', ' ')} {_plain(value)}".strip() for key, value in values.items())
            found.setdefault(f"{name}{digest}{rest}", (formatting.portable(name), digest, formatting.portable(rest)))
    return list(found.values())


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
