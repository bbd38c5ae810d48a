"""What all sections of a recipe are made of: the base class, the kinds of numbers, and how a validator complains."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _no_truth_value(value: Any) -> Any:
    """Python counts true as 1; a recipe that says `steps: true` is mistaken."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "not a number")
    return value


_NotBool = BeforeValidator(_no_truth_value)
Number = Annotated[float, _NotBool]
Fraction = Annotated[float, Field(ge=0, lt=1), _NotBool]
Count = Annotated[int, Field(gt=0), _NotBool]
Length = Annotated[int, Field(ge=8), _NotBool]  # tokens; with fewer there is hardly a word beside [CLS] and [SEP]
Position = Annotated[int, Field(ge=0), _NotBool]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # it becomes the name of a folder
NAME_RULE = "letters, digits, '-', '_' and '.', the first one a letter or digit"

# Keys of one section that exclude each other.
EXCLUSIVE = (
    {"steps", "epoch"},
    {"relative", "absolute"},
    {"dev", "hold_out"},
    {"AdamW", "Adam", "SGD"},
    {"KnowledgeDistillationLoss", "IntermediateLayersKnowledgeDistillationLoss"},
)


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys are errors, `labels: [0, 1]` are texts, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


def wrong(what: str, *at: str | int, instead: str = "") -> PydanticCustomError:
    """What a validator raises: `what` is wrong with the key `at` of its section (no key: with the section)."""
    return PydanticCustomError("recipe", "{what}", {"what": what, "at": at, "instead": instead})


def drop_excluded(section: dict[str, Any], key: str) -> None:
    """Takes out what the value of `key` stands in place of: keys that exclude it."""
    for group in EXCLUSIVE:
        for other in group - {key} if key in group else ():
            section.pop(other, None)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two sections of the same kind as one: keys of `above` win, sections are joined key by key, lists replaced."""
    joined = dict(below)
    for key, value in above.items():
        drop_excluded(joined, key)
        under = joined.get(key)
        joined[key] = merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return joined


def default_choice(default: str) -> Callable[[Any], Any]:
    """A section that names one of several things names this one when it is empty."""

    def fill(values: Any) -> Any:
        said = isinstance(values, dict) and any(value is not None for value in values.values())
        return values if said or not isinstance(values, dict) else {default: {}}

    return fill
