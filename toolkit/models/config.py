"""Reading of `config.json`, with the type and range of every key that this toolkit uses. Does not import torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.core.errors import UserError
from toolkit.core.files import read_json

CONFIG = "config.json"

# The limits are far above any model, and low enough that a model of that size is refused before it fills the memory.
Layers = Annotated[int, Field(gt=0, le=1000)]
Size = Annotated[int, Field(gt=0, le=1 << 24)]


class _Config(BaseModel):
    """The keys of `config.json` that this toolkit reads; transformers checks the others."""

    model_config = ConfigDict(extra="allow", strict=True)

    model_type: str | None = None
    architectures: list[str] | None = None
    id2label: dict[Annotated[str, Field(pattern=r"^\d+$")], str] | None = None
    label2id: dict[str, int] | None = None
    num_labels: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    auto_map: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None
    num_hidden_layers: Layers | None = None
    n_layers: Layers | None = None
    num_hidden_groups: Layers | None = None
    global_attn_every_n_layers: Layers | None = None
    layer_types: Annotated[list[str], Field(max_length=1000)] | None = None
    kept_layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1000)] | None = None  # this toolkit's
    layers_before: Layers | None = None  # this toolkit's
    hidden_size: Size | None = None
    dim: Size | None = None
    intermediate_size: Size | None = None
    hidden_dim: Size | None = None
    embedding_size: Size | None = None
    vocab_size: Annotated[int, Field(ge=5, le=1 << 24)] | None = None  # five special tokens
    type_vocab_size: Annotated[int, Field(ge=0, le=1 << 24)] | None = None
    max_position_embeddings: Size | Literal[-1] | None = None  # -1: positions without a limit
    num_attention_heads: Size | None = None
    n_heads: Size | None = None
    pad_token_id: int | None = None


# Keys whose form people get wrong -> what transformers expects, and an example.
_FORMS = {
    "id2label": ("an object of class numbers and names", 'id2label: {"0": "negative", "1": "positive"}'),
    "architectures": ("a list of class names", 'architectures: ["BertForSequenceClassification"]'),
}


def stated(config: Mapping[str, Any], key: str) -> int:
    """Returns a size that a `config.json` must state; transformers has defaults for some, which are another model's.

    Raises:
        UserError: The key is missing.
    """
    if not isinstance(config.get(key), int):
        raise UserError(f"config.json does not state {key}", where="model.source", instead="a complete config.json")
    return int(config[key])


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the `config.json` of a checkpoint.

    Raises:
        UserError: The file is missing or damaged, or a key has a value that no model has.
    """
    path = folder / CONFIG
    values = read_json(path)
    try:
        _Config.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        instead = "a config.json as transformers writes it"
        if key in _FORMS:
            form, instead = _FORMS[key]
            what = f"{key} is {_described(values[key])}, where transformers expects {form}"
        else:
            message = f"{first['msg'][0].lower()}{first['msg'][1:]}"
            what = f"{key}: {message}" if key else "not a mapping of keys to values"
        raise UserError(what, where=str(path), instead=instead) from None
    return dict(values)


def _described(value: Any) -> str:
    kinds = {list: "a list", dict: "an object with other keys or values", str: "a text", bool: "a truth value"}
    return kinds.get(type(value), "a number")
