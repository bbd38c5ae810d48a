"""The losses: labels, and the teacher's distribution (paper, section 3).

Every loss is a sum over the items of a forward pass divided by the number of items of the whole optimizer step, so
that gradients do not depend on how a step is cut into forward passes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.recipe import KDLossSettings

Batch = dict[str, Any]


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


class Teacher:
    """A frozen model. A plain object, not a module: it can never become a child of the student."""

    def __init__(self, model: nn.Module, device: torch.device | None = None) -> None:
        self.model = model.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, function: Callable[[nn.Module], Tensor]) -> Tensor:
        """`function` of the teacher's model, without gradients."""
        return function(self.model)


def inputs_of(batch: Batch) -> Batch:
    """The tensors that go into a model's forward pass: no labels, no counts."""
    return {k: v for k, v in batch.items() if k not in ("labels", "items", "kd_items")}


def combine(task: Tensor | None, kd: Tensor | None, weights: tuple[float, float]) -> LossTerms:
    """The weighted sum; a term of weight 0 is not part of the graph."""
    parts = [w * t for w, t in zip(weights, (task, kd), strict=True) if t is not None and w > 0]
    total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return LossTerms(total, None if task is None else task.detach(), None if kd is None else kd.detach())


class MlmLoss:
    """Masked-language-model loss, with or without a teacher.

    Hidden states are gathered first: the vocabulary head, by far the largest product of a small model, runs only at
    the positions that carry a loss.

    Args:
        head: model -> its vocabulary head, hidden states [n, h] -> logits [n, V] (`models.mlm_head`).
        teacher: A frozen masked language model, or None.
        settings: Weights and temperature.
        positions: `masked`, or `all` attended ones; the label loss is always at the masked ones.
    """

    def __init__(
        self,
        head: Callable[[Any], Callable[[Tensor], Tensor]],
        teacher: Teacher | None = None,
        settings: KDLossSettings | None = None,
        positions: str = "masked",
    ) -> None:
        self._head, self._teacher, self._settings, self._positions = head, teacher, settings, positions

    def __call__(self, model: Any, batch: Batch) -> LossTerms:
        labels = batch["labels"]
        masked = labels != -100
        chosen = masked if self._positions == "masked" else batch["attention_mask"].bool()
        logits = self._logits(model, batch, chosen)
        targets = labels[chosen]
        task = F.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum") / batch["items"]
        if self._teacher is None or self._settings is None:
            return LossTerms(task, task.detach())
        theirs = self._teacher(lambda teacher: self._logits(teacher, batch, chosen))
        kd = kl_divergence(logits, theirs, self._settings.temperature, batch["kd_items"])
        return combine(task, kd, self._settings.loss_weights)

    def _logits(self, model: Any, batch: Batch, chosen: Tensor) -> Tensor:
        hidden = model.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        return self._head(model)(hidden[chosen])


class TaskLoss:
    """Classification loss, with or without a teacher; per example.

    Args:
        teacher: A frozen classifier, or None.
        settings: Weights and temperature.
    """

    def __init__(self, teacher: Teacher | None = None, settings: KDLossSettings | None = None) -> None:
        self._teacher, self._settings = teacher, settings

    def __call__(self, model: Any, batch: Batch) -> LossTerms:
        inputs = inputs_of(batch)
        logits = model(**inputs).logits
        task = F.cross_entropy(logits.float(), batch["labels"], reduction="sum") / batch["items"]
        if self._teacher is None or self._settings is None:
            return LossTerms(task, task.detach())
        theirs = self._teacher(lambda teacher: teacher(**inputs).logits)
        kd = kl_divergence(logits, theirs, self._settings.temperature, batch["items"])
        return combine(task, kd, self._settings.loss_weights)
