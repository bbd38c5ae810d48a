"""`benchmark`: accuracy of each IR itself on the whole dev split, sizes, latency and throughput.

The export has asked the IRs for their answers; on another CPU they are asked again.
"""

import json
from pathlib import Path
from typing import Any, get_args

from toolkit.core.artifacts import Artifact, Check, Context, StageResult
from toolkit.core.errors import UserError
from toolkit.models.checkpoint import encoder_matrices
from toolkit.recipe import AccuracyCriterion, Variant


def run(sections: Any, inputs: dict[str, Artifact], context: Context) -> StageResult:
    """Measures every variant that was exported.

    Raises:
        UserError: There is no IR folder, or benchmark_app fails.
    """
    from toolkit.data.tasks import load_task
    from toolkit.ir.inspect import inspect_ir
    from toolkit.measure import accuracy, latency, size
    from toolkit.models.load import load_tokenizer

    export = inputs["export"].path
    folders = {v: export / v for v in get_args(Variant) if (export / v / "openvino_model.xml").is_file()}
    if not folders:
        raise UserError("no IR folder here", where=str(export), instead="run `export` with at least one variant")
    tokenizer = load_tokenizer(next(iter(folders.values())))
    task = load_task(context.task or "", sections.task, tokenizer)
    section = sections.benchmark.evaluation.performance

    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        context.progress.update(done)

    context.progress.start(len(folders) + latency.runs(len(folders), section))
    scores, answered = {}, []
    for variant, folder in folders.items():
        logits = accuracy.cached_predictions(folder, task.dev, tokenizer.pad_token_id, context.cache)
        scores[variant] = task.scores(logits)
        answered.append(len(logits))
        advance()

    footprint = _footprint(inputs)
    # The dense variants are the teacher: where that is another model, its encoder is not the one that was pruned.
    encoders = [encoder_matrices(inputs[name].path) for name in ("task_teacher", "transfer") if name in inputs]
    another = len(encoders) == 2 and encoders[0] != encoders[1]
    sizes = {}
    for variant, folder in folders.items():
        sizes[variant] = size.file_sizes(folder)
        if footprint is not None and not (another and variant.startswith("dense")):
            inspection = inspect_ir(folder)  # what is in 8 bits is read off the IR: tuning may have returned some
            sizes[variant] |= footprint.sizes(
                value_bytes=size.INT8_BYTES if variant.endswith("int8") else size.FP32_BYTES,
                sparse=variant.startswith("sparse"),
                fp32={f"{m.module}.weight" for m in inspection.matmuls if m.stored_type == "f32"},
                int8_embeddings=all(table.stored_type == "i8" for table in inspection.embeddings),
            )

    timed = latency.measure(folders, task.dev, tokenizer.pad_token_id, section, context.folder, lambda *_: advance())
    variants = {
        variant: {
            "accuracy": scores[variant],
            "sizes": sizes[variant],
            "performance": [t.as_metrics() for t in timed if t.model == variant],
        }
        for variant in folders
    }
    (context.folder / "benchmark.json").write_text(json.dumps(variants, indent=1))
    quantize = sections.quantize
    return StageResult(
        kind="measurement",
        metrics={
            "dev_n": task.dev_n,
            "metrics": list(task.metrics),
            "counts": {m.name: m.n for m in task.measures},
            "note": sections.task.note,
            "rows_left_out": list(task.left_out),
            "variants": variants,
            "sizes_reference": footprint.reference() if footprint else {},
            "accuracy_criterion": criterion(quantize.tuning.accuracy_criterion, task.metrics[0], scores)
            if quantize
            else None,
        },
        checks=[
            Check(
                name="fewest examples that an IR answered",
                ok=min(answered) == len(task.dev),
                measured=float(min(answered)),
                limit=f"the whole dev split: {len(task.dev)}",
            )
        ],
        data={"note": sections.task.note},
    )


def _footprint(inputs: dict[str, Artifact]) -> Any:
    """What the encoder's sizes are computed from; None where nothing was pruned, and so no matrix is marked."""
    from toolkit.measure import size
    from toolkit.sparsity.mask import MASK_FILE, SparsityMask

    checkpoint: Path | None = inputs["transfer"].path if "transfer" in inputs else None
    masks = [a.path / MASK_FILE for n, a in inputs.items() if n in ("transfer", "quantize")]
    found = next((m for m in masks if m.is_file()), None)
    if checkpoint is None or found is None:
        return None
    mask = SparsityMask.load(found)
    return size.count_weights(checkpoint, {name: int(kept.sum()) for name, kept in mask.tensors.items()})


def criterion(promise: AccuracyCriterion, metric: str, scores: dict[Any, dict[str, float]]) -> dict[str, Any] | None:
    """The recipe's promise: what 8 bits may cost the sparse model. None unless both of its variants were measured.

    Returns:
        `promised` and `measured` loss, in the unit of `kind`: `relative` (share of the FP32 score) or `absolute`.
    """
    if not {"sparse-fp32", "sparse-int8"} <= scores.keys():
        return None
    before, after = scores["sparse-fp32"][metric], scores["sparse-int8"][metric]
    return {
        "kind": "absolute" if promise.relative is None else "relative",
        "metric": metric,
        "reference": before,
        "promised": promise.limit(),
        "measured": promise.loss(before, after),
        "met": promise.met(before, after),
    }
