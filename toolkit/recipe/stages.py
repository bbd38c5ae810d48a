"""Recipe sections of the stages, of which a task can override some, and of the student's reconstruction."""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from toolkit.recipe.distillation import Distillation, DistillationTrain, StudentDistillation, Unlabelled
from toolkit.recipe.fields import Count, Position, Section, wrong
from toolkit.recipe.pruning import LOCK, SPARSE_GPT, Pruner, Pruning, TaskPruning, WeightCompression
from toolkit.recipe.quantization import AccuracyCriterion, Quantization, Tuning
from toolkit.recipe.train import Train

ReconstructionMethod = Literal["admm", "obs"]


class ReconstructionCalibration(Section):
    """The text on which the inputs of the matrices are measured: sequences of the corpus's train split."""

    sequences: Count = Field(
        256, description="number of sequences, drawn from the train split of `corpus` by the recipe's seed"
    )


class Reconstruction(Section):
    """Reconstruction at each mask update: zeros that change a layer's outputs least, and new values of the others."""

    method: ReconstructionMethod = Field(
        "admm",
        description="admm: ADMM, then least squares on the mask; obs: SparseGPT (optimal brain surgeon in blocks of "
        "columns), faster and less accurate",
    )
    calibration: ReconstructionCalibration = ReconstructionCalibration()
    error_correction: bool = Field(
        True, description="make up for the errors of earlier layers: aim at the dense outputs for the dense inputs"
    )


def _written_pruners(values: Any) -> list[dict[str, Any]]:
    """Returns the pruners of a section that is not validated yet; empty if it is not of that form."""
    for key in ("approach", "weight_compression", "pruners"):
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, list) and all(isinstance(pruner, dict) for pruner in values) else []


class StudentPruning(Pruning):
    """Pruning of the student, with or without reconstruction."""

    reconstruction: Reconstruction | None = Field(
        None,
        description="choose the zeros by the outputs of the layers and compute the kept weights again, from text alone;"
        " absent: the back end chooses, and only training changes weights",
    )

    @model_validator(mode="before")
    @classmethod
    def _names_of_inc(cls, values: Any) -> Any:
        """Reads INC 3's prune type `sparse_gpt`: magnitude, with reconstruction by OBS."""
        pruners = _written_pruners(values)
        named = [number for number, pruner in enumerate(pruners) if pruner.get("prune_type") == SPARSE_GPT]
        if not named:
            return values
        plain = [p | {"prune_type": "magnitude"} if n in named else p for n, p in enumerate(pruners)]
        compression = values["approach"]["weight_compression"] | {"pruners": plain}
        changed = values | {"approach": values["approach"] | {"weight_compression": compression}}
        section = values.get("reconstruction") or {}
        if not isinstance(section, dict):
            return changed  # which the section refuses
        if section.get("method", "obs") != "obs":
            at = ("approach", "weight_compression", "pruners", named[0], "prune_type")
            what = f"{SPARSE_GPT} is reconstruction by obs, not by {section['method']!r}"
            raise wrong(what, *at, instead="magnitude")
        return changed | {"reconstruction": section | {"method": "obs"}}

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves the key out if it is absent: cache keys stay those of recipes from before there was one."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key != "reconstruction" or value is not None}

    @model_validator(mode="after")
    def _can_be_reconstructed(self) -> "StudentPruning":
        if self.reconstruction is None:
            return self
        if self.backend != type(self).model_fields["backend"].default:
            raise wrong("has no effect: reconstruction chooses the weights", "backend", instead="remove the key")
        for number, pruner in enumerate(self.approach.weight_compression.pruners):
            if pruner.prune_type not in ("magnitude", LOCK):
                at = ("approach", "weight_compression", "pruners", number, "prune_type")
                raise wrong(f"{pruner.prune_type} cannot be combined with reconstruction", *at, instead="magnitude")
        return self


class TrainOnly(Section):
    """`teacher` (dense model trained on the corpus with MLM) or `task_teacher` (fine-tuned on a task)."""

    train: Train


