"""Latency and throughput by OpenVINO's own `benchmark_app`, on real inputs, the models interleaved.

Machines drift (clock, neighbours). So every round measures every model once, one short run after another, and a
model's figure is the median over rounds: drift hits all models alike, and the spread over rounds shows how much of it
there was.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from toolkit.core.errors import UserError
from toolkit.core.machine import cores
from toolkit.ir.runtime import needed_extension
from toolkit.measure.accuracy import Examples, pad_inputs
from toolkit.recipe import Performance


@dataclass(frozen=True)
class Round:
    """One run of benchmark_app: milliseconds per inference of a whole batch, and examples per second."""

    median_ms: float
    average_ms: float
    min_ms: float
    max_ms: float
    throughput: float
    iterations: int


@dataclass
class LatencyStats:
    """One model at one batch size. `rounds` are the raw samples; the rest is derived from them.

    Attributes:
        command: What was run, in the folder of the measurement, less the options that save its figures.
    """

    model: str
    batch: int
    sequence_length: int
    threads: int
    streams: int
    command: str
    rounds: list[Round] = field(default_factory=list)

    def as_metrics(self) -> dict[str, object]:
        """The raw samples and what is derived from them, as JSON values."""
        medians = [r.median_ms for r in self.rounds]
        return {
            "batch": self.batch,
            "sequence_length": self.sequence_length,
            "threads": self.threads,
            "streams": self.streams,
            "latency_ms_median": statistics.median(medians),
            "latency_ms_low": min(medians),
            "latency_ms_high": max(medians),
            "throughput_median": statistics.median(r.throughput for r in self.rounds),
            "samples_ms": medians,
            "rounds": [vars(r) for r in self.rounds],
            "command": self.command,
        }


def measure(
    models: Mapping[str, Path],
    examples: Examples,
    pad_id: int,
    section: Performance,
    folder: Path,
    each: Callable[[str, int], None] = lambda model, batch: None,
    properties: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> list[LatencyStats]:
    """Times IR folders side by side; nothing else should run meanwhile.

    Args:
        models: Name -> folder with `openvino_model.xml`.
        examples: Tokenised texts; inputs are spread evenly over them, cut or padded to the section's length.
        pad_id: Id that fills up `input_ids`.
        section: Batch sizes, rounds, seconds, threads and streams.
        folder: Gets the inputs (`inputs/*.npy`) and benchmark_app's reports of the rounds that count
            (`reports/`); the commands run there.
        each: Called before each run with the model's name and the batch size.
        properties: Name -> what the CPU plugin is told of that model (benchmark_app's -load_config).

    Raises:
        UserError: benchmark_app is missing or fails.
    """
    assert len(examples), "there is nothing to feed the models with"
    stats: dict[tuple[str, int], LatencyStats] = {}
    arguments: dict[tuple[str, int], list[str]] = {}
    streams = section.configs.num_of_instance
    threads = streams * (section.configs.cores_per_instance or max(1, cores() // streams))
    for name, model in models.items():
        for batch in section.batch_sizes:
            words = _arguments(model, examples, pad_id, batch, threads, section, folder)
            words += _configured(properties.get(name, {}), folder)
            arguments[name, batch] = words
            command = shlex.join(["benchmark_app", *words])
            stats[name, batch] = LatencyStats(name, batch, section.sequence_length, threads, streams, command)
    for number in range(section.warmup + section.iteration):
        counts = number >= section.warmup
        for batch in section.batch_sizes:
            for name in models:
                each(name, batch)
                label = f"{name}-b{batch}-{f'r{number - section.warmup}' if counts else 'warmup'}"
                result = _run(arguments[name, batch], batch, folder, label, keep=counts)
                if counts:
                    stats[name, batch].rounds.append(result)
    return list(stats.values())


def runs(models: int, section: Performance) -> int:
    """How often `measure` starts benchmark_app."""
    return models * len(section.batch_sizes) * (section.warmup + section.iteration)


def _arguments(
    model: Path, examples: Examples, pad_id: int, batch: int, threads: int, section: Performance, folder: Path
) -> list[str]:
    """benchmark_app's options. Paths are relative to `folder`, so the command outlives a move of the run folder."""
    names = _input_names(model)
    files = _inputs(names, examples, pad_id, batch, section.sequence_length, folder)
    streams = section.configs.num_of_instance
    # -hint none: with a hint, -nstreams and -nthreads are errors. Async needs a request per stream to keep all busy.
    api = ["-api", "sync", "-nireq", "1"] if streams == 1 else ["-api", "async", "-nireq", str(streams)]
    extension = needed_extension(model)
    return [
        *(("-extensions", str(extension)) if extension else ()),
        *("-m", os.path.relpath(model / "openvino_model.xml", folder)),
        *("-d", "CPU", "-hint", "none", "-nstreams", str(streams), "-nthreads", str(threads), *api),
        *("-t", str(section.seconds), "-infer_precision", "f32"),
        *("-shape", ",".join(f"{n}[{batch},{section.sequence_length}]" for n in names)),
        *("-i", ",".join(f"{n}:{files[n]}" for n in names)),
    ]


def _configured(properties: Mapping[str, str], folder: Path) -> list[str]:
    if not properties:
        return []
    path = folder / f"{'-'.join(f'{k}={v}' for k, v in properties.items())}.json"
    path.write_text(json.dumps({"CPU": dict(properties)}))
    return ["-load_config", path.name]


def _input_names(model: Path) -> list[str]:
    from toolkit.ir.runtime import read_ir

    return [port.get_any_name() for port in read_ir(model).inputs]


def _inputs(
    names: Sequence[str], examples: Examples, pad_id: int, batch: int, length: int, folder: Path
) -> dict[str, str]:
    """Writes one batch of real examples as int64 .npy (benchmark_app's random fill leaves the valid id ranges)."""
    import numpy as np

    chosen = [examples[i * len(examples) // batch] for i in range(batch)]
    target = folder / "inputs"
    target.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, array in pad_inputs(chosen, names, pad_id, length).items():
        path = target / f"b{batch}_{name}.npy"
        np.save(path, array)
        files[name] = f"inputs/{path.name}"
    return files


def _run(arguments: Sequence[str], batch: int, folder: Path, label: str, *, keep: bool) -> Round:
    """One run. Its report file has a fixed name, hence a folder for each."""
    program = Path(sys.executable).with_name("benchmark_app")
    if not program.is_file():
        raise UserError("benchmark_app is not installed", where=str(program), instead="pip install openvino")
    report = folder / "reports" / label
    report.mkdir(parents=True, exist_ok=True)
    options = ["-report_type", "no_counters", "-json_stats", "-report_folder", str(report.relative_to(folder))]
    result = subprocess.run(
        [str(program), *arguments, *options],
        cwd=folder,
        # OpenVINO's telemetry asks the network on import, except under CI.
        env=os.environ | {"CI": "true"},
        capture_output=True,
        text=True,
    )
    path = report / "benchmark_report.json"
    if result.returncode or not path.is_file():
        lines = [line for line in (result.stdout + result.stderr).splitlines() if "ERROR" in line]
        why = lines[0] if lines else f"exit code {result.returncode}"
        raise UserError(f"benchmark_app failed: {why}", where=f"{folder}$ benchmark_app {shlex.join(arguments)}")
    values = json.loads(path.read_text())["execution_results"]
    iterations = int(values["total number of iterations"])
    if not keep:
        path.unlink()
        report.rmdir()
    return Round(
        median_ms=float(values["latency (ms)"]),
        average_ms=float(values["avg latency"]),
        min_ms=float(values["min latency"]),
        max_ms=float(values["max latency"]),
        # benchmark_app finds no batch in these inputs, and so its own figure counts inferences, not examples.
        throughput=batch * iterations / (float(values["total execution time (ms)"]) / 1000),
        iterations=iterations,
    )
