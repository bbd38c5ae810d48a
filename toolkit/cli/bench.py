"""`pruneofa bench`: latency comparison of IR folders on this machine, and a recommendation of the variant to deploy."""

import itertools
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolkit.cli.terminal import Outcome, with_output
from toolkit.core.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from toolkit.measure.decision import Candidate, Decision, Limits, SameForAll
    from toolkit.measure.latency import LatencyStats
    from toolkit.recipe import Performance, Variant

# Default inputs without --texts: sentences of typical lengths.
_SENTENCES = (
    "The film is slow to begin with, but its last hour is as good as anything that its director has made.",
    "How long does the battery of this phone last when the screen is on all day?",
    "Two of the three bridges over the river were closed after the storm, and traffic was led through the old town.",
    "Not a single joke works.",
    "The committee will meet again in March to decide whether the new rules also apply to companies that were "
    "founded before the law came into force, a question that has been open for more than a year.",
    "She learned to play the violin from her grandmother, who had never read a note.",
    "What is the difference between a mass noun and a count noun?",
    "A charming, funny and finally rather sad story about people who talk past each other.",
)
_IR = "<run>/tasks/<task>/export/<variant>"
# OpenVINO property for CPUs with AMX: 8-bit weights are stored without their zeros, to save memory traffic, and
# decompressed in the kernel. A rate of 0 enables it for every layer.
_AMX = {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": "0"}


def comparison(folders: Sequence[Path], section: "Performance", texts: Path | None) -> Outcome:
    """Times IR folders, interleaved, and returns their figures with speed-ups over the first one.

    The inputs are kept in a temporary folder, so that the printed commands can be repeated.

    Args:
        folders: IR folders; the first one is the reference.
        section: Benchmark settings.
        texts: File whose lines are the inputs; None: built-in sentences.

    Raises:
        UserError: A folder contains no IR, or benchmark_app fails.
    """
    from rich.console import Group
    from rich.text import Text

    named = _named(folders)
    scratch = Path(tempfile.mkdtemp(prefix="pruneofa-bench-")).resolve()
    timed = _timed(named, section, texts, scratch)
    lines = [f"To repeat a measurement: cd {shlex.quote(str(scratch))}"]
    lines += [f"{t.model}, batch {t.batch}: {t.command}" for t in timed]
    shown = Group(_table(timed, section, {}), *map(Text, lines))
    return Outcome({"directory": scratch, "measured": timing_rows(timed, named)}, shown, wrap=False)


def performance(
    rounds: int, seconds: int, batch: Sequence[int], length: int, threads: int | None, streams: int = 1
) -> "Performance":
    """Returns the benchmark settings of a command's options."""
    from toolkit.recipe import Performance, PerformanceConfigs

    return Performance(
        iteration=rounds,
        seconds=seconds,
        batch_sizes=tuple(batch),
        sequence_length=length,
        configs=PerformanceConfigs(cores_per_instance=threads, num_of_instance=streams),
    )


def timing_rows(timed: "Sequence[LatencyStats]", folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Returns one row per model and batch size: latency in milliseconds, examples per second, speed-up over the first.

    Args:
        timed: The measurements.
        folders: IR folder of each model.
    """
    first = {t.batch: _median(t) for t in reversed(timed)}
    return [
        {"model": t.model, "folder": folders[t.model]}
        | {key: value for key, value in t.as_metrics().items() if key != "rounds"}
        | {"speed_up": first[t.batch] / _median(t)}
        for t in timed
    ]


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Returns IR folders by unique names: the folder's, else its path, numbered if it is given more than once.

    An IR may also be given as its .xml file.

    Raises:
        UserError: A path is not an IR.
    """
    from toolkit.ir.runtime import MODEL, ir_file

    folders = []
    for path in paths:
        if not ir_file(path).is_file():
            is_checkpoint = path.suffix == ".safetensors" or any(path.glob("*.safetensors"))
            what = "a checkpoint, not an IR" if is_checkpoint else f"no {MODEL} in this folder"
            instead = f"{_IR}, which `export` makes from a checkpoint" if is_checkpoint else _IR
            raise UserError(what if path.exists() else "no such folder", where=str(path), instead=instead)
        folders.append(path.parent if path.name == MODEL else path)
    folders = [folder.resolve() for folder in folders]
    short = {folder: folder.stem if folder.suffix == ".xml" else folder.name for folder in folders}
    named: dict[str, Path] = {}
    for folder, path in zip(folders, paths, strict=True):
        unique = list(short.values()).count(short[folder]) == 1
        wanted = short[folder] if unique else str(path).strip("/").replace("/", "_")
        numbered = (f"{wanted}-{number}" for number in itertools.count(2))
        named[next(n for n in itertools.chain([wanted], numbered) if n not in named)] = folder
    return named


@dataclass(frozen=True)
class _Exported:
    """An exported variant: its folder, its score on the dev split, and the OpenVINO properties it runs with."""

    variant: "Variant"
    folder: Path
    score: float
    chance: float | None
    properties: Mapping[str, str]

    def timed(self, stats: "LatencyStats") -> "Candidate":
        """Returns the variant with its latency of this measurement."""
        from toolkit.measure.decision import Candidate

        return Candidate(stats.model, self.variant, self.score, tuple(stats.as_metrics()["samples_ms"]), self.chance)  # type: ignore[arg-type]


def recommendation(
    run: Path, section: "Performance", texts: Path | None, within: float | None, task: str | None = None
) -> Outcome:
    """Times a run's variants and recommends, per batch size, the fastest one that meets the accuracy limit.

    Args:
        run: Folder of a run whose `export` has finished.
        section: Benchmark settings.
        texts: File whose lines are the inputs; None: built-in sentences.
        within: Maximum loss as a fraction of the reference score: dense-fp32's if it was exported, else the best one.
            None: the accuracy criteria of the run's recipe, as its report has them.
        task: Name of the task; None if the run exported only one.

    Raises:
        UserError: The run has no export, `task` is ambiguous, or benchmark_app fails.
    """
    from rich.console import Group

    from toolkit.measure.decision import SameForAll, decide
    from toolkit.recipe import AccuracyCriterion

    manifest, metric, exported, limits = _exported(run, task)
    limit = limits if within is None else SameForAll(AccuracyCriterion.model_construct(relative=within))
    with tempfile.TemporaryDirectory() as scratch:
        timed = _timed(
            {name: c.folder for name, c in exported.items()},
            section,
            texts,
            Path(scratch),
            {name: c.properties for name, c in exported.items()},
        )
    table = _table(timed, section, {n: f"{c.score:.4f}" for n, c in exported.items()}, metric)
    lines: list[str] = []
    recommended = []
    for batch in section.batch_sizes:
        ranked = [exported[t.model].timed(t) for t in timed if t.batch == batch]
        decision = decide(ranked, limit)
        if not lines:
            lines.append(_required(manifest, metric, decision.reference, limit))
        lines.append(_sentence(ranked, decision, metric, batch, section.sequence_length, exported))
        found: dict[str, Any] = {"batch": batch, "deploy": None, "failure": decision.failure, "text": lines[-1]}
        if chosen := decision.chosen:
            deployed = exported[chosen.name]
            found |= {"deploy": chosen.name, "folder": deployed.folder, "properties": deployed.properties}
        recommended.append(found)
    rows = timing_rows(timed, {name: c.folder for name, c in exported.items()})
    document = {
        "task": manifest.task,
        "metric": metric,
        "recommended": recommended,
        "measured": [row | {"score": exported[row["model"]].score} for row in rows],
    }
    return Outcome(document, Group(table, *lines))


def _required(manifest: Any, metric: str, reference: "Candidate", limit: "Limits | SameForAll") -> str:
    """States the scores that variants must reach."""
    from toolkit.recipe import VARIANTS

    found: dict[float, list[str]] = {}
    for name in manifest.metrics["variants"]:
        floor = limit.floor(VARIANTS[name], reference.variant, reference.score)
        found.setdefault(floor, []).append(name)
    n = manifest.metrics["variants"][reference.variant.name]["dev_n"]
    if len(found) == 1:
        (floor,) = found
        lost = f"{(reference.score - floor) / abs(reference.score or 1):.2%} below {reference.name}"
        return f"{manifest.task}: required {metric} is at least {floor:.4f}, {lost} on {n:,} dev examples."
    each = "; ".join(f"{floor:.4f} for {', '.join(names)}" for floor, names in found.items())
    before = f"{reference.name} has {reference.score:.4f}"
    return f"{manifest.task}: required {metric} on {n:,} dev examples, where {before}: {each}."


def _exported(run: Path, task: str | None) -> "tuple[Any, str, dict[str, _Exported], Limits]":
    """Returns the export's manifest, the task's first metric, the exported variants by name, and what they may lose."""
    from toolkit.core import machine
    from toolkit.measure.decision import Limits
    from toolkit.pipeline.graph import finished_manifests
    from toolkit.recipe import VARIANTS

    manifests = finished_manifests(run)
    exports = [m for m in manifests if m.stage == "export" and task in (None, m.task)]
    if not exports:
        raise UserError(
            "this run has no export" if task is None else f"this run has no export for task {task!r}", where=str(run)
        )
    if len(exports) > 1:
        names = ", ".join(str(m.task) for m in exports)
        raise UserError("this run has exports for several tasks", where=str(run), instead=f"--task, one of: {names}")
    manifest = exports[0]
    measured = manifest.metrics["variants"]
    if not measured:
        raise UserError("this run exported no variant", where=str(run), instead="a run whose export has variants")
    metric = next(iter(next(iter(measured.values()))["ir"]))
    benchmark = next((m for m in manifests if (m.stage, m.task) == ("benchmark", manifest.task)), None)
    chance = {name: v.get("chance") for name, v in benchmark.metrics["variants"].items()} if benchmark else {}
    found: dict[str, _Exported] = {}
    amx = "amx_int8" in machine.describe().get("isa", ())
    for name, variant in VARIANTS.items():
        folder = (run / "tasks" / str(manifest.task) / "export" / name).resolve()
        if name not in measured or not folder.is_dir():
            continue
        given = (variant, folder, measured[name]["ir"][metric], chance.get(name))
        found[name] = _Exported(*given, {})
        if variant.sparse and variant.int8 and not variant.engine and amx:
            found[f"{name}, AMX decompression"] = _Exported(*given, _AMX)
    return manifest, metric, found, Limits.of(benchmark, manifest)


def _sentence(
    measured: "Sequence[Candidate]",
    decision: "Decision",
    metric: str,
    batch: int,
    length: int,
    exported: Mapping[str, _Exported],
) -> str:
    """Describes the variant to deploy at one batch size, and the variants within measurement noise of it."""
    from toolkit.reporting.verdicts import failed_headline, failure_text

    where, chosen = f"batch {batch}, {length} tokens", decision.chosen
    if decision.failure:
        where += f": {failed_headline(decision)}. {failure_text(decision, metric)}\n{where}"
    if chosen is None:
        best = max(measured, key=lambda c: c.score)
        return f"{where}: no variant is accurate enough. Closest: {best.name} ({best.score:.4f})."
    settings = "".join(f", {k}={v}" for k, v in exported[chosen.name].properties.items())
    text = f"{where}: deploy {chosen.name}{settings} ({chosen.latency_ms:.2f} ms)."
    if decision.ties:
        text += f" Within measurement noise: {', '.join(c.name for c in decision.ties)}."
    ranked = sorted(measured, key=lambda c: c.latency_ms)
    engine = next((c for c in ranked if c.variant.engine), None)
    slower = engine is not None and engine.latency_ms > chosen.latency_ms
    if engine is not None and slower and chosen.variant.int8 and not chosen.variant.engine:
        text += (
            " Dense INT8 MatMuls are faster than the sparse kernels on this CPU "
            f"({engine.name}: {engine.latency_ms:.2f} ms)."
        )
    if ranked[0] is not chosen:
        text += f" {ranked[0].name} is faster ({ranked[0].latency_ms:.2f} ms) but not accurate enough."
    return text


def _timed(
    folders: Mapping[str, Path],
    section: "Performance",
    texts: Path | None,
    scratch: Path,
    properties: Mapping[str, Mapping[str, str]] | None = None,
) -> "list[LatencyStats]":
    from toolkit.data.files import fetch_file, raw_lines
    from toolkit.measure import latency
    from toolkit.models.load import load_tokenizer

    lines = [s.strip() for s in raw_lines(fetch_file(str(texts)))] if texts else list(_SENTENCES)
    given: dict[str, tuple[list[Any], int]] = {}
    for name, folder in folders.items():
        tokenizer = load_tokenizer(folder)  # of each model: its ids may exceed the vocabulary of another one
        encoded = tokenizer([s for s in lines if s], truncation=True, max_length=section.sequence_length)
        examples = [{n: encoded[n][i] for n in encoded} for i in range(len(encoded["input_ids"]))]
        if not examples:
            raise UserError("this file contains no text", where=str(texts))
        given[name] = examples, tokenizer.pad_token_id
    first = next(iter(given.values()))
    own = {name: inputs for name, inputs in given.items() if inputs != first}
    return latency.measure(folders, *first, section, scratch, properties=properties or {}, own_inputs=own)


def _table(
    timed: "Sequence[LatencyStats]", section: "Performance", scores: Mapping[str, str], metric: str = ""
) -> "Table":
    from rich.table import Table

    table = Table(title=f"{section.sequence_length} tokens, {timed[0].threads} thread(s), {timed[0].streams} stream(s)")
    columns = ["model", *([metric] if scores else []), "batch", "latency ms", "low to high", "examples/s", "speed-up"]
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=column == "model")
    for batch in section.batch_sizes:
        rows = [t for t in timed if t.batch == batch]
        for t in rows:
            m = t.as_metrics()
            table.add_row(
                t.model,
                *([scores[t.model]] if scores else []),
                str(batch),
                f"{_median(t):.2f}",
                f"{m['latency_ms_low']:.2f} to {m['latency_ms_high']:.2f}",
                f"{m['throughput_median']:.1f}",
                f"{_median(rows[0]) / _median(t):.2f}x",
            )
    return table


def _median(timed: "LatencyStats") -> float:
    return float(timed.as_metrics()["latency_ms_median"])  # type: ignore[arg-type]


@with_output
def bench(
    models: Annotated[
        list[Path],
        typer.Argument(help="IR folders (or their .xml files) to compare, the first is the reference; or a run folder"),
    ],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="batch sizes")] = None,
    length: Annotated[int, typer.Option(min=1, help="tokens per example")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="number of rounds over all models")] = 5,
    seconds: Annotated[int, typer.Option(min=1, help="duration of one benchmark_app run in seconds")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="threads per stream; default: all cores, shared")] = None,
    streams: Annotated[int, typer.Option(min=1, help="number of inference streams (-nstreams)")] = 1,
    texts: Annotated[Path | None, typer.Option(help="text file whose lines are the inputs")] = None,
    recommend: Annotated[
        bool, typer.Option("--recommend", help="recommend which variant of a run to deploy on this machine")
    ] = False,
    within: Annotated[
        float | None,
        typer.Option(
            help="with --recommend: maximum loss, as a fraction of dense-fp32's score; default: the recipe's criteria",
            show_default=False,
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="with --recommend: task of the run")] = None,
) -> Outcome:
    """Compare the latency of IR folders with benchmark_app on tokenised text; or recommend the variant to deploy."""
    section = performance(rounds, seconds, batch or (1, 8), length, threads, streams)
    if recommend and len(models) != 1:
        raise UserError("--recommend takes one run folder", instead="pruneofa bench --recommend runs/<name>")
    if recommend:
        return recommendation(models[0], section, texts, within, task)
    return comparison(models, section, texts)
