"""Training steps of a stage on a model of few layers with random weights, for cost measurements."""

import contextlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM

from toolkit.core.errors import UserError
from toolkit.data.batches import KD_POSITIONS, Batch, model_inputs
from toolkit.data.masking import masked_count, sampled_count
from toolkit.models.config import stated
from toolkit.models.load import prunable_matrices
from toolkit.models.mlm_heads import mlm_head
from toolkit.models.task_heads import HEADS, task_logits
from toolkit.recipe import Criterion, IntermediateSettings, Kind, Positions, Quantization, Sample, Train
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.pruners import PatternLock
from toolkit.training import vocabulary_loss
from toolkit.training.distillation import MlmLoss, Teacher, mlm_loss, task_loss
from toolkit.training.hardware import bf16, device, teacher_bf16
from toolkit.training.loop import compiled, dropout, recomputed
from toolkit.training.trainer import optimizer_class

FLOAT = 4  # bytes; weights, gradients and the optimizer's state stay in FP32, also under bf16 autocast
_CHUNKS_OF_LOGITS = 2  # the model's and its teacher's
_TENSORS_OF_A_LOSS = 8  # temporaries, each of a few rows of logits
# Keys of a `config.json` that describe one checkpoint rather than the architecture.
_NOT_SHAPE = ("architectures", "id2label", "label2id", "num_labels", "dtype", "torch_dtype", "transformers_version")


@dataclass(frozen=True)
class StepShape:
    """Everything that the cost of a training step depends on.

    Attributes:
        config: The model's `config.json`, as text.
        teacher: The teacher's `config.json`; None: there is no teacher.
        kind: Kind of the task; None: masked-language-model pre-training.
        train: Batch size, precision and optimizer; with a teacher, also the `criterion`.
        length: Tokens per example for time measurements.
        longest: Tokens per example for memory measurements.
        masked: Fraction of the tokens that are masked, in pre-training.
        positions: Positions at which the vocabulary head runs, in pre-training.
        quantized: Whether every layer has fake quantization.
    """

    config: str
    teacher: str | None
    kind: Kind | None
    train: Train
    length: int
    longest: int
    masked: float = 0.15
    positions: Positions = "masked"
    quantized: bool = False


@dataclass(frozen=True)
class Seconds:
    """Durations of one step: the model's own passes, the teacher's forward pass, the update."""

    own: float
    teacher: float
    update: float


class _TimedTeacher(Teacher):
    """A teacher that accumulates the time of its forward passes."""

    seconds = 0.0

    def __call__(self, function: Callable[[Any], Any]) -> Any:
        start = now()
        logits = super().__call__(function)
        self.seconds += now() - start
        return logits


