"""Replacement of whole encoder layers of an IR by SparseEncoder operations.

A layer is what BERT, ALBERT, RoBERTa and its relatives, ELECTRA and DistilBERT have: attention with a padding mask, a
feed-forward, and a LayerNorm after each residual sum. All six matrices must be pruned. Consecutive layers become one
operation. Any deviation, such as another reader of an intermediate value, leaves a layer as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.ir import kernels
from toolkit.ir.constants import constant_of
from toolkit.ir.products import Product, Range, id_of, only_consumer, port_of


@dataclass(frozen=True)
class _Norm:
    """A LayerNorm.

    Attributes:
        last: Its last operation.
        scale: Factor of each feature, float32 [hidden].
        offset: Offset of each feature, float32 [hidden].
        epsilon: Term that is added to the variance.
    """

    last: Any
    scale: Any
    offset: Any
    epsilon: float


@dataclass(frozen=True)
class EncoderLayer:
    """An encoder layer that SparseEncoder can replace.

    Attributes:
        attention: The attention operation.
        attention_ranges: Ranges of queries and keys if they are in 8 bits.
        input: Output value of another operation, float32 [batch, length, hidden], that the layer reads.
        mask: Output value with the padding mask, boolean [batch, length].
        products: Query, key, value, attention output, feed-forward inner and outer.
        norms: LayerNorm after the attention and after the feed-forward.
        heads: Number of attention heads.
        scale: Factor of the attention scores.
        activation: Activation of the feed-forward.
    """

    attention: Any
    attention_ranges: tuple[Range, Range] | None
    input: Any
    mask: Any
    products: tuple[Product, ...]
    norms: tuple[_Norm, _Norm]
    heads: int
    scale: float
    activation: str

    @property
    def output(self) -> Any:
        return self.norms[1].last.output(0)

    @property
    def settings(self) -> tuple[Any, ...]:
        """What all layers of one operation have in common."""
        sizes = self.products[0].rows, self.products[4].rows
        return (*sizes, _key(self.mask), self.heads, self.scale, self.activation)


def find_layers(model: Any, products: Sequence[Product], ranges: dict[str, tuple[Range, Range]]) -> list[EncoderLayer]:
    """Returns the encoder layers of a model that consist of pruned matrices only, in graph order.

    Args:
        model: OpenVINO model without activation quantizers.
        products: Pruned matrices of the model.
        ranges: `attention_ranges` of the model before its quantizers were removed.
    """
    by_op = {id_of(p.op): p for p in products}
    by_last = {id_of(p.last): p for p in products}
    attentions = [op for op in model.get_ordered_ops() if op.get_type_name() == "ScaledDotProductAttention"]
    return [layer for op in attentions if (layer := _layer(op, by_op, by_last, ranges.get(id_of(op)))) is not None]


def replace(layers: Sequence[EncoderLayer]) -> int:
    """Replaces layers by SparseEncoder operations, and returns their number."""
    from openvino.utils.node_factory import NodeFactory

    if not layers:
        return 0
    factory = NodeFactory()
    factory.add_extension(str(kernels.build()))
    stacks = list(_stacks(layers))
    for stack in stacks:
        _insert(factory, stack)
    return len(stacks)


def _layer(
    attention: Any, by_op: dict[str, Product], by_last: dict[str, Product], ranges: tuple[Range, Range] | None
) -> EncoderLayer | None:
    """Returns the layer around an attention; None if anything differs from the expected pattern."""
    if attention.get_attributes()["causal"] or attention.get_input_size() < 4:
        return None
    heads = [_head_of(attention.input_value(i), by_last) for i in range(3)]
    mask = _padding_mask(attention.input_value(3))
    if mask is None or None in heads:
        return None
    (query, shape), (key, key_shape), (value, value_shape) = heads  # type: ignore[misc]
    source = query.input
    same_input = _key(source) == _key(key.input) == _key(value.input)
    if not same_input or not shape == key_shape == value_shape or _rank(source.get_partial_shape()) != 3:
        return None
    merged = _follow(_follow(attention, "Transpose", (0, 2, 1, 3)), "Reshape")
    output = by_op.get(id_of(op)) if merged is not None and (op := only_consumer(merged)) is not None else None
    middle = _norm_after(output, source)
    if output is None or middle is None:
        return None
    reading = readers(middle.last.output(0))
    inner = next((by_op[id_of(op)] for op in reading if id_of(op) in by_op), None)
    if inner is None or len(reading) != 2:  # the feed-forward and the residual sum
        return None
    last, activation = inner.last, str(inner.activation)
    if activation == "none" and (relu := _follow(last, "Relu")) is not None:
        last, activation = relu, "relu"
    outer = by_op.get(id_of(op)) if (op := only_consumer(last)) is not None else None
    end = _norm_after(outer, middle.last.output(0))
    if outer is None or end is None:
        return None
    found = (query, key, value, output, inner, outer)
    scale = _attention_scale(attention, shape[1])
    if scale is None or any(p.activation != "none" for p in (query, key, value, output, outer)):
        return None
    if any((p.rows, p.columns) != (query.columns, query.columns) for p in found[:4]):
        return None
    return EncoderLayer(attention, ranges, source, mask, found, (middle, end), shape[0], scale, activation)


def _rank(shape: Any) -> int | None:
    """Returns the number of dimensions of a partial shape; None if it is dynamic."""
    return None if shape.rank.is_dynamic else int(shape.rank.get_length())


def _head_of(value: Any, by_last: dict[str, Product]) -> tuple[Product, tuple[int, int]] | None:
    """Returns the product that yields queries, keys or values, and the number and size of its heads."""
    transpose = value.get_node()
    reshape = _source(transpose, "Transpose")
    product = _source(reshape, "Reshape")
    found = by_last.get(id_of(product)) if product is not None else None
    if found is None or reshape is None or _order(transpose) != (0, 2, 1, 3):
        return None
    if not all(only_consumer(op) is not None for op in (transpose, reshape, product)):
        return None
    shape = reshape.get_output_partial_shape(0)
    if _rank(shape) != 4 or shape[2].is_dynamic or shape[3].is_dynamic:
        return None
    return found, (shape[2].get_length(), shape[3].get_length())


def _padding_mask(value: Any) -> Any | None:
    """Returns the boolean [batch, length] value of which a mask [batch, 1, 1, length] is made; None: another mask."""
    shape = value.get_partial_shape()
    if _rank(shape) != 4 or any(d.is_dynamic or d.get_length() != 1 for d in (shape[1], shape[2])):
        return None
    while value.get_node().get_type_name() == "Unsqueeze":
        value = value.get_node().input_value(0)
    is_mask = _rank(value.get_partial_shape()) == 2 and value.get_element_type().get_type_name() == "boolean"
    return value if is_mask else None


def _norm_after(product: Product | None, residual: Any) -> _Norm | None:
    """Returns the LayerNorm of the sum of a product and a residual value."""
    import numpy as np

    add = _follow(product.last, "Add") if product is not None else None
    if add is None or product is None:
        return None
    other = add.input_value(1 - port_of(product.last, add))
    norm = _follow(add, "MVN")
    if _key(other) != _key(residual) or norm is None:
        return None
    epsilon = layer_norm_epsilon(norm)
    if epsilon is None:
        return None
    last = norm
    parameters: dict[str, Any] = {"Multiply": np.float32(1), "Add": np.float32(0)}
    for kind in parameters:  # the converter leaves out what changes nothing
        following = _follow(last, kind)
        constant = constant_of(following, 1 - port_of(last, following)) if following is not None else None
        if constant is not None and following is not None and np.asarray(constant.data).size in (1, product.rows):
            last, parameters[kind] = following, np.asarray(constant.data, dtype=np.float32).reshape(-1)
    scale, offset = (np.broadcast_to(p, (product.rows,)) for p in parameters.values())
    return _Norm(last, scale, offset, epsilon)


def layer_norm_epsilon(norm: Any) -> float | None:
    """Returns what an MVN adds to the variance if it is a LayerNorm of [batch, length, hidden]; None if it is not."""
    attributes, axes = norm.get_attributes(), constant_of(norm, 1)
    over_features = axes is not None and axes.data.tolist() in ([-1], [2])
    if not over_features or not attributes["normalize_variance"] or attributes["eps_mode"] != "INSIDE_SQRT":
        return None
    return float(attributes["eps"])


def _attention_scale(attention: Any, head_size: int) -> float | None:
    if attention.get_input_size() < 5:
        return float(head_size**-0.5)
    constant = constant_of(attention, 4)
    return float(constant.data.reshape(-1)[0]) if constant is not None and constant.data.size == 1 else None


def _stacks(layers: Sequence[EncoderLayer]) -> Iterator[list[EncoderLayer]]:
    """Groups layers so that each layer of a group is the only reader of the one before."""
    by_input = {_key(layer.input): layer for layer in layers}
    followers = set()
    following = {}
    for layer in layers:
        after = by_input.get(_key(layer.output))
        if after is not None and after.settings == layer.settings and len(readers(layer.output)) == 4:
            following[_key(layer.input)] = after  # readers: query, key, value and the residual sum
            followers.add(_key(after.input))
    for layer in layers:
        if _key(layer.input) in followers:
            continue
        stack = [layer]
        while (after := following.get(_key(stack[-1].input))) is not None:
            stack.append(after)
        yield stack


def _insert(factory: Any, stack: Sequence[EncoderLayer]) -> None:
    import numpy as np
    from openvino import opset13

    head = stack[0]
    parameters = np.stack([np.stack([p for norm in layer.norms for p in (norm.scale, norm.offset)]) for layer in stack])
    products = [p for layer in stack for p in layer.products]
    inputs = [head.input, head.mask, opset13.constant(parameters).output(0), *(p.constant() for p in products)]
    attributes = {
        "format_version": kernels.FORMAT_VERSION,
        "hidden": head.products[0].rows,
        "heads": head.heads,
        "scale": repr(head.scale),
        "activation": head.activation,
        "epsilons": [repr(norm.epsilon) for layer in stack for norm in layer.norms],
        "attention_ranges": [
            repr(end) if end is not None else "none"
            for layer in stack
            for range_ in layer.attention_ranges or ((None, None),) * 2
            for end in range_
        ],
        "input_ranges": [repr(end) if end is not None else "none" for p in products for end in p.range or (None, None)],
    }
    node = factory.create("SparseEncoder", inputs, attributes)
    node.set_friendly_name(f"{head.products[0].op.get_friendly_name()}/encoder")
    for layer in stack:
        for reader in list(layer.output.get_target_inputs()):
            if reader.get_node().get_type_name() == "ShapeOf":  # same shape; would keep the replaced layer alive
                reader.replace_source_output(head.input)
    stack[-1].output.replace(node.output(0))


def readers(value: Any) -> list[Any]:
    """Returns the operations that read a value, other than for its shape."""
    nodes = [port.get_node() for port in value.get_target_inputs()]
    return [node for node in nodes if node.get_type_name() != "ShapeOf"]


def _follow(op: Any | None, kind: str, order: tuple[int, ...] | None = None) -> Any | None:
    """Returns the only consumer of an operation if it is of a type and, for a Transpose, of an order."""
    following = only_consumer(op) if op is not None else None
    if following is None or following.get_type_name() != kind or (order is not None and _order(following) != order):
        return None
    return following


def _source(op: Any | None, kind: str) -> Any | None:
    """Returns the operation before one of a type."""
    return op.input_value(0).get_node() if op is not None and op.get_type_name() == kind else None


def _order(transpose: Any) -> tuple[int, ...]:
    constant = constant_of(transpose, 1)
    return () if constant is None else tuple(int(axis) for axis in constant.data)


def _key(value: Any) -> tuple[str, int]:
    return id_of(value.get_node()), value.get_index()
