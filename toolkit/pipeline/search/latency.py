"""Latency of every point on this machine, in 8 bits; it depends on shapes and zeros, not on which weights are zero."""

import contextlib
import copy
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from toolkit.core import machine
from toolkit.core.files import json_hash
from toolkit.data.batches import model_inputs
from toolkit.ir import kernels
from toolkit.ir.convert import export_ir
from toolkit.ir.sparse_engine import to_sparse_engine
from toolkit.ir.thinned import thin
from toolkit.measure import latency
from toolkit.models.depth import keep_layers
from toolkit.models.load import prunable_matrices
from toolkit.pipeline.run_folder import resume_or_reset
from toolkit.pipeline.search.dense import Dense, quantization_of
from toolkit.pipeline.search.points import Point
from toolkit.pipeline.search.records import recorded
from toolkit.quantization import nncf
from toolkit.recipe import Performance, Recipe

_CALIBRATION = 4  # examples: ranges do not matter for the latency


def latencies(
    points: Sequence[Point],
    recipe: Recipe,
    dense: Dense,
    section: Performance,
    file: Path,
    log: Callable[[str], None],
) -> dict[Point, list[float]]:
    """Returns the milliseconds per inference of every point, one for each round of an interleaved measurement.

    Dense points are IRs for stock OpenVINO, the others use the sparse engine. Each is made from the first layers of
    the dense model, quantized after training, with zeros where codes are smallest.

    Args:
        points: All points.
        recipe: The recipe.
        dense: The dense model.
        section: Settings of the measurement, with one batch size.
        file: JSON file of the result.
        log: Receives progress messages.

    Raises:
        KernelMissingError: The kernels are not built and cannot be built.
        UserError: benchmark_app is missing or fails.
    """
    exact = recipe.export.exact_activations if recipe.export else False
    quantization = quantization_of(recipe, dense.task)
    depends_on = [
        *(dense.key, dense.kind, [point.label for point in points], section.model_dump(mode="json"), exact),
        *(quantization.model_dump(mode="json"), recipe.model.prunable, machine.describe(), machine.versions()),
        *(kernels.FORMAT_VERSION, kernels.EXPORT_VERSION),
    ]

    def compute() -> dict[str, list[float]]:
        kernels.build()
        partial = file.with_name("irs.partial")  # after a kill, the IRs that are complete are measured, not made again
        work = resume_or_reset(partial, json_hash(depends_on)).resolve()
        irs = _exported(points, recipe, dense, work, exact, log)
        left = itertools.count(latency.runs(len(irs), section), -1)

        def each(*_: object) -> None:
            if not (number := next(left)) % len(irs):  # once a round
                log(f"measuring the latency of {len(irs)} sizes: {number // len(irs)} rounds left")

        text, pad_id = [_text(dense, section.sequence_length)], dense.tokenizer.pad_token_id
        timed = latency.measure(irs, text, pad_id, section, work, each)
        shutil.rmtree(partial)
        return {stats.model: [one.median_ms for one in stats.rounds] for stats in timed}

    found = recorded(file, depends_on, compute)
    return {point: found[point.file_name] for point in points}


def _exported(
    points: Sequence[Point], recipe: Recipe, dense: Dense, folder: Path, exact: bool, log: Callable[[str], None]
) -> dict[str, Path]:
    """Writes the IRs of all points, and returns their folders."""
    found = {}
    # Ranges of operations that a shallower model lacks cannot be set one by one.
    quantization = quantization_of(recipe, dense.task).model_copy(update={"op_wise": {}})
    make = nncf.dynamic if quantization.approach == "post_training_dynamic_quant" else nncf.quantize
    samples = [model_inputs({name: tensor[:1].cpu() for name, tensor in batch.items()}) for batch in dense.texts]
    for layers, group in itertools.groupby(points, key=lambda point: point.layers):
        model: Any = copy.deepcopy(dense.model).cpu()
        keep_layers(model, range(layers))
        modules = {name.removesuffix(".weight") for name in prunable_matrices(model, recipe.model.prunable)}
        plain = folder / f"{layers}-plain"
        batch = {name: tensor[:2].cpu() for name, tensor in dense.texts[0].items()}
        if not plain.is_dir():
            log(f"quantizing the dense model of {layers} layers")
            with _complete(plain) as target:
                export_ir(make(model, samples[:_CALIBRATION], quantization), dense.tokenizer, target, batch)
        for point in group:
            found[point.file_name] = engine = folder / point.file_name if point.zeros else plain
            if not engine.is_dir():
                log(f"exporting {point.label}")
                with _complete(engine) as target, tempfile.TemporaryDirectory(dir=folder) as scratch:
                    thin(plain, Path(scratch), modules, point.zeros, point.block)
                    to_sparse_engine(Path(scratch), target, exact_activations=exact)
    return found


@contextlib.contextmanager
def _complete(folder: Path) -> Iterator[Path]:
    """Yields another folder to write to, which gets the name when it is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    partial.rename(folder)


def _text(dense: Dense, length: int) -> dict[str, list[int]]:
    """Returns an example of exactly this length, from the texts that calibrate: nothing is padded."""
    ids: list[int] = []
    for batch in reversed(dense.texts):
        for row, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
            ids += row[: sum(mask)]
        if len(ids) >= length:
            break
    ids = (ids * -(-length // len(ids)))[:length]
    return {"input_ids": ids, "attention_mask": [1] * length, "token_type_ids": [0] * length}
