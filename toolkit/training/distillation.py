"""Label and KD losses, and the frozen teacher (paper, section 3).

Every loss is a sum over the items of a forward pass, divided by the number of items of the entire optimizer step.
Gradients therefore do not depend on how a step is split into forward passes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.data.batches import KD_POSITIONS, TEACHER_LOGITS, Batch, model_inputs
from toolkit.models.mlm_heads import VocabularyHead
from toolkit.models.task_heads import HEADS, task_logits
from toolkit.recipe import Criterion, IntermediateSettings, KDLossSettings, Kind, Positions
from toolkit.training import vocabulary_loss
from toolkit.training.layer_outputs import layer_pairs, paired_outputs, recorded_outputs


@dataclass(frozen=True)
class LossTerms:
    """Value of a loss.

    Attributes:
        total: The weighted sum, which is differentiated.
        task: Unweighted label loss, detached; None if absent.
        kd: Unweighted KD loss, detached: of the logits, or of hidden states if logits are not compared; None if absent.
        layers: Loss of hidden states beside that of logits, with its weights, detached; None unless both are compared.
    """

    total: Tensor
    task: Tensor | None = None
    kd: Tensor | None = None
    layers: Tensor | None = None

    def named(self) -> list[tuple[str, Tensor | None]]:
        """Returns the terms with their names in the training curve."""
        return [("loss", self.total), ("task_loss", self.task), ("kd_loss", self.kd), ("layers_loss", self.layers)]


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float, items: float | None = None) -> Tensor:
    """T^2 * KL(teacher || student) at temperature T, summed over rows and divided by `items`.

    The factor T^2 keeps the magnitude of the gradient independent of T (Hinton et al., 2015, section 2).

    Args:
        student: Logits [n, C].
        teacher: Logits [n, C].
        temperature: T > 0.
        items: Divisor of the sum; None: n, for the mean.
    """
    student_log = F.log_softmax(student.float() / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher.float() / temperature, dim=-1)
    total = F.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return total * temperature**2 / (len(student) if items is None else items)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float, items: float) -> Tensor:
    """T^2 * cross entropy of the student under the teacher's softmax: KL plus the teacher's entropy, a constant."""
    student_log = F.log_softmax(student.float() / temperature, dim=-1)
    target = F.softmax(teacher.float() / temperature, dim=-1)
    return -(target * student_log).sum() * temperature**2 / items


def squared_difference(student: Tensor, teacher: Tensor, temperature: float, items: float) -> Tensor:
    """Mean over the logits of a row of (student - teacher)^2; T^2 and the division of both by T cancel out."""
    return (student.float() - teacher.float()).square().mean(dim=-1).sum() / items


# Distances from the teacher by INC's names: (student, teacher, temperature, items) -> loss.
_DISTANCES: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "KL": kl_divergence,
    "CE": soft_cross_entropy,
    "MSE": squared_difference,
}

# Distances of hidden features, per element; KL compares their softmaxes over the last dimension. SquareHead is in
# `feature_distance`.
_FEATURE_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "MSE": lambda student, teacher: (student - teacher).square(),
    "L1": lambda student, teacher: (student - teacher).abs(),
    "KL": lambda student, teacher: F.kl_div(
        F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1), reduction="none", log_target=True
    ).sum(dim=-1, keepdim=True),
}


class Teacher:
    """A frozen teacher model. A plain object, not a module, so that it cannot become a submodule of the student.

    It runs without gradients, but not in inference mode: the loss saves its logits for the backward pass.

    Args:
        model: The model; it is modified in place.
        device: Device to move the model to; None: its current one.
        bf16: Whether it runs under bfloat16 autocast; None: as the student does.
    """

    def __init__(self, model: nn.Module, device: torch.device | None = None, bf16: bool | None = None) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self._bf16 = bf16

    @torch.no_grad()
    def __call__(self, function: Callable[[Any], Any]) -> Any:
        """Returns `function(model)`, computed without gradients."""
        kind = next(self.model.parameters()).device.type
        enabled = torch.is_autocast_enabled(kind) if self._bf16 is None else self._bf16
        with torch.autocast(kind, torch.bfloat16, enabled=enabled):
            return function(self.model)


def combine(task: Tensor | None, kd: Tensor | None, weights: tuple[float, float]) -> LossTerms:
    """Returns the weighted sum; a term of weight 0 is not part of the graph."""
    parts = [w * t for w, t in zip(weights, (task, kd), strict=True) if t is not None and w > 0]
    total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return LossTerms(total, None if task is None else task.detach(), None if kd is None else kd.detach())


class MlmLoss:
    """Masked-LM loss, with or without a teacher; for segment pairs also the loss of next-sentence prediction.

    Hidden states are gathered first: the vocabulary head, by far the largest product of a small model, runs only at
    the positions that contribute to the loss, and in chunks (`toolkit.training.vocabulary_loss`).

    Args:
        head: model -> its vocabulary head, of which only the parts are run (`models.mlm_heads`).
        teacher: A frozen masked language model, or None.
        settings: Loss weights and temperature.
        positions: Where student and teacher are compared; the label loss is always taken at the masked positions.
            Sampled positions come with the batch (`batches.KD_POSITIONS`).
        next_head: model -> its next-sentence head, pooled output [n, h] -> logits [n, 2]; used for batches of pairs.
    """

    def __init__(
        self,
        head: Callable[[Any], VocabularyHead],
        teacher: Teacher | None = None,
        settings: KDLossSettings | None = None,
        positions: Positions = "masked",
        next_head: Callable[[Any], Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        self._head, self._teacher, self._settings, self._positions = head, teacher, settings, positions
        self._next_head = next_head

    def __call__(self, model: Any, batch: Batch) -> LossTerms:
        masked = batch["labels"] != -100
        if self._teacher is None or self._settings is None:
            return self._label_loss(model, batch, masked)
        weights, temperature = self._settings.loss_weights, self._settings.temperature
        distance = _DISTANCES[self._settings.loss_types[1]]
        # The chosen positions always include the masked ones.
        chosen = batch["attention_mask"].bool() if self._positions == "all" else batch.get(KD_POSITIONS, masked)
        # The teacher runs first: its temporary memory is free before the student's layers save their activations.
        where = chosen.flatten().nonzero().squeeze(1)
        teacher_states, teacher_next = self._teacher(lambda teacher: self._decoder_inputs(teacher, batch, where))
        decode = self._teacher(lambda teacher: vocabulary_loss.decoder_of(self._head(teacher).decoder))
        states, next_logits = self._decoder_inputs(model, batch, where)
        targets, is_masked = batch["labels"].flatten()[where], masked.flatten()[where]
        some = chosen is not masked  # else all chosen positions are masked

        def terms(logits: Tensor, teacher_logits: Tensor | None, part: slice) -> tuple[Tensor, ...]:
            assert teacher_logits is not None
            here = is_masked[part] if some else slice(None)
            task = F.cross_entropy(logits[here].float(), targets[part][here], reduction="sum") / batch["items"]
            return task, distance(logits, teacher_logits, temperature, batch["kd_items"])

        decoder = self._head(model).decoder
        total, (task, kd) = vocabulary_loss.chunked_loss(
            terms, states, decoder, weights, lambda part: decode(teacher_states[part])
        )
        if next_logits is None:
            return LossTerms(total, task, kd)
        task_next = self._next_loss(next_logits, batch)
        kd_next = distance(next_logits, teacher_next, temperature, batch["examples"])
        both = combine(task_next, kd_next, weights)
        return LossTerms(total + both.total, task + task_next.detach(), kd + kd_next.detach())

    def logits(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Returns vocabulary logits [m, V] at the masked positions, and for pairs next-sentence logits [n, 2].

        Without a graph.
        """
        where = (batch["labels"] != -100).flatten().nonzero().squeeze(1)
        with torch.no_grad():
            states, next_logits = self._decoder_inputs(model, batch, where)
            return vocabulary_loss.decoder_of(self._head(model).decoder)(states), next_logits

    def _label_loss(self, model: Any, batch: Batch, masked: Tensor) -> LossTerms:
        where = masked.flatten().nonzero().squeeze(1)
        states, next_logits = self._decoder_inputs(model, batch, where)
        targets = batch["labels"].flatten()[where]

        def terms(logits: Tensor, _: Tensor | None, part: slice) -> tuple[Tensor, ...]:
            return (F.cross_entropy(logits.float(), targets[part], reduction="sum") / batch["items"],)

        total, _ = vocabulary_loss.chunked_loss(terms, states, self._head(model).decoder, (1.0,))
        if next_logits is not None:
            total = total + self._next_loss(next_logits, batch)
        return LossTerms(total, total.detach())

    def _decoder_inputs(self, model: Any, batch: Batch, where: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the decoder's inputs [m, e] at some positions, and for pairs the next-sentence logits [n, 2].

        Positions are indices [m] into the flattened batch, not a mask: each use of a mask would wait for the GPU.
        """
        embeddings = model.get_input_embeddings()
        # With tied weights the decoder's gradient is dense already. A sparse gradient of the lookup is added to it row
        # by row, without a second dense tensor. (Under torch.compile the lookup's gradient is dense anyway.)
        embeddings.sparse = embeddings.weight is self._head(model).decoder.weight and not _is_compiled(model)
        output = model.base_model(**model_inputs(batch))
        states = self._head(model).transform(output[0].flatten(0, 1)[where])
        if "next_sentence_label" not in batch or self._next_head is None:
            return states, None
        return states, self._next_head(model)(output.pooler_output)

    @staticmethod
    def _next_loss(logits: Tensor, batch: Batch) -> Tensor:
        labels = batch["next_sentence_label"]
        return F.cross_entropy(logits.float(), labels, reduction="sum") / batch["examples"]


def _is_compiled(model: Any) -> bool:
    return model.base_model._compiled_call_impl is not None


class TaskLoss:
    """Loss of a task per example, with or without a teacher.

    The distance from the teacher is averaged over the distributions of an example: one in classification, start and end
    in question answering, one for each class (yes or no) in multi-label classification. In token classification it is,
    as the label loss, a mean over the tagged tokens of a step. Regression has no distribution; there the distance is
    always the squared difference. Embeddings and rerankers have distances of their own.

    Args:
        kind: The task's kind.
        teacher: A frozen model of the task; not run for batches that carry its logits (`batches.TEACHER_LOGITS`).
        settings: Loss weights and temperature; None: label loss only.
    """

    def __init__(self, kind: Kind, teacher: Teacher | None = None, settings: KDLossSettings | None = None) -> None:
        self._kind, self._teacher, self._settings = kind, teacher, settings

    def __call__(self, model: Any, batch: Batch) -> LossTerms:
        inputs = model_inputs(batch)
        head, logits = HEADS[self._kind], task_logits(self._kind, model, inputs)
        labelled = head.label_loss(logits, batch)
        task = None if labelled is None else labelled / batch["items"]
        if self._settings is None:
            assert task is not None, "a task without labels is trained with a teacher"
            return LossTerms(task, task.detach())
        if TEACHER_LOGITS in batch:
            teacher_logits = batch[TEACHER_LOGITS]
        else:
            assert self._teacher is not None, "the batch has no cached teacher logits and no teacher model was given"
            teacher_logits = self._teacher(lambda teacher: task_logits(self._kind, teacher, inputs))
        if head.teacher_loss is not None:
            kd = head.teacher_loss(logits, teacher_logits, batch) / batch["examples"]
            return combine(task, kd, self._settings.loss_weights)
        kind, distributions = head.distance or self._settings.loss_types[1], head.distributions
        student, target = head.compared(logits, batch), head.compared(teacher_logits, batch)
        if head.decisions and kind != "MSE":  # softmax of (0, z) is (1 - sigmoid(z), sigmoid(z))
            distributions = student.shape[-1]
            student, target = (F.pad(x.reshape(-1, 1), (1, 0)) for x in (student, target))
        kd = _DISTANCES[kind](student, target, self._settings.temperature, distributions * batch["items"])
        return combine(task, kd, self._settings.loss_weights)


class HiddenStateLoss:
    """Weighted sum of distances between hidden features of student and teacher, over attended tokens; per example.

    Args:
        teacher: A frozen model.
        settings: The pairs of layers that are compared, with distances and weights.
        beside: A loss that is added: that of the labels, or that of the logits against the same teacher. Hidden states
            are recorded during its forward passes, so that neither model runs twice. None: hidden states alone.
    """

    def __init__(
        self,
        teacher: Teacher,
        settings: IntermediateSettings,
        beside: Callable[[Any, Batch], LossTerms] | None = None,
    ) -> None:
        self._teacher, self._settings, self._beside = teacher, settings, beside

    def __call__(self, model: Any, batch: Batch) -> LossTerms:
        pairs = layer_pairs(self._settings, model, self._teacher.model)
        inputs, terms = model_inputs(batch), None
        with (
            recorded_outputs(model, {layer for layer, *_ in pairs}, "student") as student_outputs,
            recorded_outputs(self._teacher.model, {layer for _, _, layer, *_ in pairs}, "teacher") as teacher_outputs,
        ):
            if self._beside is not None:
                terms = self._beside(model, batch)
            else:
                model.base_model(**inputs)
            if not teacher_outputs:  # the loss beside this one has not run the teacher
                self._teacher(lambda teacher: teacher.base_model(**inputs))
        layers = torch.zeros((), device=batch["input_ids"].device)
        for student, target, kind, weight in paired_outputs(pairs, student_outputs, teacher_outputs):
            layers = layers + weight * feature_distance(kind, student.float(), target.float(), batch).sum()
        layers = layers / batch["examples"]
        if terms is None:
            return LossTerms(layers, None, layers.detach())
        if terms.kd is None:
            return LossTerms(layers + terms.total, terms.task, layers.detach())
        return LossTerms(layers + terms.total, terms.task, terms.kd, layers.detach())


def feature_distance(kind: str, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """Distances of hidden features from the teacher's, one per example [n].

    SquareHead (Kurtic et al., 2023, arXiv 2310.06927) is ||student - teacher||^2 / ||teacher||^2, so that all layers
    have the same scale. The paper divides the sums over a batch. Here they are those of an example, over its attended
    tokens and its features: the loss is then a mean over examples, which does not depend on how they are divided into
    batches and processes, and a short text counts as much as a long one.

    Args:
        kind: The distance's name in INC, or SquareHead.
        student: Features [n, length, h] or [n, h].
        teacher: Features of the same shape.
        batch: The batch, with its `attention_mask` [n, length].
    """
    if kind != "SquareHead":
        return _per_example(_FEATURE_DISTANCES[kind](student, teacher), batch)
    size = _per_example(teacher.square(), batch)
    return _per_example((student - teacher).square(), batch) / size.clamp_min(torch.finfo(size.dtype).tiny)


def mlm_loss(
    head: Callable[[Any], VocabularyHead],
    teacher: Teacher,
    criterion: Criterion,
    positions: Positions,
    next_head: Callable[[Any], Callable[[Tensor], Tensor]] | None = None,
) -> Callable[[Any, Batch], LossTerms]:
    """Returns the loss of pre-training with a teacher, as specified by a recipe's `criterion`."""
    labels = MlmLoss(head, next_head=next_head)
    logits = MlmLoss(head, teacher, criterion.logits, positions, next_head) if criterion.logits else None
    return _added(teacher, criterion, labels, logits)


def task_loss(
    kind: Kind, teacher: Teacher | None = None, criterion: Criterion | None = None
) -> Callable[[Any, Batch], LossTerms]:
    """Returns the loss of a task: with a teacher as specified by a recipe's `criterion`, or of the labels alone."""
    if teacher is None or criterion is None:
        return TaskLoss(kind)
    logits = TaskLoss(kind, teacher, criterion.logits) if criterion.logits else None
    return _added(teacher, criterion, TaskLoss(kind), logits)


def _added(
    teacher: Teacher,
    criterion: Criterion,
    labels: Callable[[Any, Batch], LossTerms],
    logits: Callable[[Any, Batch], LossTerms] | None,
) -> Callable[[Any, Batch], LossTerms]:
    """Returns the loss on logits, the one on hidden states, or their sum, whichever the criterion has."""
    if criterion.layers is None:
        assert logits is not None, "a criterion has a loss"
        return logits
    return HiddenStateLoss(teacher, criterion.layers, labels if criterion.layers.add_origin_loss else logits)


def _per_example(values: Tensor, batch: Batch) -> Tensor:
    """Mean over the features of each example [n], at attended tokens if there are tokens."""
    mask = batch["attention_mask"]
    if values.dim() != 3 or values.shape[:2] != mask.shape:
        return values.flatten(1).mean(dim=1)
    tokens = values.mean(dim=-1) * mask
    return tokens.sum(dim=1) / mask.sum(dim=1)
