"""A BERT encoder as plain functions of its parameters, for torch.compile: no modules, no branches on data.

Parameters have the names and shapes of `transformers.BertModel`. Hidden states are [tokens, hidden]: all but attention
works on tokens. If every batch has the same number of tokens, whatever its shape, each function is compiled once.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Parameters = Mapping[str, Tensor]
Layer = list[Tensor]  # the parameters of a layer in the order of `PARTS`, weight and bias of each

PARTS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
PARTS += ("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")
MATRICES = tuple(part for part in PARTS if not part.endswith("LayerNorm"))
EPSILON = 1e-12


@dataclass
class Encoder:
    """Parameters of an encoder, sorted by layer.

    Attributes:
        parameters: Name -> parameter.
        heads: Number of attention heads.
    """

    parameters: dict[str, Tensor]
    heads: int = 12

    def __post_init__(self) -> None:
        count = 1 + max(int(n.split(".")[2]) for n in self.parameters if n.startswith("encoder.layer."))
        self.layers: list[Layer] = [self._layer(i) for i in range(count)]

    def _layer(self, i: int) -> Layer:
        return [self.parameters[f"encoder.layer.{i}.{part}.{kind}"] for part in PARTS for kind in ("weight", "bias")]

    def matrices(self) -> dict[str, Tensor]:
        """Name -> prunable matrix, in the order in which they are computed."""
        names = [f"encoder.layer.{i}.{part}.weight" for i in range(len(self.layers)) for part in MATRICES]
        return {name: self.parameters[name] for name in names}

    def trained(self) -> list[Tensor]:
        """All parameters of the layers; embeddings stay as they are."""
        return [parameter for layer in self.layers for parameter in layer]


def embed(p: Parameters, ids: Tensor, types: Tensor) -> Tensor:
    """Returns the embeddings of ids [b, s], as [b * s, hidden]."""
    name = "embeddings."
    found = F.embedding(ids, p[name + "word_embeddings.weight"])
    found = found + p[name + "position_embeddings.weight"][: ids.shape[1]]
    found = found + F.embedding(types, p[name + "token_type_embeddings.weight"])
    scale, shift = (p[f"{name}LayerNorm.{kind}"] for kind in ("weight", "bias"))
    return F.layer_norm(found.flatten(0, 1), found.shape[-1:], scale, shift, EPSILON)


def project(x: Tensor, layer: Layer) -> Tensor:
    """Returns queries, keys and values side by side, [tokens, 3 * hidden]."""
    weight, bias = torch.cat(layer[0:6:2]), torch.cat(layer[1:6:2])
    return F.linear(x, weight.to(x.dtype), bias.to(x.dtype))


def attend(qkv: Tensor, length: int, mask: Tensor | None, heads: int, drop: float = 0.0) -> Tensor:
    """Returns the context [tokens, hidden]; mask: bool [b, 1, 1, length], True where a token is real; None: all are."""
    hidden = qkv.shape[-1] // 3
    q, k, v = qkv.view(-1, length, 3, heads, hidden // heads).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=drop).transpose(1, 2).reshape(-1, hidden)


def after_attention(context: Tensor, x: Tensor, layer: Layer, drop: float = 0.0) -> Tensor:
    """Returns the input of the feed-forward block."""
    weight, bias, scale, shift = (parameter.to(x.dtype) for parameter in layer[6:10])
    found = F.dropout(F.linear(context, weight, bias), drop, drop > 0) + x
    return F.layer_norm(found, found.shape[-1:], scale, shift, EPSILON)


def inner(x: Tensor, layer: Layer) -> Tensor:
    """Returns the activations within the feed-forward block."""
    return F.gelu(F.linear(x, layer[10].to(x.dtype), layer[11].to(x.dtype)))


def after_feed_forward(activations: Tensor, x: Tensor, layer: Layer, drop: float = 0.0) -> Tensor:
    """Returns the output of the layer."""
    weight, bias, scale, shift = (parameter.to(x.dtype) for parameter in layer[12:16])
    found = F.dropout(F.linear(activations, weight, bias), drop, drop > 0) + x
    return F.layer_norm(found, found.shape[-1:], scale, shift, EPSILON)


def finish(context: Tensor, x: Tensor, layer: Layer, drop: float = 0.0) -> Tensor:
    """Returns the output of the layer from the context of its attention."""
    x = after_attention(context, x, layer, drop)
    return after_feed_forward(inner(x, layer), x, layer, drop)


class Compiled:
    """`project` and `finish`, compiled or as they are."""

    def __init__(self, compile: bool) -> None:
        self.project = torch.compile(project, fullgraph=True, dynamic=False) if compile else project
        self.finish = torch.compile(finish, fullgraph=True, dynamic=False) if compile else finish


def encode(
    functions: Compiled, model: Encoder, x: Tensor, length: int, mask: Tensor | None, drop: float = 0.0
) -> list[Tensor]:
    """Returns the outputs of all layers, each [tokens, hidden].

    Args:
        functions: Of a layer.
        model: The encoder; its parameters are cast to the dtype of `x`.
        x: Embeddings, [tokens, hidden].
        length: Tokens of a sequence.
        mask: As for `attend`.
        drop: Probability of dropout.
    """
    states = []
    for layer in model.layers:
        context = attend(functions.project(x, layer), length, mask, model.heads, drop)
        x = functions.finish(context, x, layer, drop)
        states.append(x)
    return states


def mean_pooled(states: Tensor, length: int, mask: Tensor | None) -> Tensor:
    """Returns the normalised mean over the real tokens of each sequence, float32 [b, hidden]."""
    rows = states.view(-1, length, states.shape[-1]).float()
    if mask is None:
        return F.normalize(rows.mean(1), dim=-1)
    weights = mask.view(len(rows), length, 1).float()
    return F.normalize((rows * weights).sum(1) / weights.sum(1), dim=-1)
