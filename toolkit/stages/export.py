"""`export`: every variant as an OpenVINO IR folder, held against its torch model on the whole dev split."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from toolkit.artifacts import Artifact, Check, Context, StageResult

_FP32_TOLERANCE = 1e-3  # share of the logits' range


def run(sections: Any, inputs: dict[str, Artifact], context: Context) -> StageResult:
    """Exports, opens again, compares."""
    from toolkit import models, tasks
    from toolkit.sparsity.mask import MASK_FILE, SparsityMask

    source = next(iter(inputs.values())).path
    tokenizer = models.load_tokenizer(source)
    task = tasks.load_task(context.task or "", sections.task, tokenizer)
    makers = _makers(sections, inputs, task, tokenizer)
    sparse = inputs.get("transfer")
    mask = SparsityMask.load(sparse.path / MASK_FILE) if sparse and (sparse.path / MASK_FILE).is_file() else None

    metrics: dict[str, Any] = {"variants": {}, "left_out": {}}
    checks: list[Check] = []
    context.progress.start(len(sections.export.variants))
    for done, variant in enumerate(sections.export.variants, start=1):
        if variant not in makers:
            metrics["left_out"][variant] = "the run has no model for it"
        else:
            pattern = mask if variant.startswith("sparse") else None
            figures, found = _export(variant, makers[variant](), task, tokenizer, sections.export, pattern, context)
            metrics["variants"][variant] = figures
            checks += found
        context.progress.update(done)
    return StageResult(kind="ir", metrics=metrics, checks=checks, data={"note": sections.task.note})


def _makers(sections: Any, inputs: dict[str, Artifact], task: Any, tokenizer: Any) -> dict[str, Callable[[], Any]]:
    """Variant -> how to load or make its torch model."""
    from toolkit import models
    from toolkit.quantization import nncf
    from toolkit.recipe import Quantization
    from toolkit.tasks import pad

    section = sections.quantize.quantization if sections.quantize else Quantization()

    def plain(name: str) -> Any:
        return models.load_classifier(inputs[name].path, task.labels).eval()

    def dense_int8() -> Any:
        batches = nncf.calibration_batches(
            lambda features: pad(features, tokenizer.pad_token_id), task.train, section.calibration.sampling_size
        )
        return nncf.post_training(plain("task_teacher"), batches, section)

    makers: dict[str, Callable[[], Any]] = {}
    if "task_teacher" in inputs:
        makers |= {"dense-fp32": lambda: plain("task_teacher"), "dense-int8": dense_int8}
    if "transfer" in inputs:
        makers["sparse-fp32"] = lambda: plain("transfer")
    if "quantize" in inputs:
        makers["sparse-int8"] = lambda: nncf.load(inputs["quantize"].path, lambda: plain("quantize_base"))
        inputs["quantize_base"] = inputs["transfer"] if "transfer" in inputs else inputs["quantize"]
    return makers


def _export(
    variant: str, model: Any, task: Any, tokenizer: Any, section: Any, mask: Any, context: Context
) -> tuple[dict[str, Any], list[Check]]:
    """One variant: its figures and its checks (design: invariants 2, 3 and 4)."""
    import numpy as np

    from toolkit import tasks, training
    from toolkit.distillation import inputs_of
    from toolkit.ir.convert import export_ir
    from toolkit.ir.inspect import inspect_ir
    from toolkit.measure.accuracy import predict_ir

    folder = context.folder / variant
    torch_logits = training.predict(model, task.dev, tokenizer.pad_token_id)
    before = _weights_hash(model)
    sample = inputs_of(tasks.pad([task.dev[0], task.dev[1]], tokenizer.pad_token_id))
    export_ir(model, tokenizer, folder, sample)
    untouched = _weights_hash(model) == before

    ir_logits = predict_ir(folder, task.dev, tokenizer.pad_token_id)
    difference = float(np.abs(ir_logits - torch_logits).max())
    extent = float(torch_logits.max() - torch_logits.min())
    scores = {
        name: tasks.score(task.metrics, task.dev.labels, logits.argmax(axis=1))
        for name, logits in (("torch", torch_logits), ("ir", ir_logits))
    }
    metric = task.metrics[0]
    drift = abs(scores["torch"][metric] - scores["ir"][metric])
    limit = section.tolerance if variant.endswith("int8") else _FP32_TOLERANCE
    matmuls = inspect_ir(folder).matmuls
    checks = [
        _check(variant, "largest |IR - torch| logit, share of their range", difference / extent, limit),
        _check(variant, f"|IR - torch| {metric} on all {len(task.dev)} dev examples", drift, section.metric_tolerance),
        Check(name=f"{variant}: torch weights untouched", ok=untouched, measured=str(untouched), limit="True"),
        Check(
            name=f"{variant}: examples answered",
            ok=len(ir_logits) == len(task.dev),
            measured=float(len(ir_logits)),
            limit=float(len(task.dev)),
        ),
    ]
    checks += [] if mask is None else _zeros(variant, matmuls, mask, variant.endswith("int8"))
    return {
        "matmuls": [asdict(m) for m in matmuls],
        "max_abs_diff": difference,
        "logit_range": extent,
        "dev_n": len(task.dev),
        **scores,
    }, checks


def _check(variant: str, name: str, measured: float, limit: float) -> Check:
    return Check(name=f"{variant}: {name}", ok=measured <= limit, measured=measured, limit=limit)


def _zeros(variant: str, matmuls: Any, mask: Any, int8: bool) -> list[Check]:
    """Every pruned matrix is in the IR with at least its zeros, and as i8 where it should be."""
    from collections import Counter

    wanted = sorted(1 - float(kept.float().mean()) for kept in mask.tensors.values())
    shapes = Counter(tuple(kept.shape) for kept in mask.tensors.values())
    sparse = [m for m in matmuls if m.shape in shapes]
    found = sorted((m.zero_fraction for m in sparse), reverse=True)[: len(wanted)][::-1]
    missing = max((w - f for w, f in zip(wanted, found, strict=False)), default=1.0)
    stored = {m.stored_type for m in sorted(sparse, key=lambda m: -m.zero_fraction)[: len(wanted)]}
    kind = "i8" if int8 else "f32"
    return [
        Check(
            name=f"{variant}: pruned matrices found in the IR",
            ok=len(found) == len(wanted),
            measured=float(len(found)),
            limit=float(len(wanted)),
        ),
        _check(variant, "zeros lost in a matrix, share", max(0.0, missing), 1e-6),
        Check(
            name=f"{variant}: pruned matrices stored as",
            ok=stored == {kind},
            measured=", ".join(sorted(stored)),
            limit=kind,
        ),
    ]


def _weights_hash(model: Any) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
