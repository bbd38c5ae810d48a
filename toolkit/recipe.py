"""The typed recipe: one section per stage, in Intel Neural Compressor's vocabulary where INC has a word for it.

Pure data: no torch, no files read. `recipe_yaml.py` reads these types from YAML. A section that is absent is a
stage that does not run. Keys that INC 1.x knows keep INC's names and places (`pruning.approach.weight_compression`,
`distillation.train.criterion.KnowledgeDistillationLoss`, `quantization.approach`, `tuning.accuracy_criterion`,
`evaluation.performance.configs`); the rest are ours.
"""

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from toolkit.recipe_base import Count, Fraction, Name, Number, Position, Section, wrong
from toolkit.recipe_training import AdamWSettings as AdamWSettings
from toolkit.recipe_training import Criterion as Criterion
from toolkit.recipe_training import DistillationTrain as DistillationTrain
from toolkit.recipe_training import KDLossSettings as KDLossSettings
from toolkit.recipe_training import Optimizer as Optimizer
from toolkit.recipe_training import Train as Train

Variant = Literal["dense-fp32", "dense-int8", "sparse-fp32", "sparse-int8"]
Decay = Literal["cubic", "linear", "cos", "exp", "cube"]


class Model(Section):
    """The dense pre-trained model that everything starts from."""

    source: str = Field(
        min_length=1, description="folder, Hugging Face id, or package:<distribution>[/<folder in site-packages>]"
    )
    framework: Literal["pytorch"] = Field("pytorch", description="INC's key; pytorch is the only one")
    prunable: tuple[str, ...] = Field(
        (), description="regular expressions on module names; empty: the encoder's linear layers, found by themselves"
    )

    @model_validator(mode="after")
    def _patterns_compile(self) -> "Model":
        for pattern in self.prunable:
            try:
                re.compile(pattern)
            except re.error as error:
                raise wrong(f"{pattern!r} is not a regular expression ({error})", "prunable") from None
        return self


class HoldOut(Section):
    """Splits one file into train and dev by the values of a column, so that no group is in both."""

    column: str = Field(description="e.g. the film a review is about")
    fraction: Number = Field(0.1, gt=0, le=0.5, description="share of the groups in dev, rounded to 1/2, 1/3, 1/4, …")
    fold: Position = Field(0, description="which of these parts is dev")

    @model_validator(mode="after")
    def _fold_exists(self) -> "HoldOut":
        parts = round(1 / self.fraction)
        if self.fold >= parts:
            raise wrong(f"there are only {parts} parts, numbered from 0", "fold", instead=f"at most {parts - 1}")
        return self


class Task(Section):
    """A classification task over one or two text columns. `tasks.py` turns it into data, head and metrics."""

    train: str = Field(
        min_length=1, description="file (TSV, CSV, JSON lines; .bz2/.gz/.xz too) or package:<distribution>/<file>"
    )
    dev: str | None = Field(None, description="file of the split that is measured; or use hold_out")
    hold_out: HoldOut | None = None
    rows: dict[str, tuple[str, ...]] = Field({}, description="keep only rows whose column has one of these values")
    columns: tuple[str, ...] = Field(
        ("sentence",), min_length=1, max_length=2, description="the text column, or the two of a pair of sentences"
    )
    label: str = Field("label", description="column of the label")
    labels: tuple[str, ...] = Field((), description="label names in the order of the classes; empty: as found in train")
    metrics: tuple[Literal["accuracy", "f1"], ...] = Field(
        ("accuracy",), min_length=1, description="what is measured on dev; the first one counts for tuning"
    )
    max_seq_length: Count = Field(128, description="tokens per example; longer ones are cut")
    note: str = Field("", description="said beside every result, e.g. 'reduced training data'")
    ready: dict[Literal["task_teacher", "transfer"], str] = Field({}, description="checkpoints used in place of stages")

    @model_validator(mode="after")
    def _makes_sense(self) -> "Task":
        if (self.dev is None) == (self.hold_out is None):
            raise wrong("needs exactly one of `dev` and `hold_out`", instead="dev: <file>")
        if self.label in self.columns:
            raise wrong(f"{self.label!r} is the label: as a text it would give the answer away", "columns")
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise wrong("must be two or more different names", "labels", instead="e.g. [negative, positive]")
        return self


class Corpus(Section):
    """Text for pre-training: files of paragraphs, and/or the train texts of tasks."""

    files: tuple[str, ...] = Field((), description="plain text, one paragraph a line; .xz/.gz/.bz2 too")
    tasks: tuple[str, ...] = Field((), description="names of tasks whose train texts (never labels) are used")
    max_seq_length: Count = Field(128, description="tokens per sequence")
    mlm_probability: Number = Field(0.15, gt=0, lt=1, description="share of the tokens to be guessed")
    pack: bool = Field(True, description="join paragraphs to full sequences; off: one sequence per text")
    limit: Count | None = Field(None, description="use only this many sequences")

    @model_validator(mode="after")
    def _some_text(self) -> "Corpus":
        if not self.files and not self.tasks:
            raise wrong("needs `files`, `tasks` or both", instead="files: [text.txt]")
        return self


