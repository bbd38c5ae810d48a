"""Recipe sections of the stages; a task can override some of them."""

from pydantic import Field, model_validator

from toolkit.recipe.distillation import Distillation, DistillationTrain, StudentDistillation
from toolkit.recipe.fields import Section, wrong
from toolkit.recipe.pruning import Pruner, TaskPruning, WeightCompression
from toolkit.recipe.quantization import Quantization, Tuning
from toolkit.recipe.reconstruction import StudentPruning
from toolkit.recipe.train import Train


class TrainOnly(Section):
    """`teacher` (dense model trained on the corpus with MLM) or `task_teacher` (fine-tuned on a task)."""

    train: Train


class Student(Section):
    """The sparse pre-trained model, shared by all tasks."""

    pruning: StudentPruning = StudentPruning()
    distillation: StudentDistillation | None = Field(
        None, description="training with the teacher; can be absent with `pruning.reconstruction`, which needs none"
    )

    @model_validator(mode="after")
    def _trained_or_reconstructed(self) -> "Student":
        if self.distillation is not None:
            return self
        if self.pruning.reconstruction is None:
            raise wrong(
                "is missing: without training, only `pruning.reconstruction` makes up for the zeros",
                "distillation",
                instead="distillation: {train: {epoch: 3}}, or pruning: {reconstruction: {}}",
            )
        at = ("pruning", "approach", "weight_compression")
        compression = self.pruning.approach.weight_compression
        places: dict[tuple[str | int, ...], Pruner | WeightCompression] = {at: compression}
        places |= {(*at, "pruners", number): pruner for number, pruner in enumerate(compression.pruners)}
        for path, section in places.items():
            for key in ("start_step", "end_step", "start_epoch", "end_epoch", "initial_sparsity"):
                if getattr(section, key):
                    what = "has no effect: without `distillation` there are no steps"
                    raise wrong(what, *path, key, instead="remove the key")
        return self

    @property
    def train(self) -> DistillationTrain | None:
        """Training settings; None: the student is reconstructed, and not trained."""
        return self.distillation.train if self.distillation else None


class Transfer(Section):
    """Fine-tuning of the sparse model with its pattern locked; with other pruners, a dense model pruned on the task."""

    pruning: TaskPruning = TaskPruning()
    distillation: Distillation | None = Field(
        None, description="training with a task teacher; alternative to `pruning.train`"
    )

    @model_validator(mode="after")
    def _one_training(self) -> "Transfer":
        _one_of(self.pruning.train, self.distillation, "pruning")
        return self

    @property
    def train(self) -> Train:
        """Training settings, with or without a teacher."""
        train = self.distillation.train if self.distillation else self.pruning.train
        assert train is not None
        return train


class Quantize(Section):
    """Quantization of the task model with its pattern locked; training can use distillation from the task teacher."""

    quantization: Quantization = Quantization()
    distillation: Distillation | None = Field(
        None, description="training with a task teacher; alternative to `quantization.train`"
    )
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
            what = "cannot be auto: bf16 would round the quantized values a second time"
            raise wrong(what, section, "train", "precision", instead="fp32")
        if self.train and self.train.recompute:
            raise wrong("fake quantization cannot be recomputed", section, "train", "recompute", instead="false")
        return self

    @property
    def train(self) -> Train | None:
        """Training settings, with or without a teacher; None: post-training quantization."""
        return self.distillation.train if self.distillation else self.quantization.train


def _one_of(plain: Train | None, distillation: Distillation | None, section: str) -> None:
    if (plain is None) == (distillation is None):
        raise wrong(
            f"needs exactly one of `distillation` (with a teacher) and `{section}.train` (without)",
            instead="distillation: {train: {epoch: 3}}",
        )
