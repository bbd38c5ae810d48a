"""`export`: every variant as an OpenVINO IR folder, held against its torch model on the whole dev split."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.core.artifacts import Artifact, Check, Context, StageResult
from toolkit.core.errors import UserError
from toolkit.pipeline.stages.export_checks import (
    ENGINE_INT8_TOLERANCE,
    ENGINE_TOLERANCE,
    FP32_TOLERANCE,
    SINGLE_LOGIT_FACTOR,
    check_at_most,
    check_quantization,
    check_zeros,
    weights_hash,
)
from toolkit.quantization.tuning import TUNING_FILE
from toolkit.recipe import Quantization


def run(sections: Any, inputs: dict[str, Artifact], context: Context) -> StageResult:
    """Exports, opens again, compares."""
    from toolkit.data.tasks import load_task
    from toolkit.ir.kernels.library import KernelMissingError
    from toolkit.ir.sparse_engine import NotSparseEnoughError
    from toolkit.models.load import load_tokenizer
    from toolkit.sparsity.mask import MASK_FILE, SparsityMask

    section = sections.quantize.quantization if sections.quantize else Quantization()
    source = next(iter(inputs.values())).path
    tokenizer = load_tokenizer(source)
    task = load_task(context.task or "", sections.task, tokenizer)
    makers = _makers(sections, inputs, task, tokenizer)
    if not any(variant.replace("-engine", "") in makers for variant in sections.export.variants):
        raise UserError(
            f"none of {', '.join(sections.export.variants)} has a model in this run",
            where=f"export.variants of task {context.task!r}",
            instead=f"variants: [{', '.join(makers)}], or the stages that make the others",
        )
    sparse = inputs.get("transfer")
    mask = SparsityMask.load(sparse.path / MASK_FILE) if sparse and (sparse.path / MASK_FILE).is_file() else None

    metrics: dict[str, Any] = {"variants": {}, "left_out": {}}
    checks: list[Check] = []
    context.progress.start(len(sections.export.variants))
    # Engine variants are made from plain ones, which therefore come first.
    for done, variant in enumerate(sorted(sections.export.variants, key=lambda v: "engine" in v), start=1):
        plain = variant.replace("-engine", "")
        pattern = mask if variant.startswith("sparse") else None
        int8 = variant.endswith("int8")
        dynamic = int8 and section.approach == "post_training_dynamic_quant"
        if plain not in makers:
            metrics["left_out"][variant] = "the run has no model for it"
        elif variant != plain:
            try:
                figures, found = _engine(variant, plain, makers[plain], task, tokenizer, sections.export, mask, context)
            except (KernelMissingError, NotSparseEnoughError) as error:  # the plain IR is what there is
                metrics["left_out"][variant] = error.what
            else:
                metrics["variants"][variant] = figures
                checks += found
        else:
            figures, found, inspection = _export(
                variant, makers[variant](), task, tokenizer, sections.export, pattern, dynamic, context
            )
            metrics["variants"][variant] = figures
            checks += found
            if int8:
                returned = _returned(inputs) if variant == "sparse-int8" else ()
                checks.append(check_quantization(variant, inspection, section, returned))
        context.progress.update(done)
    return StageResult(kind="ir", metrics=metrics, checks=checks, data={"note": sections.task.note})


def _makers(sections: Any, inputs: dict[str, Artifact], task: Any, tokenizer: Any) -> dict[str, Callable[[], Any]]:
    """Variant -> how to load or make its torch model."""
    from toolkit.data.batches import pad
    from toolkit.models.load import load_task_model
    from toolkit.quantization import nncf

    section = sections.quantize.quantization if sections.quantize else Quantization()

    def plain(name: str) -> Any:
        return load_task_model(inputs[name].path, task.kind, task.labels, fitted=True).eval()

    def dense_int8() -> Any:
        batches = nncf.calibration_batches(
            lambda features: pad(features, tokenizer.pad_token_id), task.train, section.calibration.sampling_size
        )
        make = nncf.dynamic if section.approach == "post_training_dynamic_quant" else nncf.post_training
        return make(plain("task_teacher"), batches, section)

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
    variant: str, model: Any, task: Any, tokenizer: Any, section: Any, mask: Any, dynamic: bool, context: Context
) -> tuple[dict[str, Any], list[Check], Any]:
    """One variant: its figures, its checks (design: invariants 2, 3 and 4), and what was found in the IR."""
    import numpy as np

    from toolkit.ir.inspect import inspect_ir
    from toolkit.measure.accuracy import cached_predictions
    from toolkit.training.evaluation import predict

    folder = context.folder / variant
    torch_logits = predict(model, task.dev, tokenizer.pad_token_id)
    before = weights_hash(model)
    _export_plain(model, task, tokenizer, folder)
    untouched = weights_hash(model) == before

    answers = partial(cached_predictions, examples=task.dev, pad_id=tokenizer.pad_token_id, cache=context.cache)
    ir_logits = answers(folder)
    # torch knows nothing of activations that OpenVINO quantizes at run time: the logits are compared without that.
    plain = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    exact = answers(folder, properties=plain) if dynamic else ir_logits
    wanted, got = (np.concatenate([row.ravel() for row in logits]) for logits in (torch_logits, exact))
    differences = np.abs(got - wanted)
    extent = float(wanted.max() - wanted.min())
    scores = {"torch": task.scores(torch_logits), "ir": task.scores(ir_logits)}
    # In FP32 every logit must agree. In 8 bits a difference in the last digit can become a whole quantization step, and
    # each layer makes more of them: a sound model's largest difference over a dev split was seen to reach 9 % of the
    # range, its mean 1 % (benchmarks/). What is wrong, a lost scale or matrix, shows in the mean.
    largest, mean = float(differences.max()) / extent, float(differences.mean()) / extent
    int8 = variant.endswith("int8")
    limit = SINGLE_LOGIT_FACTOR * section.tolerance if int8 else FP32_TOLERANCE
    inspection = inspect_ir(folder)
    checks = [
        check_at_most(variant, "largest |IR - torch| logit, share of their range", largest, limit),
        *(
            [check_at_most(variant, "mean |IR - torch| logit, share of their range", mean, section.tolerance)]
            if int8
            else []
        ),
        *(
            check_at_most(
                variant,
                f"|IR - torch| {m.name} on all {m.n} dev examples",
                abs(scores["torch"][m.name] - scores["ir"][m.name]),
                section.metric_tolerance,
            )
            for m in task.measures
        ),
        Check(name=f"{variant}: torch weights untouched", ok=untouched, measured=str(untouched), limit="True"),
        Check(
            name=f"{variant}: examples answered",
            ok=len(ir_logits) == len(task.dev),
            measured=float(len(ir_logits)),
            limit=float(len(task.dev)),
        ),
    ]
    checks += [] if mask is None else check_zeros(variant, inspection, mask)
    return (
        {
            "matmuls": [asdict(m) for m in inspection.matmuls],
            "max_abs_diff": float(differences.max()),
            "mean_abs_diff": float(differences.mean()),
            "logit_range": extent,
            "dev_n": task.dev_n,
            **scores,
        },
        checks,
        inspection,
    )


def _engine(
    variant: str,
    plain: str,
    make: Callable[[], Any],
    task: Any,
    tokenizer: Any,
    section: Any,
    mask: Any,
    context: Context,
) -> tuple[dict[str, Any], list[Check]]:
    """The plain IR on the sparse kernel, held against the same weights as dense FP32 products on all dev examples.

    Raises:
        KernelMissingError: The kernel cannot be built.
        TooFewZerosError: Nothing is sparse enough for it.
    """
    import tempfile

    import numpy as np

    from toolkit.ir import kernels
    from toolkit.ir.inspect import inspect_ir
    from toolkit.ir.sparse_engine import reference_ir, to_sparse_engine
    from toolkit.measure.accuracy import cached_predictions, predict_ir

    kernels.build()
    folder = context.folder / variant
    answers = partial(cached_predictions, examples=task.dev, pad_id=tokenizer.pad_token_id, cache=context.cache)
    context.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=context.work) as scratch:  # what a kill leaves of it goes with the work
        source = context.folder / plain
        if not source.is_dir():
            source = Path(scratch) / plain
            _export_plain(make(), task, tokenizer, source)
        made = to_sparse_engine(source, folder)
        reference_ir(source, Path(scratch))
        wanted = predict_ir(Path(scratch), task.dev, tokenizer.pad_token_id)
        plain_logits = answers(source)
    logits = answers(folder)
    expected, got = (np.concatenate([row.ravel() for row in rows]) for rows in (wanted, logits))
    extent = float(expected.max() - expected.min())
    differences = np.abs(got - expected)
    scores = {"plain": task.scores(plain_logits), "ir": task.scores(logits)}
    inspection = inspect_ir(folder)
    largest = float(differences.max())
    mean = float(differences.mean())
    same_products = "|engine - dense products of the same numbers| logit, share of their range"
    checks = [
        check_at_most(variant, f"mean {same_products}", mean / extent, ENGINE_INT8_TOLERANCE)
        if made.in_8_bits
        else check_at_most(variant, f"largest {same_products}", largest / extent, ENGINE_TOLERANCE),
        *(
            check_at_most(
                variant,
                f"|engine - {plain}| {m.name} on all {m.n} dev examples",
                abs(scores["plain"][m.name] - scores["ir"][m.name]),
                section.metric_tolerance,
            )
            for m in task.measures
        ),
        *([] if mask is None else check_zeros(variant, inspection, mask)),
    ]
    figures = {
        "matmuls": [asdict(m) for m in inspection.matmuls],
        "on_the_kernel": list(made.matrices),
        "ordinary": made.ordinary,
        "operations": made.operations,
        "in_8_bits": made.in_8_bits,
        "max_abs_diff": largest,
        "mean_abs_diff": mean,
        "logit_range": extent,
        "dev_n": task.dev_n,
        **scores,
    }
    return figures, checks


def _export_plain(model: Any, task: Any, tokenizer: Any, folder: Path) -> None:
    from toolkit.data.batches import model_inputs, pad
    from toolkit.ir.convert import export_ir

    export_ir(model, tokenizer, folder, model_inputs(pad([task.dev[0], task.dev[1]], tokenizer.pad_token_id)))


def _returned(inputs: dict[str, Artifact]) -> tuple[str, ...]:
    """Operations that tuning gave back to FP32."""
    found = json.loads((inputs["quantize"].path / TUNING_FILE).read_text())
    return tuple(found["returned"])
