"""MatMuls of an IR that the sparse kernels can replace, with their packed weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.ir import kernels
from toolkit.ir.constants import chain, codes_and_scales, constant_of, dequantized, zeros_of

Range = tuple[float, float]

# Fraction of zeros from which the kernels are used. In single values, 60 % are as fast as dense INT8 with VNNI; in
# blocks, 50 % are faster than dense, FP32 and INT8: benchmarks/results/2026-11-28_xeon-vnni_sparse_encoder.md.
# Just below 70 and 50 %, because fractions are rounded.
BREAK_EVEN: dict[kernels.Pattern, float] = {"1x1": 0.695, "4x1": 0.495}


@dataclass
class Product:
    """A MatMul that the kernels can replace, together with its bias and activation."""

    op: Any
    last: Any  # the last operation to replace: the MatMul, its bias's Add or the activation
    blob: Any
    pattern: kernels.Pattern
    rows: int
    columns: int
    activation: kernels.Activation
    range: Range | None  # range of the activations if they are in 8 bits

    @property
    def input(self) -> Any:
        return self.op.input_value(0)

    def constant(self) -> Any:
        """Returns a new constant with the packed weights; `inspect_ir` derives the module from its name."""
        from openvino import opset13

        constant = opset13.constant(self.blob)
        constant.set_friendly_name(f"{self.op.get_friendly_name()}/packed")
        return constant.output(0)

    @property
    def kind(self) -> tuple[kernels.Pattern, bool]:
        """Pattern, and whether activations are in 8 bits; both are equal within one SparseLinear."""
        return self.pattern, self.range is not None


def activation_ranges(model: Any, patterns: Sequence[kernels.Pattern] = ("1x1", "4x1")) -> dict[str, Range]:
    """Returns the ranges of the activations of matrices of 8-bit codes, by the `id_of` of their MatMul."""
    found = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() != "MatMul" or not has_constant_matrix(op) or not _is_suitable(op):
            continue
        range_ = _quantizer_range(op.input_value(0).get_node())
        if range_ is not None and _codes(op)[1] is not None and _pattern(zeros_of(op)) in patterns:
            found[id_of(op)] = range_
    return found


def attention_ranges(model: Any) -> dict[str, tuple[Range, Range]]:
    """Returns the ranges of queries and keys by the `id_of` of their attention, if both are quantized to 8 bits."""
    found = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() == "ScaledDotProductAttention":
            query, key = (_quantizer_range(op.input_value(i).get_node()) for i in range(2))
            if query is not None and key is not None:
                found[id_of(op)] = (query, key)
    return found


def _quantizer_range(node: Any) -> Range | None:
    """Returns the range of a quantizer to 256 levels between scalars, which Reshape and Transpose may follow."""
    while node.get_type_name() in ("Reshape", "Transpose"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "FakeQuantize" or node.get_attributes()["levels"] != 256:
        return None
    constants = [constant_of(node, i) for i in range(1, 5)]
    ends = [float(c.data.reshape(())) for c in constants if c is not None and c.data.size == 1]
    return (ends[0], ends[1]) if len(ends) == 4 and ends[:2] == ends[2:] else None


def has_constant_matrix(op: Any) -> bool:
    """Returns whether a MatMul's second operand is a constant matrix, possibly dequantized."""
    *between, last = (node.get_type_name() for node in chain(op, 1))
    dequantizes = {"Convert", "Subtract", "Multiply", "FakeQuantize"}
    return last == "Constant" and set(between) <= dequantizes and len(constant_of(op).get_output_shape(0)) == 2  # type: ignore[union-attr]


def _is_suitable(op: Any) -> bool:
    """Returns whether a MatMul with a constant matrix has the right layout and enough zeros for the kernels."""
    attributes, zeros = op.get_attributes(), zeros_of(op)
    return attributes["transpose_b"] and not attributes["transpose_a"] and zeros.mean() >= BREAK_EVEN[_pattern(zeros)]


def find_products(model: Any, ranges: dict[str, Range]) -> tuple[list[Product], dict[str, float]]:
    """Returns the MatMuls to replace, and the fractions of zeros of the others, whose weights become FP32."""
    products, dense = [], {}
    for op in model.get_ordered_ops():
        if op.get_type_name() != "MatMul" or not has_constant_matrix(op):
            continue
        if _is_suitable(op):
            products.append(_product(op, ranges.get(id_of(op))))
        else:
            dense[op.get_friendly_name()] = float(zeros_of(op).mean())
            to_fp32(op)
    return products, dense


def _product(op: Any, range_: Range | None) -> Product:
    import numpy as np

    codes, scales = _codes(op)
    rows, columns = codes.shape
    last, bias = op, None
    if (add := only_consumer(op)) and add.get_type_name() == "Add":
        constant = add.input_value(1 - port_of(op, add)).get_node()
        if constant.get_type_name() == "Constant" and np.prod(constant.get_output_shape(0)) in (1, rows):
            last, bias = add, np.asarray(constant.data, dtype=np.float32).reshape(-1)
    activation: kernels.Activation = "none"
    if (gelu := only_consumer(last)) and gelu.get_type_name() == "Gelu":
        mode = str(gelu.get_attributes().get("approximation_mode", "ERF")).upper()
        last, activation = gelu, "gelu_erf" if mode == "ERF" else "gelu_tanh"
    pattern = _pattern(zeros_of(op))
    blob = kernels.pack(codes, scales, bias, pattern, 0 if range_ else kernels.COLUMNS_OF_FLOATS)
    return Product(op, last, blob, pattern, rows, columns, activation, range_)


def _codes(op: Any) -> tuple[Any, Any]:
    """Returns int8 codes and per-row scales if the matrix is stored that way, else FP32 weights and None.

    Fake-quantized weights are returned rounded. OpenVINO's converter leaves none in this toolkit's exports: it folds
    them to 8-bit codes.
    """
    found = codes_and_scales(op, 1)
    return (dequantized(op, 1), None) if found is None else (found[0], found[1][:, 0])


def _pattern(zeros: Any) -> kernels.Pattern:
    """Returns 4x1 if storing complete 4x1 blocks adds at most 25 % to the number of values, else 1x1."""
    if len(zeros) % 4:
        return "1x1"
    blocks = ~zeros.reshape(-1, 4, zeros.shape[1]).all(axis=1)
    return "4x1" if 4 * blocks.sum() <= 1.25 * (~zeros).sum() else "1x1"


def to_fp32(op: Any, port: int = 1) -> None:
    """Stores a dense matrix as FP32, since the plugin may quantize the activations of 8-bit weights dynamically."""
    from openvino import opset13

    if constant_of(op, port).get_element_type().get_type_name() != "f32":  # type: ignore[union-attr]
        op.input(port).replace_source_output(opset13.constant(dequantized(op, port)).output(0))


def only_consumer(op: Any) -> Any | None:
    """Returns the only consumer of an operation's output; None if there are several or none."""
    readers = list(op.output(0).get_target_inputs())
    return readers[0].get_node() if len(readers) == 1 else None


def port_of(op: Any, reader: Any) -> int:
    """Returns the index of the reader's input that an operation feeds."""
    inputs: Iterable[int] = range(reader.get_input_size())
    return next(i for i in inputs if id_of(reader.input_value(i).get_node()) == id_of(op))


def id_of(op: Any) -> str:
    """Returns a node's unique name, since OpenVINO creates a new Python object at each access."""
    return str(op.get_name())
