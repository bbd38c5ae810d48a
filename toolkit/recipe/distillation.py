"""Recipe sections for distillation: the loss against the teacher and the tokens at which it is computed."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from toolkit.recipe.fields import FileName, Fraction, Number, Position, Section, default_choice, wrong
from toolkit.recipe.train import Precision, Train


class KDLossSettings(Section):
    """loss_weights[0] * task loss + loss_weights[1] * T^2 * distance(teacher, student); paper, section 3."""

    temperature: Number = Field(
        2.0, gt=0, description="T: logits are divided by it before teacher and student are compared"
    )
    loss_types: tuple[Literal["CE"], Literal["KL", "CE", "MSE"]] = Field(
        ("CE", "KL"),
        description="[task loss, distillation loss]: cross entropy with the labels; KL divergence from the teacher, "
        "soft cross entropy with the teacher (CE: same gradient as KL), or mean squared error of the logits (MSE)",
    )
    loss_weights: tuple[Number, Number] = Field(
        (0.5, 0.5), description="weights of task loss and distillation loss; they must add up to 1"
    )

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> "KDLossSettings":
        if min(self.loss_weights) < 0 or abs(sum(self.loss_weights) - 1) > 1e-9:
            raise wrong("must be two numbers >= 0 that add up to 1", "loss_weights", instead="e.g. [0.5, 0.5]")
        return self


class IntermediateSettings(Section):
    """Sum of loss_weights[i] * distance(student layer, teacher layer) over pairs of layers."""

    layer_mappings: tuple[tuple[str, str] | tuple[str, int, str, int], ...] = Field(
        (),
        description="[student layer, teacher layer], or [layer, output index, layer, output index] for layers with "
        "several outputs; default: every encoder layer with the teacher's layer that it was copied from, the last one "
        "with the teacher's last",
    )
    loss_types: tuple[Literal["MSE", "L1", "KL", "SquareHead"], ...] = Field(
        (),
        description="one per pair, or one for all; SquareHead: squared difference divided by the square of the "
        "teacher's output; default: MSE",
    )
    loss_weights: tuple[Number, ...] = Field(
        (), description="one per pair, or one that all pairs share in equal parts; default: [1]"
    )
    add_origin_loss: bool = Field(False, description="add the task loss (with the labels)")

    @model_validator(mode="after")
    def _one_for_each_pair(self) -> "IntermediateSettings":
        pairs = len(self.layer_mappings)
        for key in ("loss_types", "loss_weights"):
            count = len(getattr(self, key))
            if count > 1 and count != pairs:
                named = f"{pairs} pairs of layers" if pairs else "all pairs of layers: there are no layer_mappings"
                raise wrong(f"has {count} values for {named}", key)
        if any(weight < 0 for weight in self.loss_weights):
            raise wrong("must be numbers >= 0", "loss_weights")
        return self

    def pairs(self, default: Callable[[], Sequence[tuple[str, str]]]) -> list[tuple[str, int, str, int, str, float]]:
        """Returns (student layer, output index, teacher layer, output index, loss type, weight) of each pair.

        Args:
            default: Returns the pairs of layers of a recipe without `layer_mappings`.
        """
        mappings = self.layer_mappings or tuple(default())
        count = len(mappings)
        types, weights = self.loss_types or ("MSE",), self.loss_weights or (1.0,)
        if len(types) == 1:
            types *= count
        if len(weights) == 1:
            weights = (weights[0] / count,) * count
        found: list[tuple[str, int, str, int, str, float]] = []
        for mapping, kind, weight in zip(mappings, types, weights, strict=True):
            student, output, teacher, other = mapping if len(mapping) == 4 else (mapping[0], 0, mapping[1], 0)
            found.append((student, output, teacher, other, kind, weight))
        return found


class Criterion(Section):
    """INC's form: a loss by name, with its settings; default: KnowledgeDistillationLoss. Two losses are added."""

    KnowledgeDistillationLoss: KDLossSettings | None = Field(
        None, json_schema_extra={"default": {}}, description="loss on the logits, with the labels' loss as a part"
    )
    IntermediateLayersKnowledgeDistillationLoss: IntermediateSettings | None = Field(
        None, description="loss on the outputs of layers"
    )

    _fill = model_validator(mode="before")(default_choice("KnowledgeDistillationLoss"))

    @model_validator(mode="after")
    def _labels_once(self) -> "Criterion":
        if self.logits and self.layers and self.layers.add_origin_loss:
            at = ("IntermediateLayersKnowledgeDistillationLoss", "add_origin_loss")
            raise wrong("the task loss is a part of KnowledgeDistillationLoss already", *at, instead="false")
        return self

    def use_of_labels(self) -> tuple[tuple[str, str], str] | None:
        """Returns the keys of a part of the loss that needs labels, and their value without it; None: none does."""
        if self.logits is not None and self.logits.loss_weights[0] > 0:
            return ("KnowledgeDistillationLoss", "loss_weights"), "[0, 1]"
        if self.layers is not None and self.layers.add_origin_loss:
            return ("IntermediateLayersKnowledgeDistillationLoss", "add_origin_loss"), "false"
        return None

    @property
    def logits(self) -> KDLossSettings | None:
        """The settings of the loss on logits; None: logits are not compared."""
        return self.KnowledgeDistillationLoss

    @property
    def layers(self) -> IntermediateSettings | None:
        """The settings of the loss on hidden states; None: hidden states are not compared."""
        return self.IntermediateLayersKnowledgeDistillationLoss


