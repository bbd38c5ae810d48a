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
class _Candidate:
    """A variant to consider: its folder, its score on the dev split, and the OpenVINO properties it runs with."""

    variant: "Variant"
    folder: Path
    score: float
    properties: Mapping[str, str]


def recommendation(
    run: Path, section: "Performance", texts: Path | None, within: float, task: str | None = None
) -> Outcome:
    """Times a run's variants and recommends, per batch size, the fastest one that meets the accuracy limit.

    Args:
        run: Folder of a run whose `export` has finished.
        section: Benchmark settings.
        texts: File whose lines are the inputs; None: built-in sentences.
        within: Maximum loss as a fraction of the reference score: dense-fp32's if it was exported, else the best one.
        task: Name of the task; None if the run exported only one.

    Raises:
        UserError: The run has no export, `task` is ambiguous, or benchmark_app fails.
    """
    from rich.console import Group

    from toolkit.recipe import DENSE

    manifest, metric, candidates = _candidates(run, task)
    reference = DENSE if DENSE in candidates else max(candidates, key=lambda n: candidates[n].score)
    floor = candidates[reference].score * (1 - within)
    with tempfile.TemporaryDirectory() as scratch:
        timed = _timed(
            {name: c.folder for name, c in candidates.items()},
            section,
            texts,
            Path(scratch),
            {name: c.properties for name, c in candidates.items()},
        )
    table = _table(timed, section, {n: f"{c.score:.4f}" for n, c in candidates.items()}, metric)
    lines = [
        f"{manifest.task}: required {metric} is at least {floor:.4f}, {within:.2%} below {reference} on "
        f"{manifest.metrics['variants'][candidates[reference].variant.name]['dev_n']:,} dev examples."
    ]
    recommended = []
    for batch in section.batch_sizes:
        ranked = sorted((t for t in timed if t.batch == batch), key=_median)
        chosen = next((t.model for t in ranked if candidates[t.model].score >= floor), None)
        lines.append(_sentence(ranked, candidates, floor, section.sequence_length))
        deployed = {"folder": candidates[chosen].folder, "properties": candidates[chosen].properties} if chosen else {}
        recommended.append({"batch": batch, "deploy": chosen, "text": lines[-1]} | deployed)
    document = {
        "task": manifest.task,
        "metric": metric,
        "required": floor,
        "recommended": recommended,
        "measured": [
            row | {"score": candidates[row["model"]].score}
            for row in timing_rows(timed, {name: c.folder for name, c in candidates.items()})
        ],
    }
    return Outcome(document, Group(table, *lines))


def _candidates(run: Path, task: str | None) -> tuple[Any, str, dict[str, _Candidate]]:
    """Returns the export's manifest, the task's first metric, and the exported variants by name."""
    from toolkit.core import machine
    from toolkit.pipeline.graph import finished_manifests
    from toolkit.recipe import VARIANTS

    exports = [m for m in finished_manifests(run) if m.stage == "export" and task in (None, m.task)]
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
    found: dict[str, _Candidate] = {}
    amx = "amx_int8" in machine.describe().get("isa", ())
    for name, variant in VARIANTS.items():
        folder = (run / "tasks" / str(manifest.task) / "export" / name).resolve()
        if name not in measured or not folder.is_dir():
            continue
        found[name] = _Candidate(variant, folder, measured[name]["ir"][metric], {})
        if variant.sparse and variant.int8 and not variant.engine and amx:
            found[f"{name}, AMX decompression"] = _Candidate(variant, folder, measured[name]["ir"][metric], _AMX)
    return manifest, metric, found


def _sentence(ranked: "Sequence[LatencyStats]", candidates: Mapping[str, _Candidate], floor: float, length: int) -> str:
    """Describes the variant to deploy at one batch size, and the variants within measurement noise of it."""
    good = [t for t in ranked if candidates[t.model].score >= floor]
    where = f"batch {ranked[0].batch}, {length} tokens"
    if not good:
        best = max(ranked, key=lambda t: candidates[t.model].score)
        return f"{where}: no variant is accurate enough. Closest: {best.model} ({candidates[best.model].score:.4f})."
    chosen = good[0]
    settings = "".join(f", {k}={v}" for k, v in candidates[chosen.model].properties.items())
    text = f"{where}: deploy {chosen.model}{settings} ({_median(chosen):.2f} ms)."
    ties = [t.model for t in good[1:] if min(t.as_metrics()["samples_ms"]) <= max(chosen.as_metrics()["samples_ms"])]  # type: ignore[call-overload]
    if ties:
        text += f" Within measurement noise: {', '.join(ties)}."
    engine = next((t for t in ranked if candidates[t.model].variant.engine), None)
    best_variant = candidates[chosen.model].variant
    if engine is not None and best_variant.int8 and not best_variant.engine:
        text += (
            " Dense INT8 MatMuls are faster than the sparse kernels on this CPU "
            f"({engine.model}: {_median(engine):.2f} ms)."
        )
    if ranked[0] is not chosen:
        text += f" {ranked[0].model} is faster ({_median(ranked[0]):.2f} ms) but not accurate enough."
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
        float, typer.Option(help="with --recommend: maximum loss, as a fraction of dense-fp32's score")
    ] = 0.01,
    task: Annotated[str | None, typer.Option(help="with --recommend: task of the run")] = None,
) -> Outcome:
    """Compare the latency of IR folders with benchmark_app on tokenised text; or recommend the variant to deploy."""
    section = performance(rounds, seconds, batch or (1, 8), length, threads, streams)
    if recommend and len(models) != 1:
        raise UserError("--recommend takes one run folder", instead="pruneofa bench --recommend runs/<name>")
    if recommend:
        return recommendation(models[0], section, texts, within, task)
    return comparison(models, section, texts)
