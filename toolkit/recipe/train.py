"""Recipe section `train`, shared by all training stages: duration, batch size, optimizer and precision."""

from typing import Literal

from pydantic import Field, model_validator

from toolkit.recipe.fields import Count, Fraction, Number, Section, default_choice, wrong

Precision = Literal["auto", "fp32", "bf16"]


class AdamWSettings(Section):
    """The AdamW optimizer."""

    learning_rate: Number = Field(5e-5, gt=0, description="peak learning rate, reached after warm-up")
    weight_decay: Number = Field(0.01, ge=0, description="decoupled weight decay; biases and LayerNorm have none")
    beta_1: Fraction = Field(0.9, description="decay rate of the first moment (mean of the gradient)")
    beta_2: Fraction = Field(0.999, description="decay rate of the second moment (mean of the squared gradient)")
    epsilon: Number = Field(1e-8, gt=0, description="added to the denominator for numerical stability")


class AdamSettings(AdamWSettings):
    """The Adam optimizer, with weight decay as an L2 penalty in the gradient."""

    weight_decay: Number = Field(0.0, ge=0, description="L2 penalty; biases and LayerNorm have none")


class SGDSettings(Section):
    """Stochastic gradient descent."""

    learning_rate: Number = Field(gt=0, description="peak learning rate, reached after warm-up")
    momentum: Fraction = Field(0.0, description="momentum factor")
    nesterov: bool = Field(False, description="use Nesterov momentum")
    weight_decay: Number = Field(0.0, ge=0, description="L2 penalty; biases and LayerNorm have none")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "SGDSettings":
        if self.nesterov and not self.momentum:
            raise wrong("needs a momentum above 0", "nesterov", instead="momentum: 0.9")
        return self


class Optimizer(Section):
    """INC's form: one optimizer by name, with its settings; default: AdamW."""

    AdamW: AdamWSettings | None = Field(None, json_schema_extra={"default": {}})
    Adam: AdamSettings | None = None
    SGD: SGDSettings | None = None

    _fill = model_validator(mode="before")(default_choice("AdamW"))

    @model_validator(mode="after")
    def _one(self) -> "Optimizer":
        if [self.AdamW, self.Adam, self.SGD].count(None) < 2:
            raise wrong("takes one optimizer", instead="AdamW: {learning_rate: 5e-5}")
        return self

    @property
    def settings(self) -> "AdamWSettings | SGDSettings":
        """The settings of the selected optimizer; their type identifies the optimizer."""
        chosen = self.AdamW or self.Adam or self.SGD
        assert chosen is not None
        return chosen


class Train(Section):
    """Duration and hyper-parameters of a training; exactly one of `steps` and `epoch`."""

    steps: Count | None = Field(None, description="number of optimizer steps")
    epoch: Count | None = Field(None, description="number of passes over the training examples")
    batch_size: Count = Field(32, description="examples per forward pass")
    gradient_accumulation_steps: Count = Field(1, description="forward passes per optimizer step")
    optimizer: Optimizer = Optimizer()
    warmup_ratio: Fraction = Field(0.01, description="fraction of the steps with linear warm-up of the learning rate")
    max_grad_norm: Number = Field(1.0, gt=0, description="gradient clipping: maximum norm")
    precision: Precision = Field(
        "fp32",
        description="bf16: autocast with fp32 weights; auto: bf16 on GPUs that support it, and on CPUs with bf16 "
        "instructions (AMX, AVX512_BF16) where a short measurement of the training step finds it faster",
    )
    dropout: Fraction | None = Field(
        None,
        description="probability of every dropout of the trained model, attention included; default: those of its "
        "configuration, 0.1 in most. With 0, a student comes closer to its teacher",
    )
    compile: bool = Field(
        False, description="use torch.compile; on the CPUs measured, it took half a minute and gave no speed-up"
    )
    recompute: bool = Field(
        False,
        description="activation checkpointing: recompute layers in the backward pass; less memory, more time, same "
        "result",
    )
    checkpoint_every: Count = Field(500, description="steps between checkpoints for resuming")
    log_every: Count = Field(10, description="steps between points of the training curve")

    @model_validator(mode="after")
    def _one_length(self) -> "Train":
        if (self.steps is None) == (self.epoch is None):
            raise wrong("needs exactly one of `steps` and `epoch`", instead="e.g. steps: 1000")
        return self

    @model_validator(mode="after")
    def _not_both(self) -> "Train":
        if self.compile and self.recompute:
            raise wrong("cannot be combined with `compile`", "recompute", instead="one of the two")
        return self
