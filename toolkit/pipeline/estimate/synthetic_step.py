"""A model of a few layers with random weights, and the training steps that a stage makes of it."""

import contextlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
)

from toolkit.core.errors import UserError
from toolkit.data.batches import KD_POSITIONS, Batch, model_inputs
from toolkit.data.masking import masked_count, sampled_count
from toolkit.models.load import prunable_matrices
from toolkit.models.mlm_heads import mlm_head
from toolkit.models.task_heads import HEADS, task_logits
from toolkit.recipe import Criterion, IntermediateSettings, Kind, Positions, Quantization, Sample, Train
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.pruners import PatternLock
from toolkit.training import vocabulary_loss
from toolkit.training.distillation import MlmLoss, Teacher, mlm_loss, task_loss
from toolkit.training.hardware import bf16, device, teacher_bf16
from toolkit.training.loop import compiled, recomputed
from toolkit.training.trainer import optimizer_class

FLOAT = 4  # bytes; weights, gradients and the optimizer's state stay in FP32, also under bf16 autocast
_CHUNKS_OF_LOGITS = 2  # the model's and its teacher's
_TENSORS_OF_A_LOSS = 8  # that come and go, of a few rows of logits
# Of a `config.json`: what belongs to one checkpoint and not to the architecture.
_NOT_SHAPE = ("architectures", "id2label", "label2id", "num_labels", "dtype", "torch_dtype", "transformers_version")


