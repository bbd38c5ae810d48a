"""The recipe's section of each stage; a task may have some of its own in place of the recipe's."""

from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from toolkit.recipe.fields import Count, Fraction, Number, Position, Section, wrong
from toolkit.recipe.pruning import Pruning, TaskPruning
from toolkit.recipe.quantization import Quantization, Tuning
from toolkit.recipe.train import DistillationTrain, Train

Variant = Literal["dense-fp32", "dense-int8", "sparse-fp32", "sparse-int8", "sparse-engine-fp32", "sparse-engine-int8"]


class TrainOnly(Section):
    """`teacher` (dense model fitted to the corpus, MLM) and `task_teacher` (fitted to a task)."""

    train: Train


class Sample(Section):
    """Positions drawn by chance."""

    sample: Fraction = Field(
        gt=0, description="share of a sequence's tokens: the masked ones, and as many others as are lacking"
    )


Positions = Literal["masked", "all"] | Sample


class StudentDistillation(Section):
    """Pre-training loss of the student."""

    train: DistillationTrain
    positions: Positions = Field(
        "masked",
        description="tokens at which student and teacher are compared: the masked ones (cheap), every attended one "
        "(the paper), or {sample: 0.3}, the masked ones and others by chance",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_of_three(cls, values: Any) -> Any:
        """In one sentence: of a union, pydantic says what is wrong with each of its parts."""
        found = values.get("positions", "masked") if isinstance(values, dict) else "masked"
        share = found.get("sample") if isinstance(found, dict) and found.keys() == {"sample"} else None
        drawn = isinstance(share, int | float) and not isinstance(share, bool) and 0 < share < 1
        if not (drawn or isinstance(found, Sample) or found in ("masked", "all")):
            raise wrong("must be masked, all, or {sample: <share>}", "positions", instead="masked, or {sample: 0.3}")
        return values


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
        section = "distillation" if self.distillation else "quantization"
        if self.train and self.train.compile:
            raise wrong("fake quantization cannot be compiled", section, "train", "compile", instead="false")
        if self.train and self.train.precision == "auto":
            what = "cannot be auto: in bf16 the steps of 8 bits are rounded once more"
            raise wrong(what, section, "train", "precision", instead="fp32")
        if self.train and self.train.recompute:
            raise wrong("fake quantization cannot be recomputed", section, "train", "recompute", instead="false")
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
        get_args(Variant),
        min_length=1,
        description="what to export and compare; sparse-engine-*: on the sparse kernel",
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
