"""Types of the Intel Neural Compressor 1.x YAML format: every key of its schema, with INC's defaults and valid values.

Keys that are present in a file are distinguished from defaults (`model_fields_set`), so that a plan can state the
origin of each value. Keys that INC allows to be one value or a list of candidates are lists here. Unsupported keys have
types too, so that the error can state the reason. `translate.py` converts these types to a recipe.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from toolkit.recipe.fields import Count, Epochs, Fraction, Number, Period, Position, Section, Seed, wrong
from toolkit.recipe.inc.schema_train import Anything, Dataloader, Listed, Train, as_list, at_most_one
from toolkit.recipe.pruning import PATTERN


def _counted(value: Any) -> Any:
    """Converts INC's `100, 200` to [100, 200]."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else as_list(value)


def _percentage(value: Any) -> Any:
    """Converts INC's "1%" to 0.01."""
    try:
        percent = isinstance(value, str) and value.strip().endswith("%")
        return round(float(value.strip()[:-1]) / 100, 12) if percent else value
    except ValueError:
        return value


def _keyed(key: str) -> Callable[[Any], Any]:
    """Returns a validator for a section that INC also accepts as a single value: `topk: 1`."""
    return lambda value: {key: value} if isinstance(value, int | str) else value


Share = Annotated[Fraction, BeforeValidator(_percentage)]
Framework = Literal[
    "pytorch", "pytorch_fx", "pytorch_ipex", "tensorflow", "onnxrt_integer", "onnxrt_qlinear", "mxnet", "NA"
]


class Nothing(Section):
    """A section without keys."""


class Model(Section):
    """Name and framework; the model itself is given by a flag."""

    name: str = Field(min_length=1, description="run name")
    framework: Framework = Field(description="pytorch")
    inputs: Listed[str] = ()
    outputs: Listed[str] = ()


ByEpoch = Literal["basic_magnitude", "pattern_lock", "group_lasso", "gradient_sensitivity"]
ByStep = Literal["magnitude", "snip", "snip_momentum"]
Progressive = Literal["magnitude_progressive", "snip_progressive", "snip_momentum_progressive"]
WithoutTraining = Literal["sparse_gpt", "retrain_free"]  # of INC 3
PruneType = Literal[ByEpoch, ByStep, Progressive, WithoutTraining]
Decay = Literal["exp", "cos", "linear", "cube"]
Domain = Literal["global", "local"]


def _inc_pattern(value: Any) -> Any:
    """Converts INC's two notations of block patterns to one."""
    if not isinstance(value, str):
        return value
    pattern = f"tile_pattern_{value}" if re.fullmatch(r"\d+x\d+", value) else value
    if not PATTERN.fullmatch(pattern):
        raise wrong(f"unknown pattern {value!r}", instead="tile_pattern_1x1, 4x1 or 2:4")
    return pattern


Pattern = Annotated[str, BeforeValidator(_inc_pattern)]


class PrunerParameters(Section):
    """Parameters of individual prune types. All but the first two are for attention head pruning."""

    alpha: Number = Field(1e-4, ge=0)
    pattern: Pattern | None = None
    target: Number | None = None
    normalize: bool | None = None
    stride: Number | None = None
    transpose: bool | None = None
    importance_inputs: Listed[str] = ()
    importance_metric: str | None = None


class Pruner(Section):
    """INC's `!Pruner`; missing keys are taken from its section."""

    start_epoch: Epochs | None = None
    end_epoch: Epochs | None = None
    initial_sparsity: Fraction | None = None
    target_sparsity: Fraction | None = None
    update_frequency: Period | None = None
    method: Literal["per_tensor", "per_channel"] = "per_tensor"
    prune_type: PruneType | None = None
    start_step: Position | None = None
    end_step: Position | None = None
    update_frequency_on_step: Count | None = None
    prune_domain: Domain | None = None
    sparsity_decay_type: Decay | None = None
    pattern: Pattern | None = None
    names: Listed[str] = ()
    exclude_names: Listed[str] = ()
    parameters: PrunerParameters = PrunerParameters()


