"""`export`: every variant as an OpenVINO IR folder, compared with its torch model on the complete dev split."""

import json
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.artifacts import Artifact, Check, Context, StageResult
from toolkit.core.errors import UserError
from toolkit.models.checkpoint import zero_blocks
from toolkit.models.depth import is_dense
from toolkit.models.sources import stated_license
from toolkit.pipeline.graph import require_variant
from toolkit.pipeline.stages.export_checks import (
    ENGINE_INT8_TOLERANCE,
    ENGINE_TOLERANCE,
    FIXED,
    FP32_TOLERANCE,
    LOGIT_INSTEAD,
    SINGLE_LOGIT_FACTOR,
    LogitDifferences,
    check_at_most,
    check_metrics,
    check_quantization,
    check_zeros,
    pruned_matrices,
    weights_hash,
)
from toolkit.quantization.tuning import TUNING_FILE
from toolkit.recipe import VARIANTS, Export, Model, Quantization, Quantize, Task, Variant, variants_of_dense

if TYPE_CHECKING:
    from toolkit.data.tasks import TaskData


@dataclass(frozen=True)
class Inputs:
    """Recipe sections and artifacts that the stage reads; a variant whose checkpoint is missing is left out.

    Of `model`, its source is read for the license that it states; the rest is part of the cache key only.
    """

    model: Model
    task: Task
    quantize: Quantize | None
    export: Export
    task_teacher_artifact: Artifact | None = None
    transfer_artifact: Artifact | None = None
    quantize_artifact: Artifact | None = None

    def source_of(self, variant: Variant) -> Artifact | None:
        """Returns the checkpoint that a variant is exported from; None if the run has none."""
        return {
            "task_teacher": self.task_teacher_artifact,
            "transfer": self.transfer_artifact,
            "quantize": self.quantize_artifact,
        }[variant.source_stage]


def run(inputs: Inputs, context: Context) -> StageResult:
    """Exports each variant, reads its IR back and compares it with the torch model.

    Raises:
        UserError: The run has a model for none of the variants.
    """
    from toolkit.ir.kernels import KernelMissingError
    from toolkit.ir.sparse_engine import NotSparseEnoughError

    stages = {variant.source_stage for variant in VARIANTS.values() if inputs.source_of(variant)}
    transfer = inputs.transfer_artifact
    dense = transfer is not None and is_dense(transfer.path)
    require_variant(inputs.export, stages, str(context.task), lambda: dense)
    wanted, without = _wanted(inputs, dense)
    jobs = _ExportJob.prepare(inputs, wanted, context)
    metrics: dict[str, Any] = {"variants": {}, "left_out": without}
    checks: list[Check] = []
    if transfer is not None and (pruned := next((job.zeros for job in jobs.values() if job.zeros), {})):
        metrics["blocks"] = zero_blocks(transfer.path, pruned)
    context.progress.start(len(wanted))
    # Variants on the sparse engine are converted from plain ones, which therefore come first.
    for done, variant in enumerate(sorted(wanted, key=lambda v: v.engine), start=1):
        if inputs.source_of(variant) is None:
            metrics["left_out"][variant.name] = "the run has no model for it"
            context.progress.update(done)
            continue
        if variant.engine:
            try:
                figures, found = jobs[variant.source_stage].engine(variant)
            except (KernelMissingError, NotSparseEnoughError) as error:  # the plain IR is exported all the same
                metrics["left_out"][variant.name] = error.what
                context.progress.update(done)
                continue
        else:
            figures, found = jobs[variant.source_stage].plain(variant)
        metrics["variants"][variant.name] = figures | {"made_from": variant.source_stage}
        checks += found
        context.progress.update(done)
    data: dict[str, Any] = {"note": inputs.task.note}
    if stated := stated_license(inputs.model.source, context.cache / "licenses"):
        data["base model"] = stated
    return StageResult(kind="ir", metrics=metrics, checks=checks, data=data)


def _wanted(inputs: Inputs, dense: bool) -> tuple[list[Variant], dict[str, str]]:
    """Returns the variants to export, and those that a dense model cannot have, each with the reason.

    A model without zeros that is only quantized has dense variants, whatever the recipe calls them.

    Raises:
        UserError: Only variants for the sparse engine were asked for, of a dense model.
    """
    names = inputs.export.variants
    if not dense:
        return [VARIANTS[name] for name in names], {}
    wanted = variants_of_dense(names)
    if not wanted:
        what = f"none of {', '.join(names)} can be made of a model without zeros"
        raise UserError(what, where="export.variants", instead="variants: [dense-fp32, dense-int8]")
    if inputs.quantize_artifact is None:
        wanted = tuple(replace(variant, source_stage="transfer") for variant in wanted)
    return list(wanted), {name: "the model has no zeros" for name in names if VARIANTS[name].engine}