class Student(Section):
    """The sparse pre-trained model, shared by all tasks."""

    layers: Count | tuple[Position, ...] | None = Field(
        None,
        description="encoder layers of the teacher that the student keeps: how many (those are removed one by one that "
        "the last hidden state needs least), or which ones, numbered from 0 as in the names of weights; default: all",
    )
    pruning: StudentPruning | None = Field(
        StudentPruning(), description="null: the student stays dense and has fewer layers"
    )
    distillation: StudentDistillation | None = Field(
        None, description="training with the teacher; can be absent with `pruning.reconstruction`, which needs none"
    )

    @model_validator(mode="after")
    def _trained_or_reconstructed(self) -> "Student":
        if self.distillation is not None:
            return self
        if self.pruning is None or self.pruning.reconstruction is None:
            raise wrong(
                "is missing: without training, only `pruning.reconstruction` makes up for what is left out",
                "distillation",
                instead="distillation: {train: {epoch: 3}}, or pruning: {reconstruction: {}}",
            )
        at = ("pruning", "approach", "weight_compression")
        compression = self.pruning.approach.weight_compression
        places: dict[tuple[str | int, ...], Pruner | WeightCompression] = {at: compression}
        places |= {(*at, "pruners", number): pruner for number, pruner in enumerate(compression.pruners)}
        for path, section in places.items():
            given = [key for key in ("start_step", "end_step", "initial_sparsity") if getattr(section, key)]
            given += [k for k in ("start_epoch", "end_epoch", "update_frequency") if getattr(section, k) is not None]
            if given:
                what = "has no effect: without `distillation` there are no steps"
                raise wrong(what, *path, given[0], instead="remove the key")
        return self

    @property
    def train(self) -> DistillationTrain | None:
        """Training settings; None: the student is reconstructed, and not trained."""
        return self.distillation.train if self.distillation else None

    @model_validator(mode="after")
    def _smaller(self) -> "Student":
        if isinstance(self.layers, tuple) and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            raise wrong("must be one or more numbers in increasing order", "layers", instead="e.g. [1, 3, 5]")
        if self.pruning is None and self.layers is None:
            what = "without pruning and with all layers, the student would be a copy of its teacher"
            raise wrong(what, "pruning", instead="layers: 3 beside `pruning: null`, or a `pruning` section")
        return self


class TransferReconstruction(Section):
    """Start of a transfer: the kept weights that give the outputs of the task teacher's matrices best."""

    examples: Count = Field(
        1024, description="number of training examples on which the inputs of the matrices are measured"
    )


class TransferTuning(Section):
    """What the zeros may cost. The result is compared with it; nothing is searched."""

    accuracy_criterion: AccuracyCriterion = Field(
        AccuracyCriterion(relative=0.02),
        description="maximum loss of the sparse FP32 model against the dense one, on dev; a variant in INT8 may lose "
        "that of `quantize.tuning` in addition. The run ends with exit code 4 above it",
    )


class Transfer(Section):
    """Fine-tuning of the sparse model with its pattern locked; with other pruners, a dense model pruned on the task."""

    pruning: TaskPruning = TaskPruning()
    distillation: Distillation | None = Field(
        None, description="training with a task teacher; alternative to `pruning.train`"
    )
    reconstruction: TransferReconstruction | None = Field(
        None,
        description="before the first step, compute the kept weights again, layer by layer, for the task "
        "teacher's outputs; its embeddings and head are taken over, the pattern stays locked",
    )
    tuning: TransferTuning = TransferTuning()

    @model_validator(mode="after")
    def _has_a_teacher(self) -> "Transfer":
        if self.reconstruction and self.distillation is None:
            raise wrong("needs a task teacher", "reconstruction", instead="distillation: {train: …}, or remove the key")
        if self.reconstruction and not self.pruning.locks_all:
            what = "needs the patterns of all matrices locked"
            raise wrong(what, "reconstruction", instead="remove the key, or `pruning.pruners`")
        return self

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

    @property
    def unlabelled(self) -> Unlabelled | None:
        """Training examples without labels beside those of the task's train split."""
        return self.distillation.unlabelled if self.distillation else None


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

    @property
    def unlabelled(self) -> Unlabelled | None:
        """Training examples without labels beside those of the task's train split."""
        return self.distillation.unlabelled if self.distillation else None


def _one_of(plain: Train | None, distillation: Distillation | None, section: str) -> None:
    if (plain is None) == (distillation is None):
        raise wrong(
            f"needs exactly one of `distillation` (with a teacher) and `{section}.train` (without)",
            instead="distillation: {train: {epoch: 3}}",
        )