@dataclass(frozen=True)
class StepShape:
    """All that a training step's cost depends on.

    Attributes:
        config: The model's `config.json`, as text.
        teacher: The teacher's; None: there is none.
        kind: Of the task; None: pre-training on masked words.
        train: Batch, precision, optimizer; with a teacher, the `criterion`.
        length: Tokens of an example when time is measured.
        longest: Tokens of an example when memory is measured.
        masked: Share of the tokens to be guessed, in pre-training.
        positions: Where the vocabulary head runs in pre-training.
        quantized: Fake quantization in every layer.
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
    """Of one step: the student's own passes, the teacher's forward pass, the update."""

    own: float
    teacher: float
    update: float


class _TimedTeacher(Teacher):
    """A teacher that says how long it was asked."""

    seconds = 0.0

    def __call__(self, function: Callable[[Any], Any]) -> Any:
        start = now()
        answer = super().__call__(function)
        self.seconds += now() - start
        return answer


class SyntheticStep:
    """A model of `layers` layers, with all that a stage trains it with."""

    def __init__(self, shape: StepShape, layers: int) -> None:
        self._shape, self.length = shape, shape.length
        self._device = device()
        self._words = int(json.loads(shape.config)["vocab_size"])
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
        # Dense models train without it; it is a hundredth of a step.
        matrices = prunable_matrices(self._model)
        self._lock = PatternLock(SparsityMask.from_zeros({name: m.weight for name, m in matrices.items()}))
        self._lock.attach(matrices)
        self.parameters = _size(self._model)
        self.of_teacher = _size(self._teacher.model) if self._teacher else 0

    def step(self, count: int) -> Seconds:
        """Trains on one batch of `count` examples."""
        batch = self._batch(count, self._shape.length, self._device)
        if self._teacher:
            self._teacher.seconds = 0.0
        train, model = self._shape.train, self._model
        start = now()
        with (
            compiled(model if train.compile else None),
            recomputed(model if train.recompute else None),
        ):
            self._forward(batch).backward()
        passed = now()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._shape.train.max_grad_norm)
        self._optimizer.step()
        self._lock.after_optimizer_step()
        self._optimizer.zero_grad()
        taught = self._teacher.seconds if self._teacher else 0.0
        return Seconds(passed - start - taught, taught, now() - passed)

    def forward(self, count: int) -> float:
        """Seconds of a forward pass in evaluation, in FP32."""
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
        """What a step of `count` of the longest examples holds besides weights; each storage counts once."""
        own = {p.untyped_storage().data_ptr() for p in self._model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        batch = self._batch(count, self._shape.longest, self._device)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self._forward(batch)
        del loss  # until here no storage was given back, so no address counted twice
        settings = getattr(self._shape.train, "criterion", Criterion()).settings
        if self._shape.kind or (isinstance(settings, IntermediateSettings) and not settings.add_origin_loss):
            return sum(kept.values())
        rows, kind = count * self._compared(self._shape.longest), self._device.type
        in_chunks = _CHUNKS_OF_LOGITS * min(rows, vocabulary_loss.rows_per_chunk(self._words, kind))
        in_losses = _TENSORS_OF_A_LOSS * min(rows, vocabulary_loss.rows_per_loss(self._words, kind))
        return sum(kept.values()) + FLOAT * self._words * (in_chunks + in_losses)

    def _compared(self, length: int) -> int:
        """At how many tokens of a sequence the vocabulary head runs."""
        positions, guessed = self._shape.positions, masked_count(length, self._shape.masked)
        if isinstance(positions, Sample):
            return sampled_count(length, guessed, positions.sample)
        return length if positions == "all" else guessed

    def _forward(self, batch: Batch) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16(self._shape.train)):
            return self._loss(self._model, batch).total

    def _loss_of(self) -> Callable[[Any, Batch], Any]:
        """The stage's own loss; where it compares layers, each of those that are there with the teacher's."""
        shape = self._shape
        criterion: Criterion | None = getattr(shape.train, "criterion", None)
        if self._teacher is None or criterion is None:
            return MlmLoss(mlm_head) if shape.kind is None else task_loss(shape.kind)
        if isinstance(criterion.settings, IntermediateSettings):
            pairs = zip(_layer_names(self._model), _layer_names(self._teacher.model), strict=True)
            cut = IntermediateSettings(layer_mappings=tuple(pairs), add_origin_loss=criterion.settings.add_origin_loss)
            criterion = Criterion(IntermediateLayersKnowledgeDistillationLoss=cut)
        if shape.kind is None:
            return mlm_loss(mlm_head, self._teacher, criterion, shape.positions)
        return task_loss(shape.kind, self._teacher, criterion)

    def _batch(self, count: int, length: int, device: Any) -> Batch:
        """Random words. The last token of a task's examples is padding, as most real batches have some."""
        shape = self._shape
        ids = torch.randint(2, self._words, (count, length))
        batch: Batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if shape.kind is None:
            guessed = masked_count(length, shape.masked)
            batch["labels"] = torch.full_like(ids, -100)
            batch["labels"][:, 1 : 1 + guessed] = ids[:, 1 : 1 + guessed]
            if isinstance(shape.positions, Sample):
                batch[KD_POSITIONS] = torch.zeros_like(ids, dtype=torch.bool)
                batch[KD_POSITIONS][:, 1 : 1 + self._compared(length)] = True
            items = float(count * guessed)
        else:
            batch["attention_mask"][:, -1] = 0
            batch |= HEADS[shape.kind].synthetic_labels(count, length)
            items = float(count)
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        return moved | {"items": items, "kd_items": float(ids.numel()), "examples": float(count)}


def _built(config: str, shape: StepShape, layers: int) -> nn.Module:
    """A model with random weights and the stage's head."""
    values = {k: v for k, v in json.loads(config).items() if k not in _NOT_SHAPE}
    try:
        made = AutoConfig.for_model(values.pop("model_type"), **values)
    except (KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"transformers does not know this architecture ({reason})", where="model.source", instead="e.g. BERT"
        ) from None
    made.num_hidden_layers = layers
    head: Any = AutoModelForMaskedLM
    if shape.kind is not None:
        head, made.num_labels = HEADS[shape.kind].auto_class, HEADS[shape.kind].width(("0", "1"))
    model: nn.Module = head.from_config(made)
    return model


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _quantized(model: nn.Module, inputs: Batch) -> nn.Module:
    from toolkit.quantization import nncf

    with contextlib.redirect_stdout(io.StringIO()):  # NNCF's progress bars
        made: nn.Module = nncf.quantize(model.eval(), [inputs], Quantization())
    return made


def _layer_names(model: nn.Module) -> list[str]:
    """Of the first stack of layers, all of them."""
    stack = next(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    return [f"{stack}.{number}" for number in range(len(model.get_submodule(stack)))]  # type: ignore[arg-type]


def now() -> float:
    """Seconds of a clock, when all that the GPU was given is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
