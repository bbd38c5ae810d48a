"""Replacement of the embeddings that precede a SparseEncoder by EmbeddingSum: lookups, dequantization, sum, LayerNorm.

All tables must be 8-bit codes with a scale for each row. Any deviation leaves the embeddings as they are.
"""

from collections.abc import Iterator
from typing import Any

from toolkit.ir import kernels
from toolkit.ir.constants import codes_and_scales, constant_of
from toolkit.ir.encoder_stack import layer_norm_epsilon, readers
from toolkit.ir.products import id_of

_MOST_TABLES = 8  # kMaxTables of `native/kernel.h`


def replace(model: Any) -> int:
    """Replaces the embeddings before each SparseEncoder of a model, and returns the number of replacements.

    Embeddings that another operation reads stay: to that, tokens that are not valid would be zero.
    """
    from openvino.utils.node_factory import NodeFactory

    ops = {id_of(op): op for op in model.get_ordered_ops()}  # replaced operations may still read values, outside of it
    found = [
        (op, inputs)
        for op in ops.values()
        if op.get_type_name() == "SparseEncoder"
        and all(id_of(reader) == id_of(op) for reader in readers(op.input_value(0)) if id_of(reader) in ops)
        and (inputs := _inputs(op)) is not None
    ]
    if found:
        factory = NodeFactory()
        factory.add_extension(str(kernels.build()))
    for op, (epsilon, constants) in found:
        value = op.input_value(0)
        node = factory.create("EmbeddingSum", [op.input_value(1), *constants], {"epsilon": repr(epsilon)})
        node.set_friendly_name(f"{value.get_node().get_friendly_name()}/sum")
        value.replace(node.output(0))
    return len(found)


def _inputs(encoder: Any) -> tuple[float, list[Any]] | None:
    """Returns epsilon and the inputs of an EmbeddingSum after its mask; None if its form is another."""
    import numpy as np
    from openvino import opset13

    value = encoder.input_value(0)
    shape = value.get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 3 or shape[2].is_dynamic:
        return None
    hidden = shape[2].get_length()
    norm: dict[str, Any] = {"Add": np.float32(0), "Multiply": np.float32(1)}
    for kind in norm:  # the converter leaves out what changes nothing
        constants = [constant_of(value.get_node(), i) for i in range(2)] if _is(value, kind) else []
        for i, constant in enumerate(constants):
            if constant is not None and np.size(constant.data) in (1, hidden):
                norm[kind] = np.asarray(constant.data, dtype=np.float32).reshape(-1)
                value = value.get_node().input_value(1 - i)
                break
    mvn = value.get_node()
    epsilon = layer_norm_epsilon(mvn) if _is(value, "MVN") else None
    if epsilon is None:
        return None
    parameters = np.stack([np.broadcast_to(norm[kind], (hidden,)) for kind in ("Multiply", "Add")])
    inputs = [opset13.constant(parameters).output(0)]
    terms = list(_terms(mvn.input_value(0)))
    for term in terms:
        if (table := _table(term)) is None:
            return None
        inputs += table
    return (epsilon, inputs) if len(terms) <= _MOST_TABLES else None


def _terms(value: Any) -> Iterator[Any]:
    """Yields the values of a sum, in the order in which they are added."""
    if not _is(value, "Add"):
        yield value
        return
    for i in range(2):
        yield from _terms(value.get_node().input_value(i))


def _table(value: Any) -> tuple[Any, Any, Any] | None:
    """Returns codes, scales and indices of a lookup of rows, each an output value; None if it is another operation."""
    from openvino import opset13

    gather = value.get_node()
    axis = constant_of(gather, 2) if _is(value, "Gather") else None
    if axis is None or axis.data.item() != 0 or gather.get_attributes()["batch_dims"]:
        return None
    found, indices = codes_and_scales(gather, 0), gather.input_value(1)
    if found is None or indices.get_partial_shape().rank.is_dynamic or len(indices.get_partial_shape()) != 2:
        return None
    if indices.get_element_type().get_type_name() != "i32":
        indices = opset13.convert(indices, "i32").output(0)
    codes, scales = (opset13.constant(array) for array in found)
    codes.set_friendly_name(f"{gather.get_friendly_name()}/table")  # `inspect_ir` derives the module from it
    return codes.output(0), scales.output(0), indices


def _is(value: Any, kind: str) -> bool:
    return bool(value.get_node().get_type_name() == kind)
