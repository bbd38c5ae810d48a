"""Trials of the accuracy-driven search of `quantize`: quantized models, each in a folder that survives a restart."""

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.core.artifacts import Artifact, Context
from toolkit.core.errors import TimeLimitReached
from toolkit.core.files import write_atomic
from toolkit.quantization.tuning import Trial
from toolkit.recipe import Model, Performance, Quantize, Task

_RECORD = "trial.json"  # written last: a trial's folder without it is incomplete
_SENSITIVITY_EXAMPLES = 128


@dataclass(frozen=True)
class Inputs:
    """Recipe sections and artifacts that the stage reads; without distillation there is no task teacher."""

    model: Model
    task: Task
    quantize: Quantize
    transfer_artifact: Artifact
    task_teacher_artifact: Artifact | None = None


class Trials:
    """Builds and evaluates quantized models, each in its own folder, and resumes after an interruption."""

    def __init__(self, inputs: Inputs, context: Context) -> None:
        from toolkit.data.tasks import load_task
        from toolkit.models.load import load_tokenizer
        from toolkit.sparsity.mask import checkpoint_mask
        from toolkit.training.datasets import task_data
        from toolkit.training.teacher_logits import with_dense

        self._inputs, self._context = inputs, context
        self._source = inputs.transfer_artifact.path
        self.tokenizer = load_tokenizer(self._source)
        task = load_task(context.task or "", inputs.task, self.tokenizer, inputs.quantize.unlabelled)
        self.task = with_dense(task, inputs.task_teacher_artifact, self.tokenizer, context.cache)
        self.plain = self.fresh()
        self.mask = checkpoint_mask(self._source, self.matrices(self.plain), dense_too=True)
        train = inputs.quantize.train
        pad_id = self.tokenizer.pad_token_id
        self._data = None if train is None else task_data(self.task.train, pad_id, train, context.seed)
        self._reference = self._score(self.plain) if len(self.task.tune) else 0.0

    def fresh(self) -> Any:
        """Loads the FP32 model that is quantized."""
        from toolkit.models.load import load_task_model

        task = self.task
        return load_task_model(self._source, task.kind, task.labels, fitted=True, pooling=task.pooling)

    def matrices(self, model: Any) -> dict[str, Any]:
        """Returns the prunable matrices of a model, quantized or not."""
        from toolkit.models.load import prunable_matrices

        return prunable_matrices(model, self._inputs.model.prunable)

    def folder(self, number: int) -> Path:
        """Returns the folder of a trial."""
        return self._context.work / "trials" / str(number)

    def attempt(self, number: int, returned: tuple[str, ...]) -> Trial:
        """Builds and evaluates a trial, or reads its result if an interrupted run has it.

        Args:
            number: Trial number.
            returned: Operations kept in FP32.

        Raises:
            TimeLimitReached: The run's time is over; the trial is recorded, or its training has a checkpoint.
        """
        from toolkit.quantization import nncf

        record = self.folder(number) / _RECORD
        if record.is_file():
            values = json.loads(record.read_text())
            return Trial(**values | {"returned": tuple(values["returned"])})
        started = time.monotonic()
        self.make(number, returned)
        if number == 0:  # the search's time starts here, as this model is built without tuning too
            started = time.monotonic()
        score = self._score(nncf.load(self.folder(number) / "model", self.fresh))
        criterion = self._inputs.quantize.tuning.accuracy_criterion
        trial = Trial(
            number=number,
            returned=returned,
            metric=score,
            loss=criterion.loss(self._reference, score),
            met=criterion.met(self._reference, score, self._resolution()),
            seconds=round(time.monotonic() - started, 3),
        )
        write_atomic(record, json.dumps(trial.as_dict()))
        where = "all in INT8" if not returned else f"{len(returned)} in FP32"
        verdict = f"criterion {'met' if trial.met else 'not met'}"
        scores = f"{self.task.tuning_metric} {score:.4f} (FP32: {self._reference:.4f})"
        self._context.progress.message(f"trial {number}, {where}: {scores}, {verdict}")
        if self._context.time_over():
            raise TimeLimitReached(f"after trial {number}")
        return trial

    def _resolution(self) -> float:
        """Returns what one of the tuning examples changes: a criterion below that would be met or missed by chance."""
        from toolkit.measure.significance import is_proportion

        return 1 / len(self.task.tune.truth) if is_proportion(self.task.tuning_metric) else 0.0

    def make(self, number: int, returned: tuple[str, ...]) -> int:
        """Writes the model of a trial and the record of its training; returns its number."""
        from toolkit.quantization import nncf
        from toolkit.quantization.operations import return_to_fp32

        target = self.folder(number) / "model"
        if (self.folder(number) / "fitted.json").is_file():
            return number
        if number == 0:
            model = self._quantized()
            training = self._fit(model, self._context, None)
        else:
            model = nncf.load(self.folder(0) / "model", self.fresh)
            return_to_fp32(model, returned, self._operations(model))
            training = self._retrained(model, number)
        model = model.cpu()  # training may have moved it to a GPU
        nncf.widen_to_7_bits(model, self._sample(), self._inputs.quantize.quantization)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        nncf.save(model, target)
        self._context.require_unchanged()
        write_atomic(self.folder(number) / "fitted.json", json.dumps(training))
        return number

    def _quantized(self) -> Any:
        from toolkit.quantization import nncf
        from toolkit.training.loop import seed_everything

        seed_everything(self._context.seed)
        section = self._inputs.quantize.quantization
        batches = nncf.calibration_batches(self._collate, self.task.train, section.calibration.sampling_size)
        return nncf.quantized(self.plain.cpu(), batches, section)  # scoring may have moved it to a GPU

    def _fit(self, model: Any, context: Context, steps: int | None) -> dict[str, Any]:
        """Trains with the pattern locked, and returns metrics and training curve; both empty without training."""
        from toolkit.quantization.fake_quantize import fast_fake_quantization
        from toolkit.sparsity.pruners import PatternLock
        from toolkit.training.datasets import task_data
        from toolkit.training.loop import fit
        from toolkit.training.teacher_logits import task_distillation

        train = self._inputs.quantize.train
        if train is None or self._data is None:
            return {"metrics": {}, "history": []}
        lock = PatternLock(self.mask)
        lock.attach(self.matrices(model))
        distillation, teacher = self._inputs.quantize.distillation, self._inputs.task_teacher_artifact
        loss, logits = task_distillation(distillation, teacher, self.task, self.tokenizer, context)
        if steps is not None:
            train = train.model_copy(update={"steps": steps, "epoch": None})
        data = task_data(self.task.train, self.tokenizer.pad_token_id, train, context.seed, logits)
        with fast_fake_quantization() as problem:
            if problem:
                message = problem.strip().splitlines()[0][:200]
                context.progress.message(f"slower fake quantization, as an extension cannot be built: {message}")
            result = fit(model, data, train, loss, context, sparsifier=lock)
        return {"metrics": result.metrics(), "history": result.history}

    def _retrained(self, model: Any, number: int) -> dict[str, Any]:
        """Retrains a trial for the budget of `retrain_steps`; metrics and curve continue those of trial 0."""
        first: dict[str, Any] = json.loads((self.folder(0) / "fitted.json").read_text())
        steps = self._inputs.quantize.tuning.retrain_steps
        if not steps:
            return first
        more = self._fit(model, replace(self._context, work=self.folder(number)), steps)
        before = int(first["metrics"]["steps"])
        history = first["history"] + [row | {"step": row["step"] + before} for row in more["history"]]
        return {"metrics": first["metrics"] | {"retrain_steps": steps}, "history": history}

    def ranked(self) -> list[str]:
        """Returns the quantized operations, most sensitive first; the measurement is cached on disk."""
        from toolkit.quantization import nncf, sensitivity

        record = self._context.work / "sensitivity.json"
        if not record.is_file():
            self._context.progress.message("measuring the quantization sensitivity of each operation")
            model = nncf.load(self.folder(0) / "model", self.fresh)
            batches = self._batches(self.task.tune, _SENSITIVITY_EXAMPLES, 32)
            measured = sensitivity.measure(self.task.kind, model, batches, self._operations(model))
            write_atomic(record, json.dumps(measured))
        found: dict[str, float] = json.loads(record.read_text())
        return sorted(found, key=lambda name: -found[name])

    def costs(self, trials: tuple[Trial, ...]) -> dict[int, float]:
        """What the objective wants small, measured on the IRs of the trials that meet the criterion."""
        from toolkit.ir.convert import export_ir
        from toolkit.measure import latency, memory, size
        from toolkit.quantization import nncf

        fits = [t.number for t in trials if t.met]
        objective = self._inputs.quantize.tuning.objective
        if len(fits) < 2 or objective == "accuracy":
            return {}
        self._context.progress.message(f"measuring the {objective} of {len(fits)} models that meet the criterion")
        folders = {str(n): self.folder(n) / "ir" for n in fits}
        for number in fits:
            model = nncf.load(self.folder(number) / "model", self.fresh)
            export_ir(model, self.tokenizer, folders[str(number)], self._sample())
        if objective == "modelsize":
            return {int(n): float(size.file_sizes(f)[size.FILE]) for n, f in folders.items()}
        if objective == "footprint":
            return {int(n): float(memory.peak_memory(f, self._sample())) for n, f in folders.items()}
        section = Performance(batch_sizes=(1,), seconds=1, sequence_length=self._inputs.task.max_seq_length)
        pad_id = self.tokenizer.pad_token_id
        timed = latency.measure(folders, self.task.tune, pad_id, section, self._context.work / "timing")
        return {int(t.model): float(t.as_metrics()["latency_ms_median"]) for t in timed}  # type: ignore[arg-type]

    def summary(self, trials: tuple[Trial, ...], kept: Trial, costs: dict[int, float]) -> dict[str, Any]:
        """Returns the record of the search for the manifest and the checkpoint."""
        tuning, record = self._inputs.quantize.tuning, self._context.work / "sensitivity.json"
        criterion, one = tuning.accuracy_criterion, self._reference - self._resolution()
        return {
            "examples": len(self.task.tune.truth),
            "metric": self.task.tuning_metric,
            "reference": self._reference,
            "kind": "absolute" if criterion.relative is None else "relative",
            "limit": max(criterion.limit(), criterion.loss(self._reference, one)),
            "objective": tuning.objective,
            "trials": [t.as_dict() for t in trials],
            "costs": {str(n): cost for n, cost in costs.items()},
            "kept": kept.number,
            "met": kept.met,
            "returned": list(kept.returned),
            "sensitivity": json.loads(record.read_text()) if record.is_file() else {},
        }

    def shape_metrics(self) -> dict[str, Any]:
        """Returns the sparsity of the model and the layers that it kept; of a dense one of fewer layers these alone."""
        from toolkit.models.checkpoint import MIN_SPARSITY
        from toolkit.models.depth import depth_metrics
        from toolkit.sparsity.checks import sparsity_metrics

        depth = depth_metrics(self.plain.config.to_dict())
        dense = depth and self.mask.sparsity() < MIN_SPARSITY
        return depth if dense else sparsity_metrics(self.mask) | depth

    def dev_metrics(self, model: Any) -> dict[str, Any]:
        """Evaluates a model on the dev split, which takes no part in the selection."""
        from toolkit.training.evaluation import task_metrics

        return task_metrics(model, self.task, self.tokenizer, self._data)

    def _operations(self, model: Any) -> Any:
        from toolkit.quantization.operations import quantized_ops

        return quantized_ops(model, self._sample())

    def _score(self, model: Any) -> float:
        from toolkit.training.evaluation import predict

        return self.task.tuning_score(predict(model, self.task.tune, self.tokenizer.pad_token_id))

    def _batches(self, examples: Any, count: int, size: int) -> list[Any]:
        """Returns model inputs of the first `count` examples, in batches of similar length."""
        from toolkit.data.batches import model_inputs

        order = sorted(range(min(count, len(examples))), key=lambda i: len(examples[i]["input_ids"]))
        groups = [order[first : first + size] for first in range(0, len(order), size)]
        return [model_inputs(self._collate([examples[i] for i in group])) for group in groups]

    def _collate(self, features: list[Any]) -> Any:
        from toolkit.data.batches import pad

        return pad(features, self.tokenizer.pad_token_id)

    def _sample(self) -> Any:
        from toolkit.data.batches import model_inputs

        return model_inputs(self._collate([self.task.train[0], self.task.train[min(1, len(self.task.train) - 1)]]))
