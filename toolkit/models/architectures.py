"""Everything in which BERT, DistilBERT, RoBERTa, ELECTRA and ALBERT differ, by model type. Loads no torch."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Inside an encoder's stack of layers, in every BERT-like naming: bert.encoder.layer.3…, roberta.encoder.layer.3…,
# distilbert.transformer.layer.3…, encoder.albert_layer_groups.0.albert_layers.0….
_IN_A_LAYER = re.compile(r"(^|[._])layers?\.\d+\.(?!.*embedding)")


def in_a_layer(name: str) -> bool:
    """Whether a module or parameter of this name is part of an encoder layer, whose linear ones can be pruned."""
    return _IN_A_LAYER.search(name) is not None


# Model type -> the encoder's matrices in one layer: name, and its shape in units of (hidden, feed-forward) size.
_BERT_LAYER = {
    "attention.self.query": "hh",
    "attention.self.key": "hh",
    "attention.self.value": "hh",
    "attention.output.dense": "hh",
    "intermediate.dense": "fh",
    "output.dense": "hf",
}
_DISTILBERT_LAYER = {
    "attention.q_lin": "hh",
    "attention.k_lin": "hh",
    "attention.v_lin": "hh",
    "attention.out_lin": "hh",
    "ffn.lin1": "fh",
    "ffn.lin2": "hf",
}


def matrix_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Parameter name -> (rows, columns) of the encoder's matrices, from the sizes in one of `CONFIGS`."""
    distil = config["model_type"] == "distilbert"
    sizes = {
        "h": config["dim" if distil else "hidden_size"],
        "f": config["hidden_dim" if distil else "intermediate_size"],
    }
    layers = config["n_layers" if distil else "num_hidden_layers"]
    stack = "distilbert.transformer.layer" if distil else f"{config['model_type']}.encoder.layer"
    return {
        f"{stack}.{number}.{name}.weight": (sizes[shape[0]], sizes[shape[1]])
        for number in range(layers)
        for name, shape in (_DISTILBERT_LAYER if distil else _BERT_LAYER).items()
    }


def _prefix(folder: Path) -> str:
    """What transformers puts before the names of an encoder that has a head: `bert.`, `distilbert.`, `roberta.`"""
    try:
        kind = json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # told by those who need it
    return f"{str(kind).removeprefix('xlm-').partition('-')[0]}."


def positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model takes at most, by its `config.json`; None: it does not say."""
    count = config.get("max_position_embeddings")
    numbered_from = 2 if "roberta" in str(config.get("model_type")) else 0  # its first positions stand for padding
    return count - numbered_from if isinstance(count, int) and count > 0 else None