@dataclass(frozen=True)
class _ExportJob:
    """Data shared by the export of all variants of a checkpoint.

    Attributes:
        inputs: Inputs of the stage.
        context: Context of the stage.
        stage: Stage whose checkpoint is exported.
        tokenizer: Tokenizer of that checkpoint.
        task: Data of the task, as this tokenizer encodes it.
        zeros: Pruned matrix -> fraction of zeros in the checkpoint; empty for a dense model.
    """

    inputs: Inputs
    context: Context
    stage: str
    tokenizer: Any
    task: "TaskData"
    zeros: dict[str, float]

    @classmethod
    def prepare(cls, inputs: Inputs, variants: list[Variant], context: Context) -> "dict[str, _ExportJob]":
        """Returns the job of each stage with a checkpoint to export."""
        from toolkit.data.tasks import load_tasks
        from toolkit.models.load import load_tokenizer
        from toolkit.training.teacher_logits import with_dense

        wanted = {variant.source_stage: variant for variant in variants}
        sources = {stage: source for stage, v in wanted.items() if (source := inputs.source_of(v)) is not None}
        tokenizers: dict[str, Any] = {stage: load_tokenizer(source.path) for stage, source in sources.items()}
        tasks = load_tasks(context.task or "", inputs.task, tokenizers)
        tasks = {
            stage: with_dense(tasks[stage], inputs.task_teacher_artifact, tokenizers[stage], context.cache)
            for stage in sources
        }
        zeros = pruned_matrices(inputs.transfer_artifact.path) if inputs.transfer_artifact else {}
        return {
            stage: cls(inputs, context, stage, tokenizers[stage], tasks[stage], zeros if wanted[stage].sparse else {})
            for stage in sources
        }

    @property
    def quantization(self) -> Quantization:
        """Quantization settings of INT8 variants."""
        return self.inputs.quantize.quantization if self.inputs.quantize else Quantization()

    def plain(self, variant: Variant) -> tuple[dict[str, Any], list[Check]]:
        """Exports a plain IR, and returns its metrics and checks."""
        from toolkit.ir.inspect import inspect_ir
        from toolkit.training.evaluation import predict

        name, task, section = variant.name, self.task, self.inputs.export
        folder = self.context.folder / name
        model = self._torch_model(variant)
        torch_logits = predict(model, task.dev, self.tokenizer.pad_token_id)
        self._report_doubt(variant, torch_logits)
        weights = weights_hash(model)
        self._write(model, folder)
        untouched = weights_hash(model) == weights

        ir_logits = self._predictions(folder)
        exact = ir_logits
        if variant.int8 and self.quantization.approach == "post_training_dynamic_quant":
            # torch has no dynamic quantization of activations, so the logits are compared without it.
            exact = self._predictions(folder, properties={"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"})
        differences = LogitDifferences.between(torch_logits, exact)
        scores = {"torch": task.scores(torch_logits), "ir": task.scores(ir_logits)}
        inspection = inspect_ir(folder)
        # In FP32 every logit must agree. In INT8 a difference in the last digit can become a full quantization step,
        # and errors accumulate over layers: in a correct model the largest difference over a dev split reached 9 % of
        # the range, the mean 1 % (benchmarks/). An error, such as a missing scale or matrix, shows in the mean.
        largest, mean = differences.shares()
        limit = SINGLE_LOGIT_FACTOR * section.tolerance if variant.int8 else FP32_TOLERANCE
        instead = LOGIT_INSTEAD if variant.int8 else FIXED
        difference = "|IR - torch| logit, share of their range"
        checks = [check_at_most(name, f"largest {difference}", largest, limit, instead)]
        if variant.int8:
            checks.append(check_at_most(name, f"mean {difference}", mean, section.tolerance, instead))
        both, tolerance = (torch_logits, ir_logits), section.metric_tolerance
        checks += check_metrics(name, "IR - torch", scores["torch"], scores["ir"], task, tolerance, both)
        before = self.context.scores.get(self.stage)
        if before and not (variant.int8 and self.stage != "quantize"):  # that one is quantized here
            compared = f"torch - {self.stage}"
            checks += check_metrics(name, compared, before, scores["torch"], task, tolerance)
        checks += [
            Check(name=f"{name}: torch weights untouched", ok=untouched, measured=str(untouched), limit="True"),
            Check(
                name=f"{name}: examples answered",
                ok=len(ir_logits) == len(task.dev),
                measured=float(len(ir_logits)),
                limit=float(len(task.dev)),
            ),
        ]
        checks += check_zeros(name, inspection, self.zeros)
        if variant.int8:
            checks.append(check_quantization(name, inspection, self.quantization, self._in_fp32(variant)))
        figures = {
            "matmuls": [asdict(m) for m in inspection.matmuls],
            **differences.figures(),
            "dev_n": task.dev_n,
            "counts": {m.name: m.n for m in task.measures},
            **scores,
        }
        return figures, checks

    def _report_doubt(self, variant: Variant, logits: Any) -> None:
        """Reports a ready checkpoint that seems not to know the task, such as one with its classes in another order."""
        from toolkit.training.teacher_checks import doubt

        source = self.inputs.source_of(variant)
        if source is not None and self.stage in self.context.ready:
            found = doubt(self.task, self.task.dev, logits, source.path)
            if found is not None:
                self.context.progress.message(f"{variant.name}: {found.where}: {found.what}; expected: {found.instead}")

    def engine(self, variant: Variant) -> tuple[dict[str, Any], list[Check]]:
        """Exports a sparse-engine IR and compares it, on all dev examples, with dense FP32 MatMuls of the same weights.

        Raises:
            KernelMissingError: The kernels cannot be built.
            NotSparseEnoughError: No matrix is sparse enough for them.
        """
        from toolkit.ir import kernels
        from toolkit.ir.inspect import inspect_ir
        from toolkit.ir.sparse_engine import reference_ir, to_sparse_engine
        from toolkit.measure.accuracy import predict_ir

        kernels.build()
        name, task, section = variant.name, self.task, self.inputs.export
        folder = self.context.folder / name
        self.context.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.context.work) as scratch:  # after a kill, deleted with `work`
            source = self.context.folder / variant.plain
            if not source.is_dir():  # the plain variant was not requested
                source = Path(scratch) / variant.plain
                self._write(self._torch_model(VARIANTS[variant.plain]), source)
            exact = section.exact_activations
            made = to_sparse_engine(source, folder, exact_activations=exact)
            reference_ir(source, Path(scratch), exact_activations=exact)
            pad_id = self.tokenizer.pad_token_id
            reference = predict_ir(Path(scratch), task.dev, pad_id, per_token=task.dev.per_token)
            plain_logits = self._predictions(source)
        logits = self._predictions(folder)
        differences = LogitDifferences.between(reference, logits)
        scores = {"plain": task.scores(plain_logits), "ir": task.scores(logits)}
        inspection = inspect_ir(folder)
        largest, mean = differences.shares()
        same_products = "|engine - dense products of the same numbers| logit, share of their range"
        checks = [
            check_at_most(name, f"mean {same_products}", mean, ENGINE_INT8_TOLERANCE, FIXED)
            if made.in_8_bits
            else check_at_most(name, f"largest {same_products}", largest, ENGINE_TOLERANCE, FIXED)
        ]
        compared, both, tolerance = f"engine - {variant.plain}", (plain_logits, logits), section.metric_tolerance
        checks += check_metrics(name, compared, scores["plain"], scores["ir"], task, tolerance, both)
        checks += check_zeros(name, inspection, self.zeros)
        figures = {
            "matmuls": [asdict(m) for m in inspection.matmuls],
            "on_the_kernel": list(made.matrices),
            "ordinary": made.ordinary,
            "operations": made.operations,
            "in_8_bits": made.in_8_bits,
            **differences.figures(),
            "dev_n": task.dev_n,
            "counts": {m.name: m.n for m in task.measures},
            **scores,
        }
        return figures, checks

    def _torch_model(self, variant: Variant) -> Any:
        """Returns the torch model of a plain variant; for INT8, an FP32 checkpoint is quantized after training."""
        from toolkit.data.batches import pad
        from toolkit.quantization import nncf

        source = self.inputs.source_of(variant)
        assert source is not None, "a variant without a model is left out"
        if variant.source_stage == "quantize":
            base = self.inputs.transfer_artifact or source
            return nncf.load(source.path, lambda: self._fp32_model(base))
        if not variant.int8:
            return self._fp32_model(source)
        section = self.quantization
        batches = nncf.calibration_batches(
            lambda features: pad(features, self.tokenizer.pad_token_id),
            self.task.train,
            section.calibration.sampling_size,
        )
        dynamic = section.approach == "post_training_dynamic_quant"
        quantize = nncf.dynamic if dynamic else nncf.post_training
        return quantize(self._fp32_model(source), batches, section)

    def _fp32_model(self, source: Artifact) -> Any:
        from toolkit.models.load import load_task_model

        task = self.task
        return load_task_model(source.path, task.kind, task.labels, fitted=True, pooling=task.pooling).eval()

    def _write(self, model: Any, folder: Path) -> None:
        """Writes a torch model as a plain IR."""
        from toolkit.data.batches import model_inputs, pad
        from toolkit.ir.convert import export_ir
        from toolkit.models.load import save_modules

        dev = self.task.dev
        sample = pad([dev[0], dev[min(1, len(dev) - 1)]], self.tokenizer.pad_token_id)  # two rows, of one example too
        export_ir(model, self.tokenizer, folder, model_inputs(sample))
        save_modules(model, self.tokenizer, folder, self.inputs.task)

    def _predictions(self, folder: Path, properties: dict[str, str] | None = None) -> Any:
        """Returns the logits of an IR on the dev split, computed once and cached."""
        from toolkit.measure.accuracy import cached_predictions

        predict = partial(cached_predictions, examples=self.task.dev, pad_id=self.tokenizer.pad_token_id)
        return predict(folder, cache=self.context.cache, properties=properties)

    def _in_fp32(self, variant: Variant) -> tuple[str, ...]:
        """Returns the operations of a variant that tuning kept in FP32."""
        if variant.source_stage != "quantize" or self.inputs.quantize_artifact is None:
            return ()
        found = json.loads((self.inputs.quantize_artifact.path / TUNING_FILE).read_text())
        return tuple(found["returned"])
