"""Types of the Intel Neural Compressor 1.x YAML format: the `train` section, shared by all of INC's stages."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from toolkit.recipe.fields import Count, Fraction, Number, Position, Section, wrong

T = TypeVar("T")
Anything = dict[str, Any]


def as_list(value: Any) -> Any:
    """INC accepts a single value where a list is expected."""
    return [value] if isinstance(value, str | int | float) else value


Listed = Annotated[tuple[T, ...], BeforeValidator(as_list)]


class Dataloader(Section):
    """INC's data loader; of its keys, only the batch size has an effect in this toolkit."""

    batch_size: Count | None = None
    last_batch: Literal["rollover", "discard"] = "rollover"
    shuffle: bool = False
    distributed: bool = False
    dataset: Anything | None = None
    filter: Anything | None = None
    transform: Anything | None = None


class AdamWSettings(Section):
    """The AdamW optimizer."""

    weight_decay: Number = Field(ge=0, description="0.01")
    learning_rate: Number = Field(0.001, gt=0)
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Number = Field(1e-7, gt=0)
    amsgrad: bool = False


class AdamSettings(AdamWSettings):
    """The Adam optimizer."""

    weight_decay: Number = Field(0.0, ge=0)


class SGDSettings(Section):
    """Stochastic gradient descent."""

    learning_rate: Number = Field(gt=0, description="0.001")
    momentum: Fraction = 0.0
    nesterov: bool = False
    weight_decay: Number = Field(0.0, ge=0)


def at_most_one(section: Section, what: str) -> None:
    """Raises an error if more than one of a section's keys is set."""
    named = [key for key in type(section).model_fields if getattr(section, key) is not None]
    if len(named) > 1:
        raise wrong(f"takes one {what}, not {' and '.join(named)}", instead=f"{named[0]} alone")


class Optimizer(Section):
    """One optimizer by name, with its settings."""

    SGD: SGDSettings | None = None
    AdamW: AdamWSettings | None = None
    Adam: AdamSettings | None = None

    @model_validator(mode="after")
    def _one(self) -> "Optimizer":
        at_most_one(self, "optimizer")
        return self


class CrossEntropyLossSettings(Section):
    """Task loss: cross entropy with the labels."""

    reduction: Literal["none", "sum", "mean", "auto", "sum_over_batch_size"] = "mean"
    from_logits: bool = False


class KDLossSettings(Section):
    """Weighted sum of task loss and distillation loss."""

    temperature: Number = Field(1.0, gt=0)
    loss_types: Annotated[tuple[Literal["CE", "KL", "MSE"], ...], Field(min_length=2, max_length=2)] = ("CE", "CE")
    loss_weights: Annotated[tuple[Annotated[Number, Field(ge=0)], ...], Field(min_length=2, max_length=2)] = (0.5, 0.5)

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> "KDLossSettings":
        if abs(sum(self.loss_weights) - 1) > 1e-9:
            raise wrong(f"must add up to 1, not {sum(self.loss_weights):g}", "loss_weights", instead="[0.5, 0.5]")
        return self


def _pairs_of_layers(mappings: Any) -> Any:
    """Converts INC's forms of a mapping to two or four values: [layer], [layer, layer], [[layer, output], …]."""
    return [_pair(mapping) for mapping in mappings] if isinstance(mappings, list | tuple) else mappings


def _pair(mapping: Any) -> Any:
    """Converts one mapping; one layer alone is that of both models, and a layer without an output has output 0."""
    layers = mapping if isinstance(mapping, list | tuple) else [mapping]
    if len(layers) == 1:
        layers = [*layers, *layers]
    if any(isinstance(layer, list | tuple) for layer in layers):
        halves = [[value for value in as_list(layer) if value != ""] for layer in layers]
        if any(len(half) > 1 for half in halves):
            halves = [half if len(half) > 1 else [*half, "0"] for half in halves]
        layers = [value for half in halves for value in half]
    return [str(value) if isinstance(value, int) else value for value in layers]


class IntermediateSettings(Section):
    """Distances between pairs of student and teacher layers."""

    layer_mappings: Annotated[tuple[tuple[str, ...], ...], BeforeValidator(_pairs_of_layers)] = Field(
        min_length=1, description="[[student layer, teacher layer]]"
    )
    loss_types: tuple[Literal["MSE", "KL", "L1"], ...] = ()
    loss_weights: tuple[Annotated[Number, Field(ge=0)], ...] = ()
    add_origin_loss: bool = False

    @model_validator(mode="after")
    def _pairs(self) -> "IntermediateSettings":
        for number, mapping in enumerate(self.layer_mappings):
            if len(mapping) not in (2, 4) or (len(mapping) == 4 and not (mapping[1] + mapping[3]).isdecimal()):
                raise wrong(
                    "must be [student layer, teacher layer] or [layer, output index, layer, output index]",
                    "layer_mappings",
                    number,
                )
        for key in ("loss_types", "loss_weights"):
            if getattr(self, key) and len(getattr(self, key)) != len(self.layer_mappings):
                raise wrong(f"has {len(getattr(self, key))} values for {len(self.layer_mappings)} pairs of layers", key)
        return self


class Criterion(Section):
    """One loss by name, with its settings."""

    CrossEntropyLoss: CrossEntropyLossSettings | None = None
    SparseCategoricalCrossentropy: CrossEntropyLossSettings | None = None
    KnowledgeDistillationLoss: KDLossSettings | None = None
    IntermediateLayersKnowledgeDistillationLoss: IntermediateSettings | None = None
    SelfKnowledgeDistillationLoss: Anything | None = None

    @model_validator(mode="after")
    def _one(self) -> "Criterion":
        at_most_one(self, "loss")
        return self


class Train(Section):
    """INC's training settings."""

    optimizer: Optimizer | None = None
    criterion: Criterion | None = None
    dataloader: Dataloader | None = None
    epoch: Count = 1
    start_epoch: Position = 0
    end_epoch: Count | None = None
    iteration: Count | None = None
    frequency: Count | None = None
    execution_mode: Literal["eager", "graph"] = "eager"
    postprocess: Anything | None = None
    hostfile: str | None = None

    @model_validator(mode="after")
    def _one_length(self) -> "Train":
        if self.end_epoch is None:
            return self
        length = self.end_epoch - self.start_epoch
        if length <= 0:
            raise wrong(f"must be after start_epoch ({self.start_epoch})", "end_epoch")
        if "epoch" in self.model_fields_set and self.epoch != length:
            raise wrong(
                f"epochs {self.start_epoch} to {self.end_epoch} are not {self.epoch}", "epoch", instead=f"{length}"
            )
        return self