class WeightCompression(Section):
    """Schedule, target sparsity and pattern."""

    initial_sparsity: Fraction = 0.0
    target_sparsity: Fraction = 0.97
    max_sparsity_ratio_per_layer: Fraction = 0.98
    prune_type: PruneType = "basic_magnitude"
    start_epoch: Epochs = 0
    end_epoch: Epochs = 4
    start_step: Position = 0
    end_step: Position = 0
    update_frequency: Period = 1.0
    update_frequency_on_step: Count = 1
    not_to_prune_names: Listed[str] = ()
    prune_domain: Domain = "global"
    names: Listed[str] = ()
    exclude_names: Listed[str] = ()
    prune_layer_type: Listed[str] = ()
    sparsity_decay_type: Decay = "exp"
    pattern: Pattern = "tile_pattern_1x1"
    pruners: tuple[Pruner, ...] = Field((Pruner(),), min_length=1)


class PruningApproach(Section):
    """Pruning with a schedule in epochs (`weight_compression`) or steps (`weight_compression_pytorch`)."""

    weight_compression: WeightCompression | None = None
    weight_compression_pytorch: WeightCompression | None = None

    @model_validator(mode="after")
    def _one(self) -> "PruningApproach":
        at_most_one(self, "approach")
        return self


class Pruning(Section):
    """Pruning approach and training settings."""

    train: Train | None = None
    approach: PruningApproach = PruningApproach()


class Distillation(Section):
    """Distillation settings; the teacher is given by a flag."""

    train: Train | None = None
    auto_distillation: Anything | None = None


Granularity = Literal["per_channel", "per_tensor"]
Dtype = Literal["int8", "uint8", "fp32", "bf16", "fp16"]


class WeightChoices(Section):
    """Candidate formats of weights, in order of preference."""

    granularity: Listed[Granularity] = ()
    scheme: Listed[Literal["asym", "sym", "asym_float"]] = ()
    dtype: Listed[Dtype] = ()
    algorithm: Listed[Literal["minmax"]] = ()
    bit: Listed[Annotated[Number, Field(gt=0, le=7)]] = ()


class ActivationChoices(Section):
    """Candidate formats of activations, in order of preference."""

    granularity: Listed[Granularity] = ()
    scheme: Listed[Literal["asym", "sym"]] = ()
    dtype: Listed[Dtype] = ()
    algorithm: Listed[Literal["minmax", "kl", "placeholder"]] = ()
    compute_dtype: Listed[Literal["int8", "uint8", "fp32", "bf16", "None"]] = ()


class OpChoices(Section):
    """Candidate formats of the entire model or of some operations."""

    weight: WeightChoices = WeightChoices()
    activation: ActivationChoices = ActivationChoices()


class Calibration(Section):
    """Examples from which quantization ranges are computed."""

    sampling_size: Annotated[tuple[Count, ...], BeforeValidator(_counted), Field(min_length=1)] = (100,)
    dataloader: Dataloader | None = None


class Recipes(Section):
    """INC's optional quantization passes."""

    scale_propagation_max_pooling: bool = True
    scale_propagation_concat: bool = True
    first_conv_or_matmul_quantization: bool = True
    fast_bias_correction: bool = False
    weight_correction: bool = False


class Advance(Section):
    """INC's option for TensorFlow."""

    bias_correction: Literal["weight_empirical"] | None = None


class Quantization(Section):
    """Quantization approach and formats."""

    approach: Literal["post_training_static_quant", "post_training_dynamic_quant", "quant_aware_training"] = (
        "post_training_static_quant"
    )
    train: Train | None = None
    calibration: Calibration = Calibration()
    recipes: Recipes = Recipes()
    model_wise: OpChoices = OpChoices()
    optype_wise: dict[str, OpChoices] = {}  # noqa: RUF012 (frozen: never changed)
    op_wise: dict[str, OpChoices] = {}  # noqa: RUF012
    advance: Advance = Advance()


class Strategy(Section):
    """INC's tuning strategy."""

    name: Literal["basic", "bayesian", "exhaustive", "mse", "random"] = "basic"
    accuracy_weight: Number = 1.0
    latency_weight: Number = 1.0
    sigopt_api_token: str | None = None
    sigopt_project_id: str | None = None
    sigopt_experiment_name: str = "nc-tune"