class SyntheticStep:
    """A model of `layers` layers with the loss, optimizer and pattern lock of a stage."""

    def __init__(self, shape: StepShape, layers: int) -> None:
        self._shape, self.length = shape, shape.length
        self._device = device()
        self._words = stated(json.loads(shape.config), "vocab_size")
        model: Any = _built(shape.config, shape, layers)
        self._teacher = None
        if shape.teacher is not None:
            teacher = _built(shape.teacher, shape, layers)
            self._teacher = _TimedTeacher(teacher, self._device, teacher_bf16(shape.train))
        if shape.quantized:
            model = _quantized(model, model_inputs(self._batch(1, shape.length, "cpu")))
        self._model = model.to(self._device).train()
        self._loss = self._loss_of()
        kind, settings = optimizer_class(shape.train)
        self._optimizer = kind(self._model.parameters(), **settings)
        # Dense models train without the lock; it takes about 1 % of a step.
        matrices = prunable_matrices(self._model)
        self._lock = PatternLock(SparsityMask.from_zeros({name: m.weight for name, m in matrices.items()}))
        self._lock.attach(matrices)
        self.parameters = _size(self._model)
        self.teacher_parameters = _size(self._teacher.model) if self._teacher else 0

    def step(self, count: int) -> Seconds:
        """Trains on one batch of `count` examples and returns the durations."""
        batch = self._batch(count, self._shape.length, self._device)
        if self._teacher:
            self._teacher.seconds = 0.0
        train, model = self._shape.train, self._model
        start = now()
        with (
            compiled(model if train.compile else None),
            recomputed(model if train.recompute else None),
            dropout(model, train.dropout),
        ):
            self._forward(batch).backward()
        passed = now()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._shape.train.max_grad_norm)
        self._optimizer.step()
        self._lock.after_optimizer_step()
        self._optimizer.zero_grad()
        teacher = self._teacher.seconds if self._teacher else 0.0
        return Seconds(passed - start - teacher, teacher, now() - passed)

    def forward(self, count: int) -> float:
        """Returns the seconds of a forward pass of `count` examples in evaluation, in FP32."""
        inputs = model_inputs(self._batch(count, self._shape.length, self._device))
        self._model.eval()
        with torch.inference_mode():
            start = now()
            if self._shape.kind is None:
                self._model.base_model(**inputs)
            else:
                task_logits(self._shape.kind, self._model, inputs)
            seconds = now() - start
        self._model.train()
        return seconds

    def kept_bytes(self, count: int) -> int:
        """Returns the bytes, besides weights, of a step of `count` examples of maximum length."""
        own = {p.untyped_storage().data_ptr() for p in self._model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        batch = self._batch(count, self._shape.longest, self._device)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            dropout(self._model, self._shape.train.dropout),
        ):
            loss = self._forward(batch)
        del loss  # no storage was freed before this point, so no address was reused
        criterion: Criterion = getattr(self._shape.train, "criterion", Criterion())
        layers_alone = criterion.layers and criterion.logits is None and not criterion.layers.add_origin_loss
        if self._shape.kind or layers_alone:
            return sum(kept.values())
        rows, kind = count * self._head_positions(self._shape.longest), self._device.type
        in_chunks = _CHUNKS_OF_LOGITS * min(rows, vocabulary_loss.rows_per_chunk(self._words, kind))
        in_losses = _TENSORS_OF_A_LOSS * min(rows, vocabulary_loss.rows_per_loss(self._words, kind))
        return sum(kept.values()) + FLOAT * self._words * (in_chunks + in_losses)

    def _head_positions(self, length: int) -> int:
        """Returns the number of tokens of a sequence at which the vocabulary head runs."""
        positions, masked = self._shape.positions, masked_count(length, self._shape.masked)
        if isinstance(positions, Sample):
            return sampled_count(length, masked, positions.sample)
        return length if positions == "all" else masked

    def _forward(self, batch: Batch) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16(self._shape.train)):
            return self._loss(self._model, batch).total

    def _loss_of(self) -> Callable[[Any, Batch], Any]:
        """Returns the stage's loss; a loss on hidden states is that of all layers of the small models."""
        shape = self._shape
        criterion: Criterion | None = getattr(shape.train, "criterion", None)
        if self._teacher is None or criterion is None:
            return MlmLoss(mlm_head) if shape.kind is None else task_loss(shape.kind)
        if criterion.layers is not None:
            pairs = zip(_layer_names(self._model), _layer_names(self._teacher.model), strict=True)
            mapped = IntermediateSettings(layer_mappings=tuple(pairs), add_origin_loss=criterion.layers.add_origin_loss)
            criterion = criterion.model_copy(update={"IntermediateLayersKnowledgeDistillationLoss": mapped})
        if shape.kind is None:
            return mlm_loss(mlm_head, self._teacher, criterion, shape.positions)
        return task_loss(shape.kind, self._teacher, criterion)

    def _batch(self, count: int, length: int, device: Any) -> Batch:
        """Returns a batch of random tokens. A task's examples end in padding, as most real batches have some."""
        shape = self._shape
        ids = torch.randint(2, self._words, (count, length))
        batch: Batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if shape.kind is None:
            masked = masked_count(length, shape.masked)
            batch["labels"] = torch.full_like(ids, -100)
            batch["labels"][:, 1 : 1 + masked] = ids[:, 1 : 1 + masked]
            if isinstance(shape.positions, Sample):
                batch[KD_POSITIONS] = torch.zeros_like(ids, dtype=torch.bool)
                batch[KD_POSITIONS][:, 1 : 1 + self._head_positions(length)] = True
            items = float(count * masked)
        else:
            batch["attention_mask"][:, -1] = 0
            batch |= HEADS[shape.kind].synthetic_labels(count, length)
            items = float(count)
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        return moved | {"items": items, "kd_items": float(ids.numel()), "examples": float(count)}


def _built(config: str, shape: StepShape, layers: int) -> nn.Module:
    """Returns a model with random weights and the stage's head."""
    values = {k: v for k, v in json.loads(config).items() if k not in _NOT_SHAPE}
    try:
        made = AutoConfig.for_model(values.pop("model_type"), **values)
        made.num_hidden_layers = layers
        head: Any = AutoModelForMaskedLM
        if shape.kind is not None:
            head, made.num_labels = HEADS[shape.kind].auto_class, HEADS[shape.kind].width(("0", "1"))
        model: nn.Module = head.from_config(made)
    except Exception as error:  # transformers raises many unrelated types for impossible configs
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = f"transformers can build no model from this config ({reason})"
        raise UserError(what, where="model.source", instead="e.g. BERT") from None
    return model


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _quantized(model: nn.Module, inputs: Batch) -> nn.Module:
    from toolkit.quantization import nncf

    with contextlib.redirect_stdout(io.StringIO()):  # NNCF's progress bars
        made: nn.Module = nncf.quantize(model.eval(), [inputs], Quantization())
    return made


def _layer_names(model: nn.Module) -> list[str]:
    """Returns the names of all layers in the first `nn.ModuleList`."""
    stack = next(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    return [f"{stack}.{number}" for number in range(len(model.get_submodule(stack)))]  # type: ignore[arg-type]


def now() -> float:
    """Returns a clock in seconds, after synchronizing with the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
