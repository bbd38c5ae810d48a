"""The recipe's sections on distillation: the loss against the teacher, and where it is computed."""

from typing import Any, Literal

from pydantic import Field, model_validator

from toolkit.recipe.fields import Fraction, Number, Section, default_choice, wrong
from toolkit.recipe.train import Precision, Train


class KDLossSettings(Section):
    """loss_weights[0] * task loss + loss_weights[1] * T^2 * distance(teacher, student); paper, section 3."""

    temperature: Number = Field(2.0, gt=0, description="T: logits are divided by it before they are compared")
    loss_types: tuple[Literal["CE"], Literal["KL", "CE", "MSE"]] = Field(
        ("CE", "KL"),
        description="cross entropy with the labels; then the distance from the teacher: KL divergence, its soft cross "
        "entropy (CE: the same gradient), or the mean squared difference of logits (MSE)",
    )
    loss_weights: tuple[Number, Number] = Field((0.5, 0.5), description="weights of the two losses; they add up to 1")

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> "KDLossSettings":
        if min(self.loss_weights) < 0 or abs(sum(self.loss_weights) - 1) > 1e-9:
            raise wrong("must be two numbers >= 0 that add up to 1", "loss_weights", instead="e.g. [0.5, 0.5]")
        return self


class IntermediateSettings(Section):
    """Sum of loss_weights[i] * distance(student's layer, teacher's layer), over pairs of layers."""

    layer_mappings: tuple[tuple[str, str] | tuple[str, int, str, int], ...] = Field(
        min_length=1,
        description="[student's layer, teacher's layer], or [layer, output, layer, output] where a layer gives several",
    )
    loss_types: tuple[Literal["MSE", "L1", "KL"], ...] = Field((), description="one for each pair; default: MSE")
    loss_weights: tuple[Number, ...] = Field((), description="one for each pair; default: all alike, adding up to 1")
    add_origin_loss: bool = Field(False, description="add the loss with the labels")

    @model_validator(mode="after")
    def _one_for_each_pair(self) -> "IntermediateSettings":
        pairs = len(self.layer_mappings)
        for key in ("loss_types", "loss_weights"):
            if getattr(self, key) and len(getattr(self, key)) != pairs:
                raise wrong(f"has {len(getattr(self, key))} values for {pairs} pairs of layers", key)
        if any(weight < 0 for weight in self.loss_weights):
            raise wrong("must be numbers >= 0", "loss_weights")
        return self

    def pairs(self) -> "list[tuple[str, int, str, int, str, float]]":
        """(student's layer, output, teacher's layer, output, loss type, weight) of each pair."""
        count = len(self.layer_mappings)
        types, weights = self.loss_types or ("MSE",) * count, self.loss_weights or (1 / count,) * count
        found = []
        for mapping, kind, weight in zip(self.layer_mappings, types, weights, strict=True):
            student, output, teacher, other = mapping if len(mapping) == 4 else (mapping[0], 0, mapping[1], 0)
            found.append((student, output, teacher, other, kind, weight))
        return found


class Criterion(Section):
    """INC's form: the loss's name, then its settings; one loss, KnowledgeDistillationLoss when nothing is said."""

    KnowledgeDistillationLoss: KDLossSettings | None = Field(None, json_schema_extra={"default": {}})
    IntermediateLayersKnowledgeDistillationLoss: IntermediateSettings | None = None

    _fill = model_validator(mode="before")(default_choice("KnowledgeDistillationLoss"))

    @model_validator(mode="after")
    def _one(self) -> "Criterion":
        if self.KnowledgeDistillationLoss and self.IntermediateLayersKnowledgeDistillationLoss:
            raise wrong("takes one loss", instead="one of the two")
        return self

    @property
    def settings(self) -> "KDLossSettings | IntermediateSettings":
        """Those of the loss that is named; their type says which it is."""
        chosen = self.IntermediateLayersKnowledgeDistillationLoss or self.KnowledgeDistillationLoss
        assert chosen is not None
        return chosen


class DistillationTrain(Train):
    """`Train` with a distillation loss."""

    criterion: Criterion = Criterion()
    teacher_precision: Precision | None = Field(
        None, description="of the teacher's forward pass, which has no gradients to lose; default: that of the student"
    )

    @model_validator(mode="after")
    def _whole_layers_if_compiled(self) -> "DistillationTrain":
        if self.compile and self.criterion.IntermediateLayersKnowledgeDistillationLoss:
            raise wrong("cannot be true where layers are compared: each is looked into", "compile", instead="false")
        return self


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


class Distillation(Section):
    """Fine-tuning with a task teacher."""

    train: DistillationTrain
