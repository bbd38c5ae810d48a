"""`benchmark`: accuracy of each exported IR on the complete dev split, its sizes, latency and throughput.

Predictions cached by the export are reused on the same CPU and recomputed on another one.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolkit.core.artifacts import Artifact, Check, Context, StageResult
from toolkit.core.errors import UserError
from toolkit.models.architectures import layer_count, split_layer
from toolkit.models.checkpoint import MIN_SPARSITY, encoder_matrices
from toolkit.models.config import read_config
from toolkit.models.depth import depth_metrics, is_dense
from toolkit.recipe import (
    DENSE,
    DENSE_INT8,
    SHIPPED,
    SHIPPED_FP32,
    VARIANTS,
    AccuracyCriterion,
    Benchmark,
    Quantize,
    Task,
    TransferTuning,
)

if TYPE_CHECKING:
    from toolkit.measure.size import Footprint


@dataclass(frozen=True)
class Inputs:
    """Recipe sections and artifacts that the stage reads; the encoder's sizes need the sparse model's checkpoint."""

    task: Task
    transfer_tuning: TransferTuning | None
    quantize: Quantize | None
    benchmark: Benchmark
    export_artifact: Artifact
    task_teacher_artifact: Artifact | None = None
    transfer_artifact: Artifact | None = None
    quantize_artifact: Artifact | None = None


def run(inputs: Inputs, context: Context) -> StageResult:
    """Measures every exported variant.

    Raises:
        UserError: The export contains no IR, or benchmark_app fails.
    """
    from toolkit.data.tasks import load_tasks
    from toolkit.ir.inspect import inspect_ir
    from toolkit.measure import accuracy, latency, size
    from toolkit.models.load import load_tokenizer
    from toolkit.training.teacher_logits import with_dense

    export = inputs.export_artifact.path
    folders = {name: export / name for name in VARIANTS if (export / name / "openvino_model.xml").is_file()}
    if not folders:
        raise UserError("no IR folder here", where=str(export), instead="run `export` with at least one variant")
    tokenizers = {name: load_tokenizer(folder) for name, folder in folders.items()}
    tasks = load_tasks(context.task or "", inputs.task, tokenizers)
    dense, cache = inputs.task_teacher_artifact, context.cache
    tasks = {name: with_dense(own, dense, tokenizers[name], cache) for name, own in tasks.items()}
    pad_ids = {name: tokenizer.pad_token_id for name, tokenizer in tokenizers.items()}
    first, task = next(iter(tasks.items()))  # the tasks differ in their token ids only
    section = inputs.benchmark.evaluation.performance

    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        context.progress.update(done)

    context.progress.start(len(folders) + latency.runs(len(folders), section))
    scores, chance, by_type, answered = {}, {}, {}, []
    for variant, folder in folders.items():
        own = tasks[variant]
        logits = accuracy.cached_predictions(folder, own.dev, pad_ids[variant], context.cache)
        scores[variant], chance[variant] = own.scores(logits), own.chance(logits)
        by_type[variant] = own.scores_by_type(logits)
        answered.append((len(logits), len(own.dev)))
        advance()

    footprint, dense_footprint, has_zeros = _footprints(inputs)
    sizes = {}
    for variant, folder in folders.items():
        sizes[variant] = size.file_sizes(folder)
        counted = footprint if VARIANTS[variant].sparse else dense_footprint
        if counted is not None:
            inspection = inspect_ir(folder)  # from the IR, since tuning may have kept operations in FP32
            sizes[variant] |= counted.sizes(
                value_bytes=size.INT8_BYTES if VARIANTS[variant].int8 else size.FP32_BYTES,
                sparse=VARIANTS[variant].sparse and has_zeros,
                fp32={f"{m.module}.weight" for m in inspection.matmuls if m.stored_type == "f32"},
                int8_embeddings=all(table.stored_type == "i8" for table in inspection.embeddings),
            )

    own_inputs = {name: (own.dev, pad_ids[name]) for name, own in tasks.items() if own is not task}
    timed = latency.measure(
        folders,
        task.dev,
        pad_ids[first],
        section,
        context.folder,
        lambda *_: advance(),
        own_inputs=own_inputs,
    )
    variants = {
        variant: {
            "accuracy": scores[variant],
            "chance": chance[variant],
            "sizes": sizes[variant],
            "performance": [t.as_metrics() for t in timed if t.model == variant],
        }
        for variant in folders
    }
    (context.folder / "benchmark.json").write_text(json.dumps(variants, indent=1))
    zeros = inputs.transfer_tuning or TransferTuning()
    transfer, quantize, metric = inputs.transfer_artifact, inputs.quantize, task.metrics[0]
    dense_only = transfer is not None and is_dense(transfer.path)
    before, after = (DENSE, DENSE_INT8) if dense_only else (SHIPPED_FP32, SHIPPED)
    return StageResult(
        kind="measurement",
        metrics={
            "dev_n": task.dev_n,
            "metrics": list(task.metrics),
            "counts": {m.name: m.n for m in task.measures},
            "note": inputs.task.note,
            "rows_left_out": list(task.left_out),
            "variants": variants,
            "by_type": {variant: found for variant, found in by_type.items() if found},
            "sizes_reference": (dense_footprint or footprint).reference() if footprint else {},
            "accuracy_criterion": criterion(quantize.tuning.accuracy_criterion, metric, scores, before, after)
            if quantize
            else None,
            "zeros_criterion": criterion(zeros.accuracy_criterion, metric, scores, DENSE, SHIPPED_FP32),
        },
        checks=[
            Check(
                name="fewest examples that an IR answered",
                ok=all(found == expected for found, expected in answered),
                measured=float(min(found for found, _ in answered)),
                limit=f"the whole dev split: {min(expected for _, expected in answered)}",
            )
        ],
        data={"note": inputs.task.note},
    )


def _footprints(inputs: Inputs) -> "tuple[Footprint | None, Footprint | None, bool]":
    """Returns the parameter counts of the student's and of the dense variants, and whether the student has zeros.

    Without a mask, which lists the pruned matrices, there are none, unless the student is dense: then all matrices of
    its encoder count. The dense variants are the teacher. A teacher whose encoder has other shapes is another model,
    unless the student has kept some of its layers: then all matrices of the teacher's encoder count.
    """
    from toolkit.measure import size
    from toolkit.sparsity.mask import SparsityMask
    from toolkit.sparsity.mask_file import MASK_FILE

    dense, sparse = inputs.task_teacher_artifact, inputs.transfer_artifact
    if sparse is None:
        return None, None, False
    own, config = encoder_matrices(sparse.path), read_config(sparse.path)
    depth = depth_metrics(config)
    files = (a.path / MASK_FILE for a in (sparse, inputs.quantize_artifact) if a)
    mask = next((SparsityMask.load(file) for file in files if file.is_file()), None)
    if mask is None and not depth:
        return None, None, False
    has_zeros = mask is not None and (not depth or mask.sparsity() >= MIN_SPARSITY)
    if mask is not None and has_zeros:
        kept = {name: int(pattern.sum()) for name, pattern in mask.tensors.items()}
    else:
        kept = {name: math.prod(shape) for name, shape in own.items()}
    footprint = size.count_weights(sparse.path, kept)
    if is_dense(sparse.path):
        return footprint, footprint, False
    if dense is None or own == (others := encoder_matrices(dense.path)):
        return footprint, footprint, has_zeros
    if not depth or layer_count(read_config(dense.path)) != depth["layers_before"]:
        return footprint, None, has_zeros
    named = {split_layer(name)[2] for name in kept}
    whole = {name: math.prod(shape) for name, shape in others.items() if split_layer(name)[2] in named}
    return footprint, size.count_weights(dense.path, whole), has_zeros


def criterion(
    limit: AccuracyCriterion,
    metric: str,
    scores: Mapping[Any, Mapping[str, float]],
    before_it: str = SHIPPED_FP32,
    after_it: str = SHIPPED,
) -> dict[str, Any] | None:
    """Evaluates an accuracy criterion on the dev split: the loss of one IR against another one.

    Args:
        limit: The recipe's accuracy criterion.
        metric: Name of the metric.
        scores: Variant -> metric -> score.
        before_it: The variant without what the criterion limits: 8 bits, or zeros.
        after_it: The variant with it.

    Returns:
        The maximum loss as `promised` and the actual one as `measured`, in the unit of `kind`: `relative` (fraction of
        the score before) or `absolute`. None unless both variants were measured.
    """
    if not {before_it, after_it} <= scores.keys():
        return None
    before, after = scores[before_it][metric], scores[after_it][metric]
    return {
        "kind": "absolute" if limit.relative is None else "relative",
        "metric": metric,
        "reference": before,
        "promised": limit.limit(),
        "measured": limit.loss(before, after),
        "met": limit.met(before, after),
    }
