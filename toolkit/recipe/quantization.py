"""The recipe's sections on 8 bits: how which operation is quantized, and what is promised of the result."""

import re
from typing import Literal

from pydantic import Field, model_validator

from toolkit.recipe.fields import Count, Fraction, Position, Section, wrong
from toolkit.recipe.train import Train

Approach = Literal["quant_aware_training", "post_training_static_quant", "post_training_dynamic_quant"]
OpType = Literal["Linear", "Embedding", "MatMul"]


class WeightConfig(Section):
    """Quantization of weights: symmetric, so that zeros stay zeros."""

    granularity: Literal["per_channel", "per_tensor"] = Field(
        "per_channel", description="one scale per output channel, or one per matrix (the paper)"
    )
    scheme: Literal["sym"] = Field("sym", description="INC's key; OpenVINO's CPU kernels take symmetric weights only")
    dtype: Literal["int8", "fp32"] = Field("int8", description="fp32: the operation is not quantized")
    bit: Literal[7, 8] = Field(8, description="7: codes of 7 bits, which cannot saturate on CPUs without VNNI")


class ActivationConfig(Section):
    """Quantization of activations: 8 bits, one scale per tensor."""

    granularity: Literal["per_tensor"] = Field(
        "per_tensor", description="INC's key; the only one OpenVINO runs in 8 bits"
    )
    scheme: Literal["asym", "sym"] = Field("asym", description="asym: uint8 with a zero point; sym: int8")
    dtype: Literal["int8", "fp32"] = Field("int8", description="fp32: the operation is not quantized")


class WeightOverride(Section):
    """What is different for some operations; what is left out is `model_wise`'s."""

    granularity: Literal["per_channel", "per_tensor"] | None = Field(None, description="in place of model_wise's")
    scheme: Literal["sym"] | None = Field(None, description="in place of model_wise's")
    dtype: Literal["int8", "fp32"] | None = Field(None, description="fp32: these operations are not quantized")


class ActivationOverride(Section):
    """What is different for some operations; what is left out is `model_wise`'s."""

    granularity: Literal["per_tensor"] | None = Field(None, description="in place of model_wise's")
    scheme: Literal["asym", "sym"] | None = Field(None, description="in place of model_wise's")
    dtype: Literal["int8", "fp32"] | None = Field(None, description="fp32: these operations are not quantized")


class OpConfig(Section):
    """INC's form of an entry of `optype_wise` and `op_wise`."""

    weight: WeightOverride = WeightOverride()
    activation: ActivationOverride = ActivationOverride()


class ModelWise(Section):
    """INC's form."""

    weight: WeightConfig = WeightConfig()
    activation: ActivationConfig = ActivationConfig()


class Calibration(Section):
    """Examples from which the first ranges are taken."""

    sampling_size: Count = Field(128, description="number of training examples")


class Recipes(Section):
    """INC's switches of post-training quantization; training leaves weights and biases to the optimizer."""

    fast_bias_correction: bool = Field(True, description="post-training static: correct biases for the rounding")
    smooth_quant: bool = Field(True, description="post-training static: move outliers from activations to weights")


class Quantization(Section):
    """8 bits by NNCF: by training, or from calibration examples, or of the weights alone."""

    approach: Approach = Field(
        "quant_aware_training",
        description="quant_aware_training (the paper); post_training_static_quant: ranges from calibration examples; "
        "post_training_dynamic_quant: 8-bit weights, activations quantized while the model runs",
    )
    train: Train | None = Field(None, description="training without a teacher; or use `distillation`")
    calibration: Calibration = Calibration()
    model_wise: ModelWise = ModelWise()
    optype_wise: dict[OpType, OpConfig] = Field(
        {}, description="by type of operation, over model_wise; MatMul is attention's product of queries and keys"
    )
    op_wise: dict[str, OpConfig] = Field(
        {}, description="by regular expression on module names, over optype_wise; the last that matches counts"
    )
    recipes: Recipes = Recipes()
    overflow_fix: Literal["auto", "enable", "disable"] = Field(
        "auto", description="7-bit weight range against saturation on CPUs without VNNI; auto reads the CPU"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> "Quantization":
        for pattern in self.op_wise:
            try:
                re.compile(pattern)
            except re.error as error:
                raise wrong(f"{pattern!r} is not a regular expression ({error})", "op_wise") from None
        if self.train is not None and self.approach != "quant_aware_training":
            raise wrong(f"{self.approach} does not train", "train", instead="approach: quant_aware_training")
        if self.approach == "post_training_dynamic_quant" and self.model_wise.activation != ActivationConfig():
            raise wrong("the activations' format is chosen while the model runs", "model_wise", "activation")
        return self

    def wanted(self, name: str, kind: OpType) -> ModelWise:
        """How one operation is to be quantized: `op_wise` over `optype_wise` over `model_wise`.

        Args:
            name: Module name, e.g. `bert.encoder.layer.0.attention.self.query`.
            kind: Type of the operation.
        """
        weight, activation = self.model_wise.weight, self.model_wise.activation
        entries = [self.optype_wise[kind]] if kind in self.optype_wise else []
        entries += [config for pattern, config in self.op_wise.items() if re.search(pattern, name)]
        for entry in entries:
            weight = weight.model_copy(update=entry.weight.model_dump(exclude_none=True))
            activation = activation.model_copy(update=entry.activation.model_dump(exclude_none=True))
        return ModelWise(weight=weight, activation=activation)


class AccuracyCriterion(Section):
    """INC's promise: INT8 against the FP32 model that was quantized; exactly one of the two."""

    relative: Fraction | None = Field(None, description="largest loss as a share of the FP32 metric")
    absolute: Fraction | None = Field(None, description="largest loss in the metric itself (0.01 is one point)")

    @model_validator(mode="after")
    def _one(self) -> "AccuracyCriterion":
        if (self.relative is None) == (self.absolute is None):
            raise wrong("needs exactly one of `relative` and `absolute`", instead="relative: 0.01")
        return self

    def loss(self, before: float, after: float) -> float:
        """What 8 bits cost, in the criterion's own unit; negative where they gained."""
        lost = before - after
        return lost if self.relative is None else (lost / before if before else 0.0)

    def limit(self) -> float:
        """The largest loss that is allowed, in the same unit."""
        limit = self.absolute if self.relative is None else self.relative
        assert limit is not None
        return limit

    def met(self, before: float, after: float) -> bool:
        """Whether the promise holds."""
        return self.loss(before, after) <= self.limit() + 1e-12  # 0.90 - 0.89 is not exactly 0.01


class ExitPolicy(Section):
    """INC's form: when the search ends."""

    timeout: Position = Field(
        0,
        description="0: the search ends with the fewest matrices in FP32 that meet the criterion; else the seconds it "
        "may take, in which it goes on looking for something better by the objective",
    )
    max_trials: Count = Field(100, description="quantized models that are tried, the first one included")


class Tuning(Section):
    """What is demanded of the result. Where 8 bits everywhere miss it, the most sensitive matrices go back to FP32."""

    accuracy_criterion: AccuracyCriterion = AccuracyCriterion(relative=0.01)
    objective: Literal["performance", "accuracy", "modelsize", "footprint"] = Field(
        "performance",
        description="which of the models that meet the criterion is kept: fastest, best, smallest file, least memory",
    )
    exit_policy: ExitPolicy = ExitPolicy()
    retrain_steps: Position = Field(0, description="8-bit training steps for each trial after the first; 0: none")
