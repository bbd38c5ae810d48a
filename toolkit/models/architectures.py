"""Table of the differences between BERT-like architectures, one entry per `model_type`. Does not import torch.

`mlm_heads.py` builds the masked-LM head that an entry names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.models.config import read_config, stated

# Encoder layer in a parameter name, in all BERT-like naming schemes: bert.encoder.layer.3…,
# distilbert.transformer.layer.3…, encoder.albert_layer_groups.0.albert_layers.0….
_LAYER = re.compile(r"(?:^|[._])layers?\.(\d+)\.(?!.*embedding)")
# How parameter names of an encoder begin that was saved without a head.
BARE_ENCODER = ("encoder.", "transformer.", "embeddings.", "pooler.", "layers.", "final_norm.")
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
    """Parameter names and config keys of one `model_type`.

    Attributes:
        prefix: Name of the encoder within a model that has a head (`base_model_prefix` in transformers).
        mlm_head: Attribute that holds the head of a masked language model; a key of `mlm_heads.MLM_HEADS`.
        layer: Name of an encoder layer; `{}` stands for its number.
        matrices: Name of each prunable matrix of a layer -> its shape [rows, columns] as two letters: h is the hidden
            size, f the feed-forward size; q is 3 h (queries, keys and values in one matrix), g is 2 f (value and gate).
        layers: Key of the number of layers in `config.json`.
        hidden: Key of the hidden size.
        feed_forward: Key of the feed-forward size.
        positions_after_padding: Whether position ids start at the padding id + 1, as in fairseq, so that the first
            position embeddings are unused.
        each_matrix_runs_once: Whether a forward pass runs each matrix once, so that its inputs can be measured.
        answer_head: Name of the layer that gives the start and end of an answer in a model for question answering.
    """

    prefix: str
    mlm_head: str
    layer: str = "encoder.layer.{}"
    matrices: Mapping[str, str] = field(default_factory=lambda: _BERT_MATRICES)
    layers: str = "num_hidden_layers"
    hidden: str = "hidden_size"
    feed_forward: str = "intermediate_size"
    positions_after_padding: bool = False
    answer_head: str = "qa_outputs"
    each_matrix_runs_once: bool = True


_ROBERTA = Architecture("roberta", "lm_head", positions_after_padding=True)
ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture("bert", "cls"),
    "electra": Architecture("electra", "generator_lm_head"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "xlm-roberta-xl": _ROBERTA,
    "roberta-prelayernorm": replace(_ROBERTA, prefix="roberta_prelayernorm"),
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
    "albert": Architecture(  # the layers of a group share their weights
        "albert",
        "predictions",
        layer="encoder.albert_layer_groups.{}.albert_layers.0",
        matrices={f"attention.{name}": "hh" for name in ("query", "key", "value", "dense")}
        | {"ffn": "fh", "ffn_output": "hf"},
        layers="num_hidden_groups",
        each_matrix_runs_once=False,
    ),
    "deberta-v2": Architecture(  # queries and keys of relative positions come from the same matrices
        "deberta",
        "cls",
        matrices={f"attention.self.{name}_proj": "hh" for name in ("query", "key", "value")}
        | {name: _BERT_MATRICES[name] for name in ("attention.output.dense", "intermediate.dense", "output.dense")},
        each_matrix_runs_once=False,
    ),
    "modernbert": Architecture(
        "model",
        "decoder",
        layer="layers.{}",
        matrices={"attn.Wqkv": "qh", "attn.Wo": "hh", "mlp.Wi": "gh", "mlp.Wo": "hf"},
        answer_head="classifier",
    ),
}

# Types without an entry above -> attribute of their masked-LM head; their models are otherwise taken as transformers
# makes them. `check` refuses ibert and squeezebert, which have no linear layers, longformer and tapas, whose IRs fail.
_OTHER_HEADS = {
    **dict.fromkeys(("big_bird", "deberta", "ernie", "fnet", "layoutlm", "megatron-bert", "mra"), "cls"),
    **dict.fromkeys(("nomic_bert", "nystromformer", "roc_bert", "roformer", "yoso"), "cls"),
    **dict.fromkeys(("data2vec-text", "jina_embeddings_v3", "luke", "xmod"), "lm_head"),
    "convbert": "generator_lm_head",
}
# model_type -> attribute of the masked-LM head, a key of `mlm_heads.MLM_HEADS`. Other types may have an attribute of
# the same name with other layers in it.
MLM_HEAD_OF = {kind: entry.mlm_head for kind, entry in ARCHITECTURES.items()} | _OTHER_HEADS
# Types whose pre-training model has BERT's next-sentence head.
WITH_NEXT_SENTENCE = frozenset({"bert", "big_bird", "ernie", "fnet", "megatron-bert"})


def require_mlm_head(model_type: object) -> str:
    """Returns the attribute that holds the masked-LM head of a type.

    Raises:
        UserError: The head of this type is not known.
    """
    if not isinstance(model_type, str) or model_type not in MLM_HEAD_OF:
        raise UserError(
            f"the masked-LM head of {model_type} is not supported",
            where="model.source",
            instead=f"a model of type {', '.join(ARCHITECTURES)}",
        )
    return MLM_HEAD_OF[model_type]


def require_next_sentence_head(model_type: object) -> None:
    """Checks that models of a type have a head for next-sentence prediction.

    Raises:
        UserError: They have none.
    """
    if model_type not in WITH_NEXT_SENTENCE:
        raise UserError(
            f"{model_type} has no head for next-sentence prediction",
            where="corpus.pairs",
            instead="a BERT model, or remove `pairs`",
        )


def require_reconstructable(config: Mapping[str, Any] | None, where: str) -> None:
    """Checks that an encoder runs each matrix once: matrices are reconstructed one after the other, on their inputs.

    Args:
        config: Its `config.json`; None if that is not known.
        where: The recipe's key.

    Raises:
        UserError: It runs one several times.
    """
    if config is not None and not architecture_of(config).each_matrix_runs_once:
        kinds = ", ".join(kind for kind, entry in ARCHITECTURES.items() if entry.each_matrix_runs_once)
        what = f"a model of type {config.get('model_type')} runs a matrix several times in a forward pass"
        raise UserError(what, where=where, instead=f"no reconstruction, or a model of type {kinds}")


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Returns the entry for a `config.json`. An unknown type gets BERT's layout under its own prefix."""
    kind = str(config.get("model_type", ""))
    return ARCHITECTURES.get(kind) or Architecture(kind.partition("-")[0], "cls")