class TrainOnly(Section):
    """`teacher` (dense model fitted to the corpus, MLM) and `task_teacher` (fitted to a task)."""

    train: Train


class Pruner(Section):
    """INC's `!Pruner`; what it leaves out is taken from `weight_compression`."""

    prune_type: Literal["magnitude", "basic_magnitude", "pattern_lock"] = Field(
        "magnitude",
        description="magnitude: the smallest weights go (basic_magnitude is the same); pattern_lock: zeros stay",
    )
    start_step: Position | None = Field(None, description="in place of weight_compression's")
    end_step: Position | None = Field(None, description="in place of weight_compression's")
    update_frequency_on_step: Count | None = Field(None, description="in place of weight_compression's")
    initial_sparsity: Fraction | None = Field(None, description="in place of weight_compression's")
    target_sparsity: Fraction | None = Field(None, description="in place of weight_compression's")
    sparsity_decay_type: Decay | None = Field(None, description="in place of weight_compression's")
    prune_domain: Literal["local", "global"] | None = Field(None, description="in place of weight_compression's")
    pattern: str | None = Field(None, description="in place of weight_compression's")

    def own(self) -> dict[str, Any]:
        """What this pruner says itself."""
        return self.model_dump(exclude={"prune_type"}, exclude_none=True)


