"""The recipe's `train` section, the same for every training stage: length, batches, optimizer, loss."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_validator

from toolkit.recipe.fields import Count, Fraction, Number, Section, wrong

Precision = Literal["auto", "fp32", "bf16"]


class AdamWSettings(Section):
    """The AdamW optimizer."""

    learning_rate: Number = Field(5e-5, gt=0, description="peak learning rate, reached after warm-up")
    weight_decay: Number = Field(0.01, ge=0, description="decoupled weight decay; biases and LayerNorm have none")
    beta_1: Fraction = Field(0.9, description="decay of the running mean of the gradient")
    beta_2: Fraction = Field(0.999, description="decay of the running mean of the squared gradient")
    epsilon: Number = Field(1e-8, gt=0, description="added to the denominator against division by zero")


def _named(default: str) -> Callable[[Any], Any]:
    """A section that names one of several things names this one when it is empty."""

    def fill(values: Any) -> Any:
        said = isinstance(values, dict) and any(value is not None for value in values.values())
        return values if said or not isinstance(values, dict) else {default: {}}

    return fill


class AdamSettings(AdamWSettings):
    """The Adam optimizer: weight decay is part of the gradient."""

    weight_decay: Number = Field(0.0, ge=0, description="L2 penalty; biases and LayerNorm have none")


class SGDSettings(Section):
    """Stochastic gradient descent."""

    learning_rate: Number = Field(gt=0, description="peak learning rate, reached after warm-up")
    momentum: Fraction = Field(0.0, description="share of the last step's direction that is kept")
    nesterov: bool = Field(False, description="look ahead along the momentum")
    weight_decay: Number = Field(0.0, ge=0, description="L2 penalty; biases and LayerNorm have none")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "SGDSettings":
        if self.nesterov and not self.momentum:
            raise wrong("needs a momentum", "nesterov", instead="momentum: 0.9")
        return self


class Optimizer(Section):
    """INC's form: the optimizer's name, then its settings; one optimizer, AdamW when nothing is said."""

    AdamW: AdamWSettings | None = Field(None, json_schema_extra={"default": {}})
    Adam: AdamSettings | None = None
    SGD: SGDSettings | None = None

    _fill = model_validator(mode="before")(_named("AdamW"))

    @model_validator(mode="after")
    def _one(self) -> "Optimizer":
        if [self.AdamW, self.Adam, self.SGD].count(None) < 2:
            raise wrong("takes one optimizer", instead="AdamW: {learning_rate: 5e-5}")
        return self

    @property
    def settings(self) -> "AdamWSettings | SGDSettings":
        """Those of the optimizer that is named; their type says which it is."""
        chosen = self.AdamW or self.Adam or self.SGD
        assert chosen is not None
        return chosen


class KDLossSettings(Section):
    """loss_weights[0] * task loss + loss_weights[1] * T^2 * distance(teacher, student); paper, section 3."""

    temperature: Number = Field(2.0, gt=0, description="T: logits are divided by it before they are compared")
    loss_types: tuple[Literal["CE"], Literal["KL", "CE", "MSE"]] = Field(
        ("CE", "KL"),
        description="cross entropy with the labels; then the distance from the teacher: KL divergence, its soft cross "
        "entropy (CE: the same gradient), or the mean squared difference of logits (MSE)",
    )
    loss_weights: tuple[Number, Number] = Field((0.5, 0.5), description="weights of the two losses; they add up to 1")

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> "KDLossSettings":
        if min(self.loss_weights) < 0 or abs(sum(self.loss_weights) - 1) > 1e-9:
            raise wrong("must be two numbers >= 0 that add up to 1", "loss_weights", instead="e.g. [0.5, 0.5]")
        return self


class IntermediateSettings(Section):
    """Sum of loss_weights[i] * distance(student's layer, teacher's layer), over pairs of layers."""

    layer_mappings: tuple[tuple[str, str] | tuple[str, int, str, int], ...] = Field(
        min_length=1,
        description="[student's layer, teacher's layer], or [layer, output, layer, output] where a layer gives several",
    )
    loss_types: tuple[Literal["MSE", "L1", "KL"], ...] = Field((), description="one for each pair; default: MSE")
    loss_weights: tuple[Number, ...] = Field((), description="one for each pair; default: all alike, adding up to 1")
    add_origin_loss: bool = Field(False, description="add the loss with the labels")

    @model_validator(mode="after")
    def _one_for_each_pair(self) -> "IntermediateSettings":
        pairs = len(self.layer_mappings)
        for key in ("loss_types", "loss_weights"):
            if getattr(self, key) and len(getattr(self, key)) != pairs:
                raise wrong(f"has {len(getattr(self, key))} values for {pairs} pairs of layers", key)
        if any(weight < 0 for weight in self.loss_weights):
            raise wrong("must be numbers >= 0", "loss_weights")
        return self

    def pairs(self) -> "list[tuple[str, int, str, int, str, float]]":
        """(student's layer, output, teacher's layer, output, loss type, weight) of each pair."""
        count = len(self.layer_mappings)
        types, weights = self.loss_types or ("MSE",) * count, self.loss_weights or (1 / count,) * count
        found = []
        for mapping, kind, weight in zip(self.layer_mappings, types, weights, strict=True):
            student, output, teacher, other = mapping if len(mapping) == 4 else (mapping[0], 0, mapping[1], 0)
            found.append((student, output, teacher, other, kind, weight))
        return found


class Criterion(Section):
    """INC's form: the loss's name, then its settings; one loss, KnowledgeDistillationLoss when nothing is said."""

    KnowledgeDistillationLoss: KDLossSettings | None = Field(None, json_schema_extra={"default": {}})
    IntermediateLayersKnowledgeDistillationLoss: IntermediateSettings | None = None

    _fill = model_validator(mode="before")(_named("KnowledgeDistillationLoss"))

    @model_validator(mode="after")
    def _one(self) -> "Criterion":
        if self.KnowledgeDistillationLoss and self.IntermediateLayersKnowledgeDistillationLoss:
            raise wrong("takes one loss", instead="one of the two")
        return self

    @property
    def settings(self) -> "KDLossSettings | IntermediateSettings":
        """Those of the loss that is named; their type says which it is."""
        chosen = self.IntermediateLayersKnowledgeDistillationLoss or self.KnowledgeDistillationLoss
        assert chosen is not None
        return chosen


class Train(Section):
    """How long and how to train: `steps` or `epoch`, exactly one of them."""

    steps: Count | None = Field(None, description="optimizer steps")
    epoch: Count | None = Field(None, description="passes over the training examples")
    batch_size: Count = Field(32, description="examples per forward pass")
    gradient_accumulation_steps: Count = Field(1, description="forward passes per optimizer step")
    optimizer: Optimizer = Optimizer()
    warmup_ratio: Fraction = Field(0.01, description="share of the steps in which the learning rate rises from 0")
    max_grad_norm: Number = Field(1.0, gt=0, description="gradients with a larger norm are scaled down to it")
    precision: Precision = Field(
        "fp32", description="bf16: autocast, weights stay fp32; auto: bf16 on GPUs that have it and CPUs with AMX"
    )
    compile: bool = Field(
        False, description="torch.compile; on the CPUs measured it took half a minute and gained nothing"
    )
    recompute: bool = Field(
        False,
        description="layers run again in the backward pass instead of keeping what they made: less memory, more "
        "time, the same result",
    )
    checkpoint_every: Count = Field(500, description="steps between resumable checkpoints")
    log_every: Count = Field(10, description="steps between points of the training curve")

    @model_validator(mode="after")
    def _one_length(self) -> "Train":
        if (self.steps is None) == (self.epoch is None):
            raise wrong("needs exactly one of `steps` and `epoch`", instead="e.g. steps: 1000")
        return self

    @model_validator(mode="after")
    def _not_both(self) -> "Train":
        if self.compile and self.recompute:
            raise wrong("cannot be true beside `compile`", "recompute", instead="one of the two")
        return self


class DistillationTrain(Train):
    """`Train` with a distillation loss."""

    criterion: Criterion = Criterion()
    teacher_precision: Precision | None = Field(
        None, description="of the teacher's forward pass, which has no gradients to lose; default: that of the student"
    )

    @model_validator(mode="after")
    def _whole_layers_if_compiled(self) -> "DistillationTrain":
        if self.compile and self.criterion.IntermediateLayersKnowledgeDistillationLoss:
            raise wrong("cannot be true where layers are compared: each is looked into", "compile", instead="false")
        return self
