"""The typed recipe: one section per stage, in Intel Neural Compressor's vocabulary where INC has a word for it.

Pure data: no torch, no files read. `recipe_yaml.py` reads these types from YAML. A section that is absent is a
stage that does not run. Keys that INC 1.x knows keep INC's names and places (`pruning.approach.weight_compression`,
`distillation.train.criterion.KnowledgeDistillationLoss`, `quantization.approach`, `tuning.accuracy_criterion`,
`evaluation.performance.configs`); the rest are ours.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
Variant = Literal["dense-fp32", "dense-int8", "sparse-fp32", "sparse-int8"]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AdamWSettings(Section):
    """The AdamW optimizer."""

    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate, reached after warm-up")
    weight_decay: float = Field(0.01, ge=0)
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: float = Field(1e-8, gt=0)


class Optimizer(Section):
    """INC's form: the optimizer's name, then its settings."""

    AdamW: AdamWSettings = AdamWSettings()


class KDLossSettings(Section):
    """loss_weights[0] * task loss + loss_weights[1] * T^2 * KL(teacher || student); paper, section 3."""

    temperature: float = Field(2.0, gt=0)
    loss_types: tuple[Literal["CE"], Literal["KL"]] = ("CE", "KL")
    loss_weights: tuple[float, float] = (0.5, 0.5)

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> "KDLossSettings":
        if min(self.loss_weights) < 0 or abs(sum(self.loss_weights) - 1) > 1e-9:
            raise ValueError("loss_weights must be two numbers >= 0 that add up to 1, e.g. [0.5, 0.5]")
        return self


class Criterion(Section):
    """INC's form: the loss's name, then its settings."""

    KnowledgeDistillationLoss: KDLossSettings = KDLossSettings()


class Train(Section):
    """How long and how to train: `steps` or `epoch`, exactly one of them."""

    steps: PositiveInt | None = Field(None, description="optimizer steps")
    epoch: PositiveInt | None = Field(None, description="passes over the training examples")
    batch_size: PositiveInt = Field(32, description="examples per forward pass")
    gradient_accumulation_steps: PositiveInt = 1
    optimizer: Optimizer = Optimizer()
    warmup_ratio: Fraction = Field(0.01, description="share of the steps in which the learning rate rises from 0")
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast; weights stay fp32")
    checkpoint_every: PositiveInt = Field(500, description="steps between resumable checkpoints")
    log_every: PositiveInt = Field(10, description="steps between points of the training curve")

    @model_validator(mode="after")
    def _one_length(self) -> "Train":
        if (self.steps is None) == (self.epoch is None):
            raise ValueError("give exactly one of `steps` and `epoch`")
        return self


class DistillationTrain(Train):
    """`Train` with a distillation loss."""

    criterion: Criterion = Criterion()


class Model(Section):
    """The dense pre-trained model that everything starts from."""

    source: str = Field(description="folder, Hugging Face id, or package:<distribution>[/<folder in it>]")
    framework: Literal["pytorch"] = "pytorch"
    prunable: tuple[str, ...] = Field(
        (), description="regular expressions on module names; empty: the encoder's linear layers, found by themselves"
    )
    trust_remote_code: bool = False


class HoldOut(Section):
    """Splits one file into train and dev by the values of a column, so that no group is in both."""

    column: str = Field(description="e.g. the film a review is about")
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    fold: Annotated[int, Field(ge=0)] = Field(0, description="which share of the groups is held out")


class Task(Section):
    """A classification task over one or two text columns. `tasks.py` turns it into data, head and metrics."""

    train: str = Field(description="file (TSV, CSV, JSON lines; .bz2/.gz/.xz too) or package:<distribution>/<file>")
    dev: str | None = Field(None, description="the split that is measured; or use hold_out")
    hold_out: HoldOut | None = None
    rows: dict[str, tuple[str, ...]] = Field({}, description="keep only rows whose column has one of these values")
    columns: tuple[str, ...] = Field(("sentence",), min_length=1, max_length=2)
    label: str = "label"
    labels: tuple[str, ...] = Field((), description="label names in the order of the classes; empty: as found in train")
    metrics: tuple[Literal["accuracy", "f1"], ...] = Field(("accuracy",), min_length=1)
    max_seq_length: PositiveInt = 128
    note: str = Field("", description="said beside every result, e.g. 'reduced training data'")
    ready: dict[Literal["task_teacher", "transfer"], str] = Field({}, description="checkpoints used instead of stages")

    @model_validator(mode="after")
    def _one_dev(self) -> "Task":
        if (self.dev is None) == (self.hold_out is None):
            raise ValueError("give exactly one of `dev` and `hold_out`")
        return self


class Corpus(Section):
    """Text for pre-training: files of paragraphs, and/or the train texts of tasks."""

    files: tuple[str, ...] = Field((), description="plain text, one paragraph a line; .xz/.gz/.bz2 too")
    tasks: tuple[str, ...] = Field((), description="names of tasks whose train texts (never labels) are used")
    max_seq_length: PositiveInt = 128
    mlm_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    pack: bool = Field(True, description="join paragraphs to full sequences; off: one sequence per text")
    limit: PositiveInt | None = Field(None, description="use only this many sequences")

    @model_validator(mode="after")
    def _some_text(self) -> "Corpus":
        if not self.files and not self.tasks:
            raise ValueError("give `files`, `tasks` or both")
        return self


class TrainOnly(Section):
    """`teacher` (dense model fitted to the corpus, MLM) and `task_teacher` (fitted to a task)."""

    train: Train


class Pruner(Section):
    """INC's `!Pruner`; what it leaves out is taken from `weight_compression`."""

    prune_type: Literal["magnitude", "basic_magnitude", "pattern_lock"] = "magnitude"
    start_step: Annotated[int, Field(ge=0)] | None = None
    end_step: Annotated[int, Field(ge=0)] | None = None
    update_frequency_on_step: PositiveInt | None = None
    initial_sparsity: Fraction | None = None
    target_sparsity: Fraction | None = None
    sparsity_decay_type: Literal["cubic", "linear", "cos", "exp", "cube"] | None = None
    prune_domain: Literal["local", "global"] | None = None
    pattern: str | None = None


