"""Recipe sections for quantization: approach, formats per operation, accuracy criterion and tuning."""

import re
from typing import Literal

from pydantic import Field, model_validator

from toolkit.recipe.fields import Count, Fraction, Position, Section, require_expression, wrong
from toolkit.recipe.train import Train

Approach = Literal["quant_aware_training", "post_training_static_quant", "post_training_dynamic_quant"]
OpType = Literal["Linear", "Embedding", "MatMul"]


class WeightConfig(Section):
    """Weight quantization: symmetric, so that zeros stay zeros."""

    granularity: Literal["per_channel", "per_tensor"] = Field(
        "per_channel", description="one scale per output channel, or one per matrix (the paper)"
    )
    scheme: Literal["sym"] = Field("sym", description="INC's key; OpenVINO's CPU kernels require symmetric weights")
    dtype: Literal["int8", "fp32"] = Field("int8", description="fp32: the operation is not quantized")
    bit: Literal[7, 8] = Field(8, description="7: 7-bit weight range, which cannot saturate on CPUs without VNNI")


class ActivationConfig(Section):
    """Activation quantization: 8 bits, one scale per tensor."""

    granularity: Literal["per_tensor"] = Field(
        "per_tensor", description="INC's key; the only granularity that OpenVINO runs in 8 bits"
    )
    scheme: Literal["asym", "sym"] = Field("asym", description="asym: uint8 with a zero point; sym: int8")
    dtype: Literal["int8", "fp32"] = Field("int8", description="fp32: the operation is not quantized")


class WeightOverride(Section):
    """Weight format of some operations; missing keys are taken from `model_wise`."""

    granularity: Literal["per_channel", "per_tensor"] | None = Field(None, description="overrides model_wise's value")
    scheme: Literal["sym"] | None = Field(None, description="overrides model_wise's value")
    dtype: Literal["int8", "fp32"] | None = Field(None, description="fp32: these operations are not quantized")


class ActivationOverride(Section):
    """Activation format of some operations; missing keys are taken from `model_wise`."""

    granularity: Literal["per_tensor"] | None = Field(None, description="overrides model_wise's value")
    scheme: Literal["asym", "sym"] | None = Field(None, description="overrides model_wise's value")
    dtype: Literal["int8", "fp32"] | None = Field(None, description="fp32: these operations are not quantized")


class OpConfig(Section):
    """An entry of `optype_wise` or `op_wise`."""

    weight: WeightOverride = WeightOverride()
    activation: ActivationOverride = ActivationOverride()


class ModelWise(Section):
    """Default formats of weights and activations."""

    weight: WeightConfig = WeightConfig()
    activation: ActivationConfig = ActivationConfig()


class Calibration(Section):
    """Examples from which quantization ranges are initialized."""

    sampling_size: Count = Field(128, description="number of training examples, spread evenly over the split")


class Recipes(Section):
    """Options of post-training static quantization; quantization-aware training has no use for them."""

    fast_bias_correction: bool = Field(
        True, description="post-training static: correct biases for the quantization error of the weights"
    )
    smooth_quant: bool = Field(True, description="post-training static: move outliers from activations to weights")


class Quantization(Section):
    """8-bit quantization with NNCF: quantization-aware training, post-training static, or post-training dynamic."""

    approach: Approach = Field(
        "quant_aware_training",
        description="quant_aware_training (the paper); post_training_static_quant: ranges from calibration examples; "
        "post_training_dynamic_quant: 8-bit weights, activations quantized at inference time",
    )
    train: Train | None = Field(None, description="training without a teacher; alternative to `distillation`")
    calibration: Calibration = Calibration()
    model_wise: ModelWise = ModelWise()
    optype_wise: dict[OpType, OpConfig] = Field(
        {}, description="operation type -> format, overrides model_wise; MatMul is the attention's query-key product"
    )
    op_wise: dict[str, OpConfig] = Field(
        {}, description="regular expression on module names -> format, overrides optype_wise; the last match wins"
    )
    recipes: Recipes = Recipes()
    overflow_fix: Literal["auto", "enable", "disable"] = Field(
        "auto", description="7-bit weight range, to avoid saturation on CPUs without VNNI; auto: depends on this CPU"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> "Quantization":
        for pattern in self.op_wise:
            require_expression(pattern, "op_wise")
        if self.train is not None and self.approach != "quant_aware_training":
            raise wrong(f"{self.approach} does not train", "train", instead="approach: quant_aware_training")
        written = self.recipes.model_fields_set  # a saved recipe has all defaults written out
        saved = self.recipes == Recipes() and written == Recipes.model_fields.keys()
        if self.approach != "post_training_static_quant" and written and not saved:
            what = f"has no effect: {self.approach} does not use it"
            raise wrong(what, "recipes", min(written), instead="approach: post_training_static_quant")
        if self.approach == "post_training_dynamic_quant" and self.model_wise.activation != ActivationConfig():
            what = "dynamic quantization has no activation format: OpenVINO chooses it at inference time"
            raise wrong(what, "model_wise", "activation")
        return self

    def wanted(self, name: str, kind: OpType) -> ModelWise:
        """Returns the requested format of one operation: `op_wise` over `optype_wise` over `model_wise`.

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
    """Maximum accuracy loss of a compressed model against the one before: `relative` or `absolute`."""

    relative: Fraction | None = Field(None, description="maximum loss as a fraction of the metric before")
    absolute: Fraction | None = Field(None, description="maximum absolute loss of the metric (0.01 is one point)")

    @model_validator(mode="after")
    def _one(self) -> "AccuracyCriterion":
        if (self.relative is None) == (self.absolute is None):
            raise wrong("needs exactly one of `relative` and `absolute`", instead="relative: 0.01")
        return self

    def loss(self, before: float, after: float) -> float:
        """Returns the accuracy loss in the criterion's unit (relative or absolute); negative for a gain.

        A relative loss of a score of 0 is 0; a correlation may be negative.
        """
        lost = before - after
        return lost if self.relative is None else (lost / abs(before) if before else 0.0)

    def limit(self) -> float:
        """Returns the maximum loss, in the same unit."""
        limit = self.absolute if self.relative is None else self.relative
        assert limit is not None
        return limit

    def floor(self, before: float) -> float:
        """Returns the lowest score that meets the criterion."""
        return before - self.limit() * (1.0 if self.relative is None else abs(before))

    def met(self, before: float, after: float, resolution: float = 0.0) -> bool:
        """Returns whether the criterion is met.

        Args:
            before: Score of the model before.
            after: Score of the compressed model.
            resolution: Loss that meets every criterion: what one example changes, where there are few.
        """
        return after >= min(self.floor(before), before - resolution) - 1e-12  # 0.90 - 0.89 is not exactly 0.01


class ExitPolicy(Section):
    """Limits of the tuning search."""

    timeout: Position = Field(
        0,
        description="seconds; 0: stop at the fewest FP32 matrices that meet the criterion; otherwise the search "
        "continues for that long to improve the objective",
    )
    max_trials: Count = Field(100, description="maximum number of quantized models, including the first one")


class Tuning(Section):
    """Accuracy criterion and tuning: while the criterion is not met, the most sensitive matrices are kept in FP32."""

    accuracy_criterion: AccuracyCriterion = AccuracyCriterion(relative=0.01)
    objective: Literal["performance", "accuracy", "modelsize", "footprint"] = Field(
        "performance",
        description="selects among the models that meet the criterion: lowest latency, highest accuracy, smallest "
        "file, or least memory",
    )
    exit_policy: ExitPolicy = ExitPolicy()
    retrain_steps: Position = Field(0, description="quantization-aware training steps for each trial after the first")