def is_in_layer(name: str) -> bool:
    """Returns whether a module or parameter of this name is in an encoder layer, whose linear layers can be pruned."""
    return _LAYER.search(name) is not None


def split_layer(name: str) -> tuple[str, int, str]:
    """Splits a parameter name at its layer number into (prefix, number, suffix)."""
    match = _LAYER.search(name)
    assert match is not None, f"{name} is not in an encoder layer"
    return name[: match.start(1)], int(match[1]), name[match.end(1) :]


def matrix_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Returns parameter name -> (rows, columns) of the encoder's matrices, from the sizes in a `config.json`."""
    kind = architecture_of(config)
    hidden, inner = config[kind.hidden], config[kind.feed_forward]
    sizes = {"h": hidden, "f": inner, "q": 3 * hidden, "g": 2 * inner}
    return {
        f"{kind.prefix}.{kind.layer.format(number)}.{name}.weight": (sizes[shape[0]], sizes[shape[1]])
        for number in range(config[kind.layers])
        for name, shape in kind.matrices.items()
    }


def layer_count(config: Mapping[str, Any]) -> int:
    """Returns the number of layers in a forward pass; in ALBERT larger than the number of distinct layers."""
    kind = architecture_of(config)
    return int(config.get("num_hidden_layers") or stated(config, kind.layers))


def layer_names(config: Mapping[str, Any]) -> list[str]:
    """Returns the names of the encoder's layers in a model with a head; layers that share weights are one."""
    kind = architecture_of(config)
    return [f"{kind.prefix}.{kind.layer.format(number)}" for number in range(stated(config, kind.layers))]


def attention_types(config: Mapping[str, Any]) -> list[str]:
    """Returns what each layer attends to, the entire text or a window of it; empty if all layers are alike."""
    if config.get("model_type") != "modernbert":
        return []
    stated_types, count = config.get("layer_types") or [], layer_count(config)
    every = config.get("global_attn_every_n_layers") or 3
    alternating = ["sliding_attention" if number % every else "full_attention" for number in range(count)]
    return list(stated_types) if len(stated_types) == count else alternating


def hidden_size(config: Mapping[str, Any]) -> int:
    """Returns the hidden size."""
    return stated(config, architecture_of(config).hidden)


def shape_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config values, by key, that determine the shapes of a model and the cost of its training step."""
    kind = architecture_of(config)
    keys = ("model_type", "vocab_size", "num_hidden_layers", kind.layers, kind.hidden, kind.feed_forward)
    return {key: config.get(key) for key in keys}


def usable_positions(config: Mapping[str, Any]) -> int | None:
    """Returns the maximum number of input tokens according to a `config.json`; None if the file does not state it."""
    count = config.get("max_position_embeddings")
    if not isinstance(count, int) or count <= 0:
        return None
    if not architecture_of(config).positions_after_padding:
        return count
    padding = config.get("pad_token_id")
    return count - (padding if isinstance(padding, int) else 1) - 1


def encoder_prefix(folder: Path) -> str:
    """Returns the prefix of encoder parameters in a model with a head: `bert.`, `distilbert.`, `roberta.`.

    Empty if `config.json` is missing or damaged; loading the model reports that.
    """
    try:
        config = read_config(folder)
    except UserError:
        return ""
    return f"{architecture_of(config).prefix}." if config.get("model_type") else ""
