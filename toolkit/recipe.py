"""The typed recipe: one section per stage, in Intel Neural Compressor's vocabulary where INC has a word for it.

Pure data: no torch, no files read. `recipe_yaml.py` reads these types from YAML. A section that is absent is a
stage that does not run. Keys that INC 1.x knows keep INC's names and places (`pruning.approach.weight_compression`,
`distillation.train.criterion.KnowledgeDistillationLoss`, `quantization.approach`, `tuning.accuracy_criterion`,
`evaluation.performance.configs`); the rest are ours.
"""

import re
from typing import Literal

from pydantic import Field, model_validator

from toolkit.recipe_base import Count, Fraction, Name, Number, Position, Section, wrong
from toolkit.recipe_pruning import LOCK as LOCK
from toolkit.recipe_pruning import Pruning as Pruning
from toolkit.recipe_pruning import ResolvedPruner as ResolvedPruner
from toolkit.recipe_pruning import TaskPruning as TaskPruning
from toolkit.recipe_pruning import Tile as Tile
from toolkit.recipe_pruning import WeightCompression as WeightCompression
from toolkit.recipe_quantization import AccuracyCriterion as AccuracyCriterion
from toolkit.recipe_quantization import Quantization as Quantization
from toolkit.recipe_quantization import Tuning as Tuning
from toolkit.recipe_training import AdamSettings as AdamSettings
from toolkit.recipe_training import AdamWSettings as AdamWSettings
from toolkit.recipe_training import Criterion as Criterion
from toolkit.recipe_training import DistillationTrain as DistillationTrain
from toolkit.recipe_training import IntermediateSettings as IntermediateSettings
from toolkit.recipe_training import KDLossSettings as KDLossSettings
from toolkit.recipe_training import Optimizer as Optimizer
from toolkit.recipe_training import SGDSettings as SGDSettings
from toolkit.recipe_training import Train as Train

Variant = Literal["dense-fp32", "dense-int8", "sparse-fp32", "sparse-int8"]


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
    tuning_examples: Position = Field(
        1000, description="training examples, at most a tenth, that no stage trains on: tuning decides by them"
    )
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


class Distillation(Section):
    """Fine-tuning with a task teacher."""

    train: DistillationTrain


class Transfer(Section):
    """The sparse model fitted to a task, its pattern locked; or, with other pruners, a dense one pruned on the task."""

    pruning: TaskPruning = TaskPruning()
    distillation: Distillation | None = Field(None, description="training with a task teacher; or use `pruning.train`")

    @model_validator(mode="after")
    def _one_training(self) -> "Transfer":
        _one_of(self.pruning.train, self.distillation, "pruning")
        return self

    @property
    def train(self) -> Train:
        """How it trains, with or without a teacher."""
        train = self.distillation.train if self.distillation else self.pruning.train
        assert train is not None
        return train


class Quantize(Section):
    """The task model in 8 bits, pattern still locked, taught by the task teacher where it is trained."""

    quantization: Quantization = Quantization()
    distillation: Distillation | None = Field(None, description="training with a task teacher; or `quantization.train`")
    tuning: Tuning = Tuning()

    @model_validator(mode="after")
    def _trains_if_it_should(self) -> "Quantize":
        if self.quantization.approach == "quant_aware_training":
            _one_of(self.quantization.train, self.distillation, "quantization")
        elif self.distillation is not None:
            raise wrong(
                f"{self.quantization.approach} does not train",
                "distillation",
                instead="approach: quant_aware_training, or no distillation",
            )
        elif self.tuning.retrain_steps:
            raise wrong(f"{self.quantization.approach} does not train", "tuning", "retrain_steps", instead="0")
        return self

    @property
    def train(self) -> Train | None:
        """How it trains, with or without a teacher; None: post-training quantization."""
        return self.distillation.train if self.distillation else self.quantization.train


def _one_of(plain: Train | None, distillation: Distillation | None, section: str) -> None:
    if (plain is None) == (distillation is None):
        raise wrong(
            f"needs exactly one of `distillation` (with a teacher) and `{section}.train` (without)",
            instead="distillation: {train: {epoch: 3}}",
        )


class Export(Section):
    """OpenVINO IR folders."""

    variants: tuple[Variant, ...] = Field(
        ("dense-fp32", "dense-int8", "sparse-fp32", "sparse-int8"),
        min_length=1,
        description="what to export and compare",
    )
    tolerance: Number = Field(
        0.02,
        gt=0,
        description="mean |IR - torch| of INT8 logits at most, as a share of their range; ten times that for any one",
    )
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
        sparse = self.student is not None or "student" in self.ready
        if self.transfer and self.transfer.pruning.only_locks and not sparse:
            raise wrong("needs a sparse model", "transfer", instead="a `student` section, or `ready: {student: …}`")
        return self
