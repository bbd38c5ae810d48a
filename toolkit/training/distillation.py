"""The losses: labels, and the teacher's distribution (paper, section 3).

Every loss is a sum over the items of a forward pass divided by the number of items of the whole optimizer step, so
that gradients do not depend on how a step is cut into forward passes.
"""

import contextlib
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.core.errors import UserError
from toolkit.data.batches import KD_POSITIONS, TEACHER_LOGITS, Batch, model_inputs
from toolkit.models.mlm_heads import VocabularyHead
from toolkit.models.task_heads import HEADS, task_logits
from toolkit.recipe import Criterion, IntermediateSettings, KDLossSettings, Kind, Positions
from toolkit.training import vocabulary_loss


@dataclass(frozen=True)
class LossTerms:
    """`total` is what is differentiated; `task` and `kd` are its unweighted parts, detached; None when absent."""

    total: Tensor
    task: Tensor | None = None
    kd: Tensor | None = None


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float, items: float | None = None) -> Tensor:
    """T^2 * KL(teacher || student) at temperature T, summed over rows and divided by `items`.

    The factor T^2 keeps the gradient's size as T changes (Hinton et al., 2015, section 2).

    Args:
        student: Logits [n, C].
        teacher: Logits [n, C].
        temperature: T > 0.
        items: What the sum is divided by; n when absent, so that the result is the mean.
    """
    student_log = F.log_softmax(student.float() / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher.float() / temperature, dim=-1)
    total = F.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return total * temperature**2 / (len(student) if items is None else items)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float, items: float) -> Tensor:
    """T^2 * cross entropy of the student under the teacher's softmax: KL plus the teacher's entropy, a constant."""
    student_log = F.log_softmax(student.float() / temperature, dim=-1)
    theirs = F.softmax(teacher.float() / temperature, dim=-1)
    return -(theirs * student_log).sum() * temperature**2 / items


def squared_difference(student: Tensor, teacher: Tensor, temperature: float, items: float) -> Tensor:
    """Mean over the logits of a row of (student - teacher)^2; T^2 and the division of both by T cancel out."""
    return (student.float() - teacher.float()).square().mean(dim=-1).sum() / items


# INC's names of the distances from the teacher: (student, teacher, temperature, items) -> loss.
_DISTANCES: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "KL": kl_divergence,
    "CE": soft_cross_entropy,
    "MSE": squared_difference,
}

# The same for hidden features, element by element; KL compares them as softmaxes over the last dimension.
_FEATURE_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "MSE": lambda student, teacher: (student - teacher).square(),
    "L1": lambda student, teacher: (student - teacher).abs(),
    "KL": lambda student, teacher: F.kl_div(
        F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1), reduction="none", log_target=True
    ).sum(dim=-1, keepdim=True),
}


class Teacher:
    """A frozen model. A plain object, not a module: it can never become a child of the student.

    It runs without gradients, but not in inference mode: a loss keeps its logits for the backward pass.
    """

    def __init__(self, model: nn.Module, device: torch.device | None = None, bf16: bool | None = None) -> None:
        """In bfloat16 or 32 bits whatever its student runs in; None: as the student."""
        self.model = model.to(device).eval().requires_grad_(False)
        self._bf16 = bf16

    @torch.no_grad()
    def __call__(self, function: Callable[[Any], Any]) -> Any:
        """`function` of the teacher's model, without gradients."""
        kind = next(self.model.parameters()).device.type
        enabled = torch.is_autocast_enabled(kind) if self._bf16 is None else self._bf16
        with torch.autocast(kind, torch.bfloat16, enabled=enabled):
            return function(self.model)


def combine(task: Tensor | None, kd: Tensor | None, weights: tuple[float, float]) -> LossTerms:
    """The weighted sum; a term of weight 0 is not part of the graph."""
    parts = [w * t for w, t in zip(weights, (task, kd), strict=True) if t is not None and w > 0]
    total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return LossTerms(total, None if task is None else task.detach(), None if kd is None else kd.detach())


