"""Everything in which BERT-like architectures differ, one entry per `model_type`. Loads no torch.

The head for masked language modelling of an entry is built in `mlm_heads.py`, under the name that the entry gives.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# A parameter of an encoder layer, in every BERT-like naming: bert.encoder.layer.3…, distilbert.transformer.layer.3…,
# encoder.albert_layer_groups.0.albert_layers.0….
_LAYER = re.compile(r"(?:^|[._])layers?\.(\d+)\.(?!.*embedding)")
_BERT_MATRICES = {
    "attention.self.query": "hh",
    "attention.self.key": "hh",
    "attention.self.value": "hh",
    "attention.output.dense": "hh",
    "intermediate.dense": "fh",
    "output.dense": "hf",
}


@dataclass(frozen=True)
class Architecture:
    """What the toolkit needs to know about one `model_type`.

    Attributes:
        prefix: Name of the encoder in a model with a head; transformers' `base_model_prefix`.
        mlm_head: Attribute of a masked language model that holds its head; a key of `mlm_heads.MLM_HEADS`.
        layer: Name of a layer in the encoder; `{}` is its number.
        matrices: Name of each prunable matrix of a layer to its shape [rows, columns] in letters: h is the hidden size,
            f the feed-forward size.
        layers: Key of `config.json` with the number of layers.
        hidden: Key with the hidden size.
        feed_forward: Key with the size of the feed-forward layer.
        positions_after_padding: Positions are numbered from the padding token's id + 1, as in fairseq, so that the
            first entries of the position table cannot be used.
    """

    prefix: str
    mlm_head: str
    layer: str = "encoder.layer.{}"
    matrices: Mapping[str, str] = field(default_factory=lambda: _BERT_MATRICES)
    layers: str = "num_hidden_layers"
    hidden: str = "hidden_size"
    feed_forward: str = "intermediate_size"
    positions_after_padding: bool = False


_ROBERTA = Architecture("roberta", "lm_head", positions_after_padding=True)
ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture("bert", "cls"),
    "electra": Architecture("electra", "generator_lm_head"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": replace(
        _ROBERTA,
        prefix="mpnet",
        matrices={f"attention.attn.{name}": "hh" for name in "qkvo"}
        | {"intermediate.dense": "fh", "output.dense": "hf"},
    ),
    "distilbert": Architecture(
        "distilbert",
        "vocab_projector",
        layer="transformer.layer.{}",
        matrices={f"attention.{name}_lin": "hh" for name in ("q", "k", "v", "out")}
        | {"ffn.lin1": "fh", "ffn.lin2": "hf"},
        layers="n_layers",
        hidden="dim",
        feed_forward="hidden_dim",
    ),
    "albert": Architecture(  # all layers of a group share their weights
        "albert",
        "predictions",
        layer="encoder.albert_layer_groups.{}.albert_layers.0",
        matrices={f"attention.{name}": "hh" for name in ("query", "key", "value", "dense")}
        | {"ffn": "fh", "ffn_output": "hf"},
        layers="num_hidden_groups",
    ),
}


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The entry of a `config.json`; an unknown type is taken to have BERT's layout under its own name."""
    kind = str(config.get("model_type", ""))
    return ARCHITECTURES.get(kind) or Architecture(kind.partition("-")[0], "cls")


def is_in_layer(name: str) -> bool:
    """Whether a module or parameter of this name is part of an encoder layer, whose linear layers can be pruned."""
    return _LAYER.search(name) is not None


def split_layer(name: str) -> tuple[str, int, str]:
    """A parameter's name before the number of its layer, the number, and the name after it."""
    match = _LAYER.search(name)
    assert match is not None, f"{name} is in no layer"
    return name[: match.start(1)], int(match[1]), name[match.end(1) :]


def matrix_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Parameter name to (rows, columns) of the encoder's matrices, from the sizes in a `config.json`."""
    kind = architecture_of(config)
    sizes = {"h": config[kind.hidden], "f": config[kind.feed_forward]}
    return {
        f"{kind.prefix}.{kind.layer.format(number)}.{name}.weight": (sizes[shape[0]], sizes[shape[1]])
        for number in range(config[kind.layers])
        for name, shape in kind.matrices.items()
    }


def layer_count(config: Mapping[str, Any]) -> int:
    """Layers that a forward pass runs through; of ALBERT more than have weights of their own."""
    kind = architecture_of(config)
    return int(config.get("num_hidden_layers") or config[kind.layers])


def hidden_size(config: Mapping[str, Any]) -> int:
    """Width of the hidden states."""
    return int(config[architecture_of(config).hidden])


def shape_of(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """All that decides how long a training step takes: two configs of equal shape cost the same."""
    kind = architecture_of(config)
    keys = ("model_type", "vocab_size", "num_hidden_layers", kind.layers, kind.hidden, kind.feed_forward)
    return tuple(config.get(key) for key in keys)


def usable_positions(config: Mapping[str, Any]) -> int | None:
    """Largest number of tokens that a model takes, by its `config.json`; None if the file does not state it."""
    count = config.get("max_position_embeddings")
    if not isinstance(count, int) or count <= 0:
        return None
    if not architecture_of(config).positions_after_padding:
        return count
    padding = config.get("pad_token_id")
    return count - (padding if isinstance(padding, int) else 1) - 1


def encoder_prefix(folder: Path) -> str:
    """What transformers puts before the names of an encoder that has a head: `bert.`, `distilbert.`, `roberta.`.

    Empty if there is no readable `config.json`; loading the model reports that.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        return f"{architecture_of(config).prefix}." if config["model_type"] else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