class AccuracyCriterion(Section):
    """Maximum accuracy loss of quantization."""

    relative: Share | None = None
    absolute: Share | None = None
    higher_is_better: bool = True

    @model_validator(mode="after")
    def _one(self) -> "AccuracyCriterion":
        if self.relative is not None and self.absolute is not None:
            raise wrong("takes `relative` or `absolute`, not both", "absolute", instead="one of the two")
        return self


Objective = Literal["performance", "accuracy", "modelsize", "footprint"]


class MultiObjectives(Section):
    """Several objectives and their weights."""

    objective: Listed[Objective] = ()
    weight: Listed[Number] = ()
    higher_is_better: Listed[bool] = ()


class ExitPolicy(Section):
    """Limits of the tuning search."""

    timeout: Position = 0
    max_trials: Count = 100
    performance_only: bool = False


class Workspace(Section):
    """Folder of the results."""

    path: str | None = None
    resume: str | None = None


class Diagnosis(Section):
    """INC's recording of individual operations."""

    diagnosis_after_tuning: bool = False
    op_list: Listed[str] = ()
    iteration_list: Listed[int] = ()
    inspect_type: Literal["all", "activation", "weight"] | None = None
    save_to_disk: bool = False
    save_path: str | None = None


class Tuning(Section):
    """Accuracy criterion and tuning search."""

    strategy: Strategy = Strategy()
    accuracy_criterion: AccuracyCriterion = AccuracyCriterion()
    objective: Objective = "performance"
    multi_objectives: MultiObjectives | None = None
    exit_policy: ExitPolicy = ExitPolicy()
    random_seed: Seed = 1978
    tensorboard: bool = False
    workspace: Workspace = Workspace()
    diagnosis: Diagnosis = Diagnosis()


class Configs(Section):
    """Cores and instances of a measurement."""

    cores_per_instance: Count | None = None
    num_of_instance: Count = 1
    inter_num_of_threads: Count | None = None
    intra_num_of_threads: Count | None = None
    kmp_blocktime: Position | None = None
    kmp_affinity: str = "granularity=fine,verbose,compact,1,0"


class TopK(Section):
    """Top-k accuracy."""

    k: Count = 1


class Glue(Section):
    """The metrics of a GLUE task."""

    task: str = Field(min_length=1, description="sst-2")


class Metric(Section):
    """One metric by name, with its settings."""

    topk: Annotated[TopK | None, BeforeValidator(_keyed("k"))] = None
    Accuracy: Nothing | None = None
    F1: Nothing | None = None
    GLUE: Annotated[Glue | None, BeforeValidator(_keyed("task"))] = None
    SquadF1: Anything | None = None
    MSE: Anything | None = None
    RMSE: Anything | None = None
    MAE: Anything | None = None
    Loss: Anything | None = None
    BLEU: Anything | None = None
    ROC: Anything | None = None
    mAP: Anything | None = None
    COCOmAP: Anything | None = None
    COCOmAPv2: Anything | None = None
    VOCmAP: Anything | None = None
    mIOU: Anything | None = None

    @model_validator(mode="after")
    def _one(self) -> "Metric":
        at_most_one(self, "metric")
        return self


class Accuracy(Section):
    """Accuracy measurement."""

    metric: Metric | None = None
    multi_metrics: Anything | None = None
    configs: Configs = Configs()
    iteration: int = -1
    dataloader: Dataloader | None = None
    postprocess: Anything | None = None


class Performance(Section):
    """Speed measurement."""

    warmup: Position = 5
    iteration: int = -1
    configs: Configs = Configs()
    dataloader: Dataloader | None = None
    postprocess: Anything | None = None


class Evaluation(Section):
    """Accuracy and speed measurement."""

    accuracy: Accuracy = Accuracy()
    performance: Performance = Performance()


class IncFile(Section):
    """A complete INC file."""

    model: Model
    version: Number = Field(1.0, ge=1, lt=2)
    device: Literal["cpu", "gpu"] = "cpu"
    pruning: Pruning | None = None
    quantization: Quantization | None = None
    distillation: Distillation | None = None
    train: Train | None = None
    tuning: Tuning | None = None
    evaluation: Evaluation | None = None
    graph_optimization: Anything | None = None
    mixed_precision: Anything | None = None
    model_conversion: Anything | None = None
    nas: Anything | None = None