class MlmLoss:
    """Masked-language-model loss, with or without a teacher; of pairs also that of next-sentence prediction.

    Hidden states are gathered first: the vocabulary head, by far the largest product of a small model, runs only at
    the positions that carry a loss, and on a few of them at a time (`toolkit.training.vocabulary_loss`).

    Args:
        head: model -> its vocabulary head, which must not be run as one (`models.mlm_head`).
        teacher: A frozen masked language model, or None.
        settings: Weights and temperature.
        positions: Where the teacher is compared; the label loss is always at the masked ones. Positions that are
            drawn by chance come with the batch (`masking.KD_POSITIONS`).
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
            return self._of_labels(model, batch, masked)
        weights, temperature = self._settings.loss_weights, self._settings.temperature
        distance = _DISTANCES[self._settings.loss_types[1]]
        # The masked ones are among them, whichever they are.
        chosen = batch["attention_mask"].bool() if self._positions == "all" else batch.get(KD_POSITIONS, masked)
        # The teacher first: what it needs on the way is gone before the student's layers keep what they make.
        where = chosen.flatten().nonzero().squeeze(1)
        theirs, their_following = self._teacher(lambda teacher: self._to_decode(teacher, batch, where))
        decode = self._teacher(lambda teacher: vocabulary_loss.decoder_of(self._head(teacher).decoder))
        ours, following = self._to_decode(model, batch, where)
        targets, guessed = batch["labels"].flatten()[where], masked.flatten()[where]
        some = chosen is not masked  # else all of them are guessed

        def terms(words: Tensor, their_words: Tensor | None, part: slice) -> tuple[Tensor, ...]:
            assert their_words is not None
            here = guessed[part] if some else slice(None)
            task = F.cross_entropy(words[here].float(), targets[part][here], reduction="sum") / batch["items"]
            return task, distance(words, their_words, temperature, batch["kd_items"])

        decoder = self._head(model).decoder
        total, found = vocabulary_loss.chunked_loss(terms, ours, decoder, weights, lambda part: decode(theirs[part]))
        task, kd = found
        if following is None:
            return LossTerms(total, task, kd)
        task_next = self._next_loss(following, batch)
        kd_next = distance(following, their_following, temperature, batch["examples"])
        both = combine(task_next, kd_next, weights)
        return LossTerms(total + both.total, task + task_next.detach(), kd + kd_next.detach())

    def logits(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Of the vocabulary at the masked positions [m, V]; of pairs those of next-sentence prediction [n, 2] too.

        Without a graph.
        """
        where = (batch["labels"] != -100).flatten().nonzero().squeeze(1)
        with torch.no_grad():
            states, following = self._to_decode(model, batch, where)
            return vocabulary_loss.decoder_of(self._head(model).decoder)(states), following

    def _of_labels(self, model: Any, batch: Batch, masked: Tensor) -> LossTerms:
        where = masked.flatten().nonzero().squeeze(1)
        states, following = self._to_decode(model, batch, where)
        targets = batch["labels"].flatten()[where]

        def terms(words: Tensor, _: Tensor | None, part: slice) -> tuple[Tensor, ...]:
            return (F.cross_entropy(words.float(), targets[part], reduction="sum") / batch["items"],)

        total, _ = vocabulary_loss.chunked_loss(terms, states, self._head(model).decoder, (1.0,))
        if following is not None:
            total = total + self._next_loss(following, batch)
        return LossTerms(total, total.detach())

    def _to_decode(self, model: Any, batch: Batch, where: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the decoder takes at some positions [m, e]; of pairs next-sentence prediction's logits too.

        Positions are numbers [m] in the flattened batch, not a mask: to count those, each use would wait for the GPU.
        """
        embeddings = model.get_input_embeddings()
        # Where the decoder shares them, their gradient is dense already. Rows that were looked up are added to it as
        # they are, not as a second tensor of that size. (What torch.compile makes of it would be dense again.)
        embeddings.sparse = embeddings.weight is self._head(model).decoder.weight and not _is_compiled(model)
        output = model.base_model(**model_inputs(batch))
        states = self._head(model).transform(output[0].flatten(0, 1)[where])
        if "next_sentence_label" not in batch or self._next_head is None:
            return states, None
        return states, self._next_head(model)(output.pooler_output)

    @staticmethod
    def _next_loss(following: Tensor, batch: Batch) -> Tensor:
        right = batch["next_sentence_label"]
        return F.cross_entropy(following.float(), right, reduction="sum") / batch["examples"]


def _is_compiled(model: Any) -> bool:
    return model.base_model._compiled_call_impl is not None


class TaskLoss:
    """A task's loss, with or without a teacher; per example.

    Each distribution of an example is compared with the teacher's: one of a classifier, start and end of an answer
    (their mean). A number has no distribution: in regression the distance is always the squared difference.

    Args:
        kind: The task's kind.
        teacher: A frozen model of the task; not run for batches that carry its logits (`batches.TEACHER_LOGITS`).
        settings: Weights and temperature; None: labels alone.
    """

    def __init__(self, kind: Kind, teacher: Teacher | None = None, settings: KDLossSettings | None = None) -> None:
        self._kind, self._teacher, self._settings = kind, teacher, settings

    def __call__(self, model: Any, batch: Batch) -> LossTerms:
        inputs = model_inputs(batch)
        head, logits = HEADS[self._kind], task_logits(self._kind, model, inputs)
        task = head.label_loss(logits, batch) / batch["items"]
        if self._settings is None:
            return LossTerms(task, task.detach())
        if TEACHER_LOGITS in batch:
            theirs = batch[TEACHER_LOGITS]
        else:
            assert self._teacher is not None, "a batch has no cached teacher logits and no teacher model was given"
            theirs = self._teacher(lambda teacher: task_logits(self._kind, teacher, inputs))
        distance = _DISTANCES[head.distance or self._settings.loss_types[1]]
        mine, target = (x.reshape(-1, x.shape[-1]) for x in (logits, theirs))
        kd = distance(mine, target, self._settings.temperature, head.distributions * batch["items"])
        return combine(task, kd, self._settings.loss_weights)


class HiddenStateLoss:
    """The teacher's hidden features, layer by layer: sum of weight * distance, over attended tokens; per example.

    Args:
        teacher: A frozen model.
        settings: Which layers are compared, and how.
        origin: The loss with the labels, added where the settings ask for it.
    """

    def __init__(
        self, teacher: Teacher, settings: IntermediateSettings, origin: Callable[[Any, Batch], LossTerms]
    ) -> None:
        self._teacher, self._settings, self._origin = teacher, settings, origin

    def __call__(self, model: Any, batch: Batch) -> LossTerms:
        pairs = self._settings.pairs()
        inputs = model_inputs(batch)
        task = None
        with _features(model, {layer for layer, *_ in pairs}, "student") as ours:
            if self._settings.add_origin_loss:
                task = self._origin(model, batch).total
            else:
                model.base_model(**inputs)
        with _features(self._teacher.model, {layer for _, _, layer, *_ in pairs}, "teacher") as theirs:
            self._teacher(lambda teacher: teacher.base_model(**inputs))
        kd = torch.zeros((), device=batch["input_ids"].device)
        for layer, output, other, other_output, kind, weight in pairs:
            mine, target = _picked(ours[layer], layer, output), _picked(theirs[other], other, other_output)
            if mine.shape != target.shape:
                raise UserError(
                    f"{layer} gives {tuple(mine.shape)}, the teacher's {other} gives {tuple(target.shape)}",
                    where="IntermediateLayersKnowledgeDistillationLoss.layer_mappings",
                    instead="layers of the same width",
                )
            kd = kd + weight * _per_example(_FEATURE_DISTANCES[kind](mine.float(), target.float()), batch)
        kd = kd / batch["examples"]
        return LossTerms(kd if task is None else kd + task, None if task is None else task.detach(), kd.detach())


def mlm_loss(
    head: Callable[[Any], VocabularyHead],
    teacher: Teacher,
    criterion: Criterion,
    positions: Positions,
    next_head: Callable[[Any], Callable[[Tensor], Tensor]] | None = None,
) -> Callable[[Any, Batch], LossTerms]:
    """The loss of pre-training with a teacher that a recipe's `criterion` asks for."""
    settings = criterion.settings
    if isinstance(settings, IntermediateSettings):
        return HiddenStateLoss(teacher, settings, MlmLoss(head, next_head=next_head))
    return MlmLoss(head, teacher, settings, positions, next_head)


def task_loss(
    kind: Kind, teacher: Teacher | None = None, criterion: Criterion | None = None
) -> Callable[[Any, Batch], LossTerms]:
    """The loss of a task, with the teacher and the loss that a recipe's `criterion` asks for, or with labels alone."""
    if teacher is None or criterion is None:
        return TaskLoss(kind)
    settings = criterion.settings
    if isinstance(settings, IntermediateSettings):
        return HiddenStateLoss(teacher, settings, TaskLoss(kind))
    return TaskLoss(kind, teacher, settings)


@contextlib.contextmanager
def _features(model: Any, layers: set[str], whose: str) -> Iterator[dict[str, Any]]:
    """Layer name -> what the layer gave in the last forward pass inside the `with`."""
    modules, found = dict(model.named_modules()), {}
    unknown = sorted(layers - modules.keys())
    if unknown:
        near = difflib.get_close_matches(unknown[0], modules, n=1)
        raise UserError(
            f"the {whose} has no layer {unknown[0]!r}",
            where="IntermediateLayersKnowledgeDistillationLoss.layer_mappings",
            instead=near[0] if near else f"a module's name such as {list(modules)[-1]!r}",
        )

    def keep(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            found[name] = output

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _picked(output: Any, layer: str, index: int) -> Tensor:
    """Output number `index` of a layer, which gave one tensor or several."""
    several = list(output.values()) if isinstance(output, dict) else output
    outputs = [several] if isinstance(several, Tensor) else list(several)
    if index >= len(outputs):
        raise UserError(
            f"{layer} has {len(outputs)} output(s), there is no number {index}",
            where="IntermediateLayersKnowledgeDistillationLoss.layer_mappings",
            instead=f"at most {len(outputs) - 1}",
        )
    picked: Tensor = outputs[index]
    return picked


def _per_example(distance: Tensor, batch: Batch) -> Tensor:
    """Sum over the examples of the mean over an example's features, at attended tokens where there are tokens."""
    mask = batch["attention_mask"]
    if distance.dim() != 3 or distance.shape[:2] != mask.shape:
        return distance.flatten(1).mean(dim=1).sum()
    tokens = distance.mean(dim=-1) * mask
    return (tokens.sum(dim=1) / mask.sum(dim=1)).sum()
