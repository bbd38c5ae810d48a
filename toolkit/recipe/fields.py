"""Base class, number types and validation errors shared by all recipe sections."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _reject_bool(value: Any) -> Any:
    """Rejects booleans: Python's True is an int, but `steps: true` in a recipe is an error."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "not a number")
    return value


def _at_most(limit: int) -> Callable[[Any], Any]:
    """Returns a validator; not pydantic's `le`, which would be part of every message about the key."""

    def check(value: Any) -> Any:
        if value > limit:
            raise PydanticCustomError(
                "recipe", "{what}", {"what": f"must be at most {limit:,}", "at": (), "instead": ""}
            )
        return value

    return check


_LARGEST = 1_000_000_000  # far above any count, and below what torch, numpy and OpenVINO store in 32 bits
_NotBool = BeforeValidator(_reject_bool)
Number = Annotated[float, _NotBool]
Fraction = Annotated[float, Field(ge=0, lt=1), _NotBool]
Count = Annotated[int, Field(gt=0), _NotBool, AfterValidator(_at_most(_LARGEST))]
Length = Annotated[int, Field(ge=8), _NotBool, AfterValidator(_at_most(_LARGEST))]  # [CLS] and [SEP] leave 6 for text
Position = Annotated[int, Field(ge=0), _NotBool, AfterValidator(_at_most(_LARGEST))]
Epochs = Annotated[float, Field(ge=0), _NotBool, AfterValidator(_at_most(_LARGEST))]
Period = Annotated[float, Field(gt=0), _NotBool, AfterValidator(_at_most(_LARGEST))]  # in epochs
Seed = Annotated[int, Field(ge=0), _NotBool, AfterValidator(_at_most(2**32 - 1))]  # numpy's largest
FileName = Annotated[str, AfterValidator(lambda name: _possible_path(name))]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]  # used as a folder name
NAME_RULE = "letters, digits, '-', '_' and '.', the first one a letter or digit; at most 100 characters"
_LONGEST_PATH, _LONGEST_NAME = 3000, 255  # bytes; Linux allows 4096, with the folder that a name is relative to

# The losses of a criterion: one that is set over the other replaces it, but a section may have both.
LOSSES = {"KnowledgeDistillationLoss", "IntermediateLayersKnowledgeDistillationLoss"}
# Mutually exclusive keys of one section.
EXCLUSIVE = (
    {"steps", "epoch"},
    {"start_step", "start_epoch"},
    {"end_step", "end_epoch"},
    {"update_frequency_on_step", "update_frequency"},
    {"relative", "absolute"},
    {"dev", "hold_out"},
    {"AdamW", "Adam", "SGD"},
    LOSSES,
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


def path_problem(name: str) -> str:
    """Returns why no file can have this name, for which a file system raises an error of its own; empty: it can."""
    size = len(name.encode("utf-8", "surrogatepass"))
    longest = max(len(part.encode("utf-8", "surrogatepass")) for part in name.split("/"))
    if size > _LONGEST_PATH or longest > _LONGEST_NAME:
        return f"longer than any file name: {size:,} bytes"
    return "contains a zero byte" if "\0" in name else ""


def _possible_path(name: str) -> str:
    if problem := path_problem(name):
        raise wrong(problem)
    return name


def require_expression(pattern: str, *at: str | int) -> None:
    """Rejects a text that is not a regular expression; `at` is its path, as for `wrong`."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:  # a{4294967296}, and a few thousand parentheses
        raise wrong(f"{pattern[:100]!r} is not a regular expression ({error})", *at) from None


def drop_excluded(section: dict[str, Any], key: str) -> None:
    """Removes the keys of a section that are mutually exclusive with `key`, which is about to be set."""
    if key in LOSSES and section.get(key) is not None:
        return  # this loss is changed, not added
    for group in EXCLUSIVE:
        for other in group - {key} if key in group else ():
            section.pop(other, None)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merges two sections of the same type recursively; values of `above` take precedence, lists are replaced."""
    joined = dict(below)
    for key in above:
        drop_excluded(joined, key)
    for key, value in above.items():
        under = joined.get(key)
        joined[key] = merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return joined


def default_choice(default: str) -> Callable[[Any], Any]:
    """Returns a validator that fills an empty one-of-several section with its default choice."""

    def fill(values: Any) -> Any:
        chosen = isinstance(values, dict) and any(value is not None for value in values.values())
        return values if chosen or not isinstance(values, dict) else {default: {}}

    return fill