class WeightCompression(Section):
    """When, how far and in which pattern weights go. Steps are optimizer steps."""

    initial_sparsity: Fraction = 0.0
    target_sparsity: Fraction = 0.9
    start_step: Annotated[int, Field(ge=0)] = 0
    end_step: Annotated[int, Field(ge=0)] = 0
    update_frequency_on_step: PositiveInt = 1
    sparsity_decay_type: Literal["cubic", "linear", "cos", "exp", "cube"] = Field(
        "cubic", description="cubic is Zhu-Gupta's; exp, cos, linear and cube mean what INC means by them"
    )
    prune_domain: Literal["local", "global"] = Field("local", description="local: same sparsity in each matrix")
    pattern: str = Field("tile_pattern_1x1", description="tile_pattern_1x1, tile_pattern_4x1, or N:M such as 2:4")
    pruners: tuple[Pruner, ...] = Field((Pruner(),), min_length=1, max_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> "WeightCompression":
        if self.end_step < self.start_step:
            raise ValueError("end_step must not be before start_step")
        return self

    def resolved(self) -> "WeightCompression":
        """The same with the pruner's own values put over the section's."""
        own = self.pruners[0].model_dump(exclude={"prune_type"}, exclude_none=True)
        return self.model_copy(update=own)


class PruningApproach(Section):
    """INC's form."""

    weight_compression: WeightCompression = WeightCompression()


class Pruning(Section):
    """Gradual pruning; `backend` says who picks the weights, the mask is always ours."""

    backend: Literal["inc", "nncf", "magnitude"] = "inc"
    approach: PruningApproach = PruningApproach()
    learning_rate_rewinding: bool = Field(True, description="rewind the rate at each pruning step (paper, section 3)")


class StudentDistillation(Section):
    """Pre-training loss of the student."""

    train: DistillationTrain
    positions: Literal["masked", "all"] = Field(
        "masked", description="tokens that carry the loss: the masked ones (cheap), or every attended one (the paper)"
    )


class Student(Section):
    """The one sparse pre-trained model."""

    pruning: Pruning = Pruning()
    distillation: StudentDistillation


class LockApproach(Section):
    """INC's form of a locked pattern."""

    class Compression(Section):
        pruners: tuple[Pruner, ...] = (Pruner(prune_type="pattern_lock"),)

    weight_compression: Compression = Compression()


class Lock(Section):
    """Pattern lock: weights that are zero stay exactly zero."""

    approach: LockApproach = LockApproach()


class Distillation(Section):
    """Fine-tuning with a task teacher."""

    train: DistillationTrain


class Transfer(Section):
    """The sparse model fine-tuned to a task, its pattern locked."""

    pruning: Lock = Lock()
    distillation: Distillation


class WeightConfig(Section):
    """Quantization of weights: symmetric int8."""

    granularity: Literal["per_channel", "per_tensor"] = "per_channel"


class ActivationConfig(Section):
    """Quantization of activations: 8 bits."""

    scheme: Literal["asym", "sym"] = "asym"


class ModelWise(Section):
    """INC's form."""

    weight: WeightConfig = WeightConfig()
    activation: ActivationConfig = ActivationConfig()


class Calibration(Section):
    """Examples from which the first ranges are taken."""

    sampling_size: PositiveInt = 128


class Quantization(Section):
    """8-bit quantization-aware training, by NNCF."""

    approach: Literal["quant_aware_training"] = "quant_aware_training"
    calibration: Calibration = Calibration()
    model_wise: ModelWise = ModelWise()
    embeddings: bool = Field(True, description="quantize the embeddings too (smaller file)")
    overflow_fix: Literal["auto", "enable", "disable"] = Field(
        "auto", description="7-bit weight range against saturation on CPUs without VNNI; auto reads the CPU"
    )


class AccuracyCriterion(Section):
    """INC's promise: INT8 against the FP32 model that was quantized; exactly one of the two."""

    relative: Fraction | None = None
    absolute: Fraction | None = None

    @model_validator(mode="after")
    def _one(self) -> "AccuracyCriterion":
        if (self.relative is None) == (self.absolute is None):
            raise ValueError("give exactly one of `relative` and `absolute`")
        return self


class Tuning(Section):
    """What the user demands of the result."""

    accuracy_criterion: AccuracyCriterion = AccuracyCriterion(relative=0.01)


class Quantize(Section):
    """8-bit training of the transferred model, pattern still locked, distilled from the task teacher."""

    quantization: Quantization = Quantization()
    distillation: Distillation
    tuning: Tuning = Tuning()


class Export(Section):
    """OpenVINO IR folders."""

    variants: tuple[Variant, ...] = ("dense-fp32", "dense-int8", "sparse-fp32", "sparse-int8")
    tolerance: float = Field(0.05, gt=0, description="largest |IR - torch| of INT8 logits, as a share of their range")
    metric_tolerance: Fraction = Field(0.01, description="largest |IR - torch| of the metric on the whole dev split")


class PerformanceConfigs(Section):
    """INC's form: cores and instances; benchmark_app's -nthreads and -nstreams."""

    cores_per_instance: PositiveInt | None = Field(None, description="threads; default: all cores")
    num_of_instance: PositiveInt = 1


class Performance(Section):
    """Latency and throughput by benchmark_app, variants interleaved."""

    warmup: Annotated[int, Field(ge=0)] = Field(1, description="rounds thrown away before those that count")
    iteration: PositiveInt = Field(3, description="rounds over all variants")
    seconds: PositiveInt = Field(3, description="length of one benchmark_app run")
    batch_sizes: tuple[PositiveInt, ...] = (1, 8)
    sequence_length: PositiveInt = 128
    configs: PerformanceConfigs = PerformanceConfigs()


class Evaluation(Section):
    """INC's form; accuracy is always measured on the whole dev split."""

    performance: Performance = Performance()


class Benchmark(Section):
    """Accuracy, size and speed of each IR."""

    evaluation: Evaluation = Evaluation()


class Recipe(Section):
    """One pre-training and any number of tasks; no task repeats the pruning."""

    version: float = 1.0
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    seed: int = 42
    threads: PositiveInt | None = Field(None, description="torch's threads; default: all cores")
    model: Model
    corpus: Corpus | None = None
    tasks: dict[str, Task] = {}
    teacher: TrainOnly | None = None
    student: Student | None = None
    task_teacher: TrainOnly | None = None
    transfer: Transfer | None = None
    quantize: Quantize | None = None
    export: Export | None = None
    benchmark: Benchmark | None = None
    ready: dict[Literal["teacher", "student"], str] = Field({}, description="checkpoints used instead of stages")

    @model_validator(mode="after")
    def _stages_have_what_they_need(self) -> "Recipe":
        if (self.teacher or self.student) and self.corpus is None:
            raise ValueError("`teacher` and `student` need a `corpus` section")
        unknown = [t for t in (self.corpus.tasks if self.corpus else ()) if t not in self.tasks]
        if unknown:
            raise ValueError(f"corpus.tasks names {unknown[0]!r}, which is not under `tasks`")
        if self.transfer and not (self.student or "student" in self.ready):
            raise ValueError("`transfer` needs a `student` section or `ready.student`")
        return self

    def sections(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Those sections as plain JSON values: what a stage's cache key is made of."""
        return {n: self.model_dump(mode="json", include={n})[n] for n in names}