class WeightCompression(Section):
    """When, how far and in which pattern weights go. Steps are optimizer steps."""

    initial_sparsity: Fraction = Field(0.0, description="share of zeros at start_step")
    target_sparsity: Fraction = Field(0.9, description="share of zeros from end_step on, in each prunable matrix")
    start_step: Position = Field(0, description="first pruning step")
    end_step: Position = Field(0, description="last pruning step; the mask stays fixed afterwards")
    update_frequency_on_step: Count = Field(1, description="steps between two prunings")
    sparsity_decay_type: Decay = Field(
        "cubic", description="cubic is Zhu-Gupta's; exp, cos, linear and cube mean what INC means by them"
    )
    prune_domain: Literal["local", "global"] = Field("local", description="local: same sparsity in each matrix")
    pattern: str = Field("tile_pattern_1x1", description="tile_pattern_1x1, tile_pattern_4x1, or N:M such as 2:4")
    pruners: tuple[Pruner, ...] = Field(
        (Pruner(),), min_length=1, max_length=1, description="INC's list of pruners; here exactly one"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> "WeightCompression":
        resolved = self.resolved()
        if resolved.end_step < resolved.start_step:
            raise wrong(f"must not be before start_step ({resolved.start_step})", "end_step")
        if resolved.initial_sparsity > resolved.target_sparsity:
            raise wrong(f"must not be above target_sparsity ({resolved.target_sparsity})", "initial_sparsity")
        if self.pruners[0].prune_type == "pattern_lock":
            raise wrong("pattern_lock keeps zeros and makes none", "pruners", instead="prune_type: magnitude")
        return self

    def resolved(self) -> "WeightCompression":
        """The same with the pruner's own values put over the section's."""
        return self.model_copy(update=self.pruners[0].own())


class PruningApproach(Section):
    """INC's form."""

    weight_compression: WeightCompression = WeightCompression()


class Pruning(Section):
    """Gradual pruning; `backend` says who picks the weights, the mask is always ours."""

    backend: Literal["inc", "nncf", "magnitude"] = Field(
        "inc", description="inc: neural-compressor (all patterns); nncf; magnitude: plain torch, needs neither"
    )
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
        """Which pruners run: only the lock."""

        pruners: tuple[Pruner, ...] = Field(
            (Pruner(prune_type="pattern_lock"),),
            min_length=1,
            max_length=1,
            description="[!Pruner {prune_type: pattern_lock}]",
        )

        @model_validator(mode="after")
        def _only_locks(self) -> "LockApproach.Compression":
            if self.pruners[0].prune_type != "pattern_lock" or self.pruners[0].own():
                raise wrong(
                    "the pattern is locked here: pruning belongs to `student`",
                    "pruners",
                    instead="[!Pruner {prune_type: pattern_lock}], or leave the key out",
                )
            return self

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

    granularity: Literal["per_channel", "per_tensor"] = Field(
        "per_channel", description="one scale per output channel, or one per matrix (the paper)"
    )


class ActivationConfig(Section):
    """Quantization of activations: 8 bits."""

    scheme: Literal["asym", "sym"] = Field("asym", description="asym: uint8 with a zero point; sym: int8")


class ModelWise(Section):
    """INC's form."""

    weight: WeightConfig = WeightConfig()
    activation: ActivationConfig = ActivationConfig()


class Calibration(Section):
    """Examples from which the first ranges are taken."""

    sampling_size: Count = Field(128, description="number of training examples")


class Quantization(Section):
    """8-bit quantization-aware training, by NNCF."""

    approach: Literal["quant_aware_training"] = Field("quant_aware_training", description="INC's key; the only one")
    calibration: Calibration = Calibration()
    model_wise: ModelWise = ModelWise()
    embeddings: bool = Field(True, description="quantize the embeddings too (smaller file)")
    overflow_fix: Literal["auto", "enable", "disable"] = Field(
        "auto", description="7-bit weight range against saturation on CPUs without VNNI; auto reads the CPU"
    )


class AccuracyCriterion(Section):
    """INC's promise: INT8 against the FP32 model that was quantized; exactly one of the two."""

    relative: Fraction | None = Field(None, description="largest loss as a share of the FP32 metric")
    absolute: Fraction | None = Field(None, description="largest loss in the metric itself (0.01 is one point)")

    @model_validator(mode="after")
    def _one(self) -> "AccuracyCriterion":
        if (self.relative is None) == (self.absolute is None):
            raise wrong("needs exactly one of `relative` and `absolute`", instead="relative: 0.01")
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

    variants: tuple[Variant, ...] = Field(
        ("dense-fp32", "dense-int8", "sparse-fp32", "sparse-int8"),
        min_length=1,
        description="what to export and compare",
    )
    tolerance: Number = Field(0.05, gt=0, description="largest |IR - torch| of INT8 logits, as a share of their range")
    metric_tolerance: Fraction = Field(0.01, description="largest |IR - torch| of the metric on the whole dev split")


class PerformanceConfigs(Section):
    """INC's form: cores and instances; benchmark_app's -nthreads and -nstreams."""

    cores_per_instance: Count | None = Field(None, description="threads; default: all cores")
    num_of_instance: Count = Field(1, description="inference streams that run side by side")


class Performance(Section):
    """Latency and throughput by benchmark_app, variants interleaved."""

    warmup: Position = Field(1, description="rounds thrown away before those that count")
    iteration: Count = Field(3, description="rounds over all variants")
    seconds: Count = Field(3, description="length of one benchmark_app run")
    batch_sizes: tuple[Count, ...] = Field((1, 8), min_length=1, description="examples per inference; each is measured")
    sequence_length: Count = Field(128, description="tokens per example, padded")
    configs: PerformanceConfigs = PerformanceConfigs()


class Evaluation(Section):
    """INC's form; accuracy is always measured on the whole dev split."""

    performance: Performance = Performance()


class Benchmark(Section):
    """Accuracy, size and speed of each IR."""

    evaluation: Evaluation = Evaluation()


class Recipe(Section):
    """One pre-training and any number of tasks; no task repeats the pruning."""

    version: Number = Field(1.0, ge=1, lt=2, description="version of this format")
    name: Name = Field(description="what the results are called: they go to runs/<name>")
    description: str = Field("", description="one line, shown when the recipe runs")
    seed: Position = Field(42, description="seed of all randomness")
    threads: Count | None = Field(None, description="torch's threads; default: all cores")
    model: Model
    corpus: Corpus | None = None
    tasks: dict[Name, Task] = Field({}, description="name -> task; all share the one student")
    teacher: TrainOnly | None = None
    student: Student | None = None
    task_teacher: TrainOnly | None = None
    transfer: Transfer | None = None
    quantize: Quantize | None = None
    export: Export | None = None
    benchmark: Benchmark | None = None
    ready: dict[Literal["teacher", "student"], str] = Field({}, description="checkpoints used in place of stages")

    @model_validator(mode="after")
    def _stages_have_what_they_need(self) -> "Recipe":
        for stage in ("teacher", "student"):
            if getattr(self, stage) and self.corpus is None:
                raise wrong("needs text: there is no `corpus` section", stage, instead="corpus: {files: [text.txt]}")
        for task in self.corpus.tasks if self.corpus else ():
            if task not in self.tasks:
                raise wrong(f"{task!r} is not under `tasks`", "corpus", "tasks", instead=", ".join(self.tasks))
        for stage in ("task_teacher", "transfer", "quantize", "export", "benchmark"):
            if getattr(self, stage) and not self.tasks:
                raise wrong("needs a task: there is none under `tasks`", stage, instead="tasks: {<name>: {…}}")
        if self.transfer and not (self.student or "student" in self.ready):
            raise wrong("needs a sparse model", "transfer", instead="a `student` section, or `ready: {student: …}`")
        return self
