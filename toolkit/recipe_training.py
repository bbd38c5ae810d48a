"""The recipe's `train` section, the same for every training stage: length, batches, optimizer, loss."""

from typing import Literal

from pydantic import Field, model_validator

from toolkit.recipe_base import Count, Fraction, Number, Section, wrong


class AdamWSettings(Section):
    """The AdamW optimizer."""

    learning_rate: Number = Field(5e-5, gt=0, description="peak learning rate, reached after warm-up")
    weight_decay: Number = Field(0.01, ge=0, description="decoupled weight decay; biases and LayerNorm have none")
    beta_1: Fraction = Field(0.9, description="decay of the running mean of the gradient")
    beta_2: Fraction = Field(0.999, description="decay of the running mean of the squared gradient")
    epsilon: Number = Field(1e-8, gt=0, description="added to the denominator against division by zero")


class Optimizer(Section):
    """INC's form: the optimizer's name, then its settings."""

    AdamW: AdamWSettings = AdamWSettings()


class KDLossSettings(Section):
    """loss_weights[0] * task loss + loss_weights[1] * T^2 * KL(teacher || student); paper, section 3."""

    temperature: Number = Field(2.0, gt=0, description="T: both softmaxes are taken at this temperature")
    loss_types: tuple[Literal["CE"], Literal["KL"]] = Field(
        ("CE", "KL"),
        description="the losses that loss_weights belong to: cross entropy with the labels, KL with the teacher",
    )
    loss_weights: tuple[Number, Number] = Field((0.5, 0.5), description="weights of the two losses; they add up to 1")

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> "KDLossSettings":
        if min(self.loss_weights) < 0 or abs(sum(self.loss_weights) - 1) > 1e-9:
            raise wrong("must be two numbers >= 0 that add up to 1", "loss_weights", instead="e.g. [0.5, 0.5]")
        return self


class Criterion(Section):
    """INC's form: the loss's name, then its settings."""

    KnowledgeDistillationLoss: KDLossSettings = KDLossSettings()


class Train(Section):
    """How long and how to train: `steps` or `epoch`, exactly one of them."""

    steps: Count | None = Field(None, description="optimizer steps")
    epoch: Count | None = Field(None, description="passes over the training examples")
    batch_size: Count = Field(32, description="examples per forward pass")
    gradient_accumulation_steps: Count = Field(1, description="forward passes per optimizer step")
    optimizer: Optimizer = Optimizer()
    warmup_ratio: Fraction = Field(0.01, description="share of the steps in which the learning rate rises from 0")
    max_grad_norm: Number = Field(1.0, gt=0, description="gradients with a larger norm are scaled down to it")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast; weights stay fp32")
    checkpoint_every: Count = Field(500, description="steps between resumable checkpoints")
    log_every: Count = Field(10, description="steps between points of the training curve")

    @model_validator(mode="after")
    def _one_length(self) -> "Train":
        if (self.steps is None) == (self.epoch is None):
            raise wrong("needs exactly one of `steps` and `epoch`", instead="e.g. steps: 1000")
        return self


class DistillationTrain(Train):
    """`Train` with a distillation loss."""

    criterion: Criterion = Criterion()
