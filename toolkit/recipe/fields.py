"""Base class, number types and validation errors shared by all recipe sections."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _reject_bool(value: Any) -> Any:
    """Rejects booleans: Python's True is an int, but `steps: true` in a recipe is an error."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "not a number")
    return value


_NotBool = BeforeValidator(_reject_bool)
Number = Annotated[float, _NotBool]
Fraction = Annotated[float, Field(ge=0, lt=1), _NotBool]
Count = Annotated[int, Field(gt=0), _NotBool]
Length = Annotated[int, Field(ge=8), _NotBool]  # tokens; [CLS] and [SEP] leave too few for text below that
Position = Annotated[int, Field(ge=0), _NotBool]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # used as a folder name
NAME_RULE = "letters, digits, '-', '_' and '.', the first one a letter or digit"

# Mutually exclusive keys of one section.
EXCLUSIVE = (
    {"steps", "epoch"},
    {"start_step", "start_epoch"},
    {"end_step", "end_epoch"},
    {"update_frequency_on_step", "update_frequency"},
    {"relative", "absolute"},
    {"dev", "hold_out"},
    {"AdamW", "Adam", "SGD"},
    {"KnowledgeDistillationLoss", "IntermediateLayersKnowledgeDistillationLoss"},
)


class Section(BaseModel):
    """Base class of all sections: frozen, no unknown keys, numbers become strings where needed, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


def wrong(what: str, *at: str | int, instead: str = "") -> PydanticCustomError:
    """Returns the exception for a validator to raise.

    Args:
        what: Description of the error.
        at: Path of the key inside the validator's section; empty: the section itself.
        instead: What to write instead.
    """
    return PydanticCustomError("recipe", "{what}", {"what": what, "at": at, "instead": instead})


def drop_excluded(section: dict[str, Any], key: str) -> None:
    """Removes the keys of a section that are mutually exclusive with `key`."""
    for group in EXCLUSIVE:
        for other in group - {key} if key in group else ():
            section.pop(other, None)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merges two sections of the same type recursively; values of `above` take precedence, lists are replaced."""
    joined = dict(below)
    for key, value in above.items():
        drop_excluded(joined, key)
        under = joined.get(key)
        joined[key] = merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return joined


def default_choice(default: str) -> Callable[[Any], Any]:
    """Returns a validator that fills an empty one-of-several section with its default choice."""

    def fill(values: Any) -> Any:
        chosen = isinstance(values, dict) and any(value is not None for value in values.values())
        return values if chosen or not isinstance(values, dict) else {default: {}}

    return fill