class DistillationTrain(Train):
    """`Train` with a distillation loss."""

    criterion: Criterion = Criterion()
    teacher_precision: Precision | None = Field(
        None,
        description="precision of the teacher's forward pass; default: the student's; auto: bf16 on GPUs that support "
        "it and CPUs with AMX, without a measurement, as for logits that are cached",
    )

    @model_validator(mode="after")
    def _whole_layers_if_compiled(self) -> "DistillationTrain":
        if self.compile and self.criterion.layers:
            what = "is not supported with a loss on layer outputs, which forward hooks record"
            raise wrong(what, "compile", instead="false")
        return self


class Sample(Section):
    """Randomly sampled positions."""

    sample: Fraction = Field(
        gt=0, description="fraction of a sequence's tokens: the masked ones, filled up with randomly drawn others"
    )


Positions = Literal["masked", "all"] | Sample


class StudentDistillation(Section):
    """Pre-training of the student with distillation from the teacher."""

    train: DistillationTrain
    positions: Positions = Field(
        "masked",
        description="tokens at which the distillation loss is computed: masked (fast), all (every attended token, as "
        "in the paper), or {sample: 0.3} (the masked ones and randomly drawn others)",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_of_three(cls, values: Any) -> Any:
        """Raises one error for the union: pydantic would report one per member."""
        found = values.get("positions", "masked") if isinstance(values, dict) else "masked"
        fraction = found.get("sample") if isinstance(found, dict) and found.keys() == {"sample"} else None
        sampled = isinstance(fraction, int | float) and not isinstance(fraction, bool) and 0 < fraction < 1
        if not (sampled or isinstance(found, Sample) or found in ("masked", "all")):
            raise wrong("must be masked, all, or {sample: <fraction>}", "positions", instead="masked, or {sample: 0.3}")
        return values


class Unlabelled(Section):
    """Training examples without labels, beside those of the task's train split: the task teacher labels them."""

    files: tuple[FileName, ...] = Field(
        (),
        description="files with the task's text columns, e.g. from logs, or patterns like *.csv; for single texts also "
        "plain text, one per line. Texts of the evaluation splits are left out",
    )
    pairs: Position = Field(
        0,
        description="`transfer` of a task whose two texts are of one sort, such as two questions: number of new pairs "
        "of each text with the most similar others, by the student's embeddings",
    )

    @model_validator(mode="after")
    def _some(self) -> "Unlabelled":
        if not self.files and not self.pairs:
            raise wrong("adds no examples", instead="files: [<file>], or pairs: 5")
        return self


class Distillation(Section):
    """Fine-tuning with distillation from a task teacher."""

    train: DistillationTrain
    unlabelled: Unlabelled | None = Field(
        None, description="examples without labels; `epoch` counts them, so compare at equal `steps`"
    )

    @model_validator(mode="after")
    def _teacher_alone(self) -> "Distillation":
        if self.unlabelled is None:
            return self
        if found := self.train.criterion.use_of_labels():
            raise wrong("`unlabelled` examples have no labels", "train", "criterion", *found[0], instead=found[1])
        return self
