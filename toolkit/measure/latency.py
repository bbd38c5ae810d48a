"""Latency and throughput measurement with OpenVINO's `benchmark_app`, on real inputs, with interleaved models.

Machine speed drifts (clock frequency, other tenants). Every round therefore runs each model once, briefly, and a
model's result is the median over rounds: drift affects all models alike, and the spread over rounds shows its size.
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
from toolkit.ir.runtime import ir_file, needed_extension, read_ir
from toolkit.measure.accuracy import Examples, input_names, pad_inputs
from toolkit.recipe import Performance


@dataclass(frozen=True)
class Round:
    """Result of one benchmark_app run: milliseconds per inference of a batch, and examples per second."""

    median_ms: float
    average_ms: float
    min_ms: float
    max_ms: float
    throughput: float
    iterations: int


@dataclass
class LatencyStats:
    """Latency statistics of one model at one batch size.

    Attributes:
        model: Name of the model.
        batch: Examples per inference.
        sequence_length: Tokens per example.
        threads: Inference threads of all streams together.
        streams: Inferences that run in parallel.
        command: benchmark_app command, relative to the measurement folder, without the report options.
        rounds: Raw samples, one per counted round.
    """

    model: str
    batch: int
    sequence_length: int
    threads: int
    streams: int
    command: str
    rounds: list[Round] = field(default_factory=list)

    def as_metrics(self) -> dict[str, object]:
        """Returns the raw samples and the statistics derived from them, as JSON values."""
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
    own_inputs: Mapping[str, tuple[Examples, int]] = MappingProxyType({}),
) -> list[LatencyStats]:
    """Measures the latency of several IRs, interleaved. The machine should be otherwise idle.

    Args:
        models: IR folders with `openvino_model.xml`, or .xml files, by model name.
        examples: Tokenised examples; a batch samples them evenly, truncated or padded to the section's length.
        pad_id: The tokenizer's padding id.
        section: Batch sizes, rounds, seconds, threads and streams.
        folder: Working directory of the commands; receives the inputs (`inputs/*.npy`) and benchmark_app's reports
            of the counted rounds (`reports/`).
        each: Callback before each run, with the model's name and the batch size.
        properties: CPU plugin properties by model name (benchmark_app's -load_config).
        own_inputs: Examples and padding id of the models whose tokenizer is another one, by model name.

    Raises:
        UserError: benchmark_app is missing or fails.
    """
    assert len(examples), "at least one example is needed as input"
    stats: dict[tuple[str, int], LatencyStats] = {}
    arguments: dict[tuple[str, int], list[str]] = {}
    streams = section.configs.num_of_instance
    threads = streams * (section.configs.cores_per_instance or max(1, cores() // streams))
    for name, model in models.items():
        for batch in section.batch_sizes:
            given, filler = own_inputs.get(name, (examples, pad_id))
            own = name if name in own_inputs else ""
            words = _arguments(model, given, filler, batch, threads, section, folder, own)
            words += _load_config(properties.get(name, {}), folder)
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
    """Returns the number of benchmark_app runs of `measure`."""
    return models * len(section.batch_sizes) * (section.warmup + section.iteration)


def _arguments(
    model: Path,
    examples: Examples,
    pad_id: int,
    batch: int,
    threads: int,
    section: Performance,
    folder: Path,
    own: str = "",
) -> list[str]:
    """Returns benchmark_app's options. Paths are relative to `folder`, so that run folders can be moved."""
    names = input_names(read_ir(model), model)
    files = _inputs(names, examples, pad_id, batch, section.sequence_length, folder, own)
    streams = section.configs.num_of_instance
    # -hint none: a hint makes -nstreams and -nthreads errors. Async needs one request per stream to use all streams.
    api = ["-api", "sync", "-nireq", "1"] if streams == 1 else ["-api", "async", "-nireq", str(streams)]
    extension = needed_extension(model)
    return [
        *(("-extensions", str(extension)) if extension else ()),
        *("-m", os.path.relpath(ir_file(model), folder)),
        *("-d", "CPU", "-hint", "none", "-nstreams", str(streams), "-nthreads", str(threads), *api),
        *("-t", str(section.seconds), "-infer_precision", "f32"),
        *("-shape", ",".join(f"{n}[{batch},{section.sequence_length}]" for n in names)),
        *("-i", ",".join(f"{n}:{files[n]}" for n in names)),
    ]


def _load_config(properties: Mapping[str, str], folder: Path) -> list[str]:
    """Writes the properties to a JSON file and returns benchmark_app's option for it."""
    if not properties:
        return []
    path = folder / f"{'-'.join(f'{k}={v}' for k, v in properties.items())}.json"
    path.write_text(json.dumps({"CPU": dict(properties)}))
    return ["-load_config", path.name]


def _inputs(
    names: Sequence[str], examples: Examples, pad_id: int, batch: int, length: int, folder: Path, own: str = ""
) -> dict[str, str]:
    """Writes one batch of real examples as int64 .npy: benchmark_app's random inputs exceed the valid id ranges.

    Models share the files; one with inputs of its own has them in a folder of its name, `own`.
    """
    import numpy as np

    chosen = [examples[i * len(examples) // batch] for i in range(batch)]
    target = folder / "inputs" / own
    target.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, array in pad_inputs(chosen, names, pad_id, length).items():
        path = target / f"b{batch}_{name}.npy"
        np.save(path, array)
        files[name] = path.relative_to(folder).as_posix()
    return files


def _run(arguments: Sequence[str], batch: int, folder: Path, label: str, *, keep: bool) -> Round:
    """Runs benchmark_app once, with a report folder per run because the report's file name is fixed."""
    program = Path(sys.executable).with_name("benchmark_app")
    if not program.is_file():
        raise UserError("benchmark_app is not installed", where=str(program), instead="pip install openvino")
    report = folder / "reports" / label
    report.mkdir(parents=True, exist_ok=True)
    options = ["-report_type", "no_counters", "-json_stats", "-report_folder", str(report.relative_to(folder))]
    result = subprocess.run(
        [str(program), *arguments, *options],
        cwd=folder,
        # OpenVINO's telemetry accesses the network on import unless CI is set.
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
        # benchmark_app detects no batch dimension in these inputs, so its throughput counts inferences, not examples.
        throughput=batch * iterations / (float(values["total execution time (ms)"]) / 1000),
        iterations=iterations,
    )
