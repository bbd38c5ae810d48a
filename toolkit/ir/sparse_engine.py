"""Conversion of a sparse IR to the sparse engine: SparseLinear operations that neither store nor multiply zeros.

Weights keep exactly the values, or the 8-bit codes and scales, of the plain IR. Activation quantizers of an INT8 IR are
removed, so arithmetic is FP32. The exception are 4x1 matrices of 8-bit codes, which the kernels multiply as integers:
their activations stay quantized on every CPU, so that predictions do not depend on the CPU.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.ir import kernels
from toolkit.ir.constants import chain, constant_of, dequantized, zeros_of
from toolkit.ir.runtime import MODEL, read_ir

Range = tuple[float, float]

# Fraction of zeros from which the kernels beat OpenVINO's dense FP32 MatMul (break-even in benchmarks/: about 65 %).
BREAK_EVEN = 0.7


class NotSparseEnoughError(UserError):
    """No matrix of an IR is sparse enough for the kernels to be faster than dense MatMuls."""


@dataclass(frozen=True)
class EngineSummary:
    """Summary of a conversion by `to_sparse_engine`.

    Attributes:
        matrices: Names of the MatMuls that were replaced, in graph order.
        operations: Number of SparseLinear operations that replace them.
        in_8_bits: Number of replaced MatMuls with 8-bit activations.
        ordinary: Fraction of zeros of the MatMuls with a constant matrix that stay dense, by name.
    """

    matrices: tuple[str, ...]
    operations: int
    in_8_bits: int
    ordinary: dict[str, float]


@dataclass
class _Product:
    """A MatMul that SparseLinear can replace, together with its bias and activation."""

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


def to_sparse_engine(source: Path, target: Path) -> EngineSummary:
    """Converts an IR folder to the sparse engine; files other than the model are copied.

    Args:
        source: Plain IR folder, FP32 or INT8.
        target: Folder to write.

    Raises:
        KernelMissingError: The kernels are not built and cannot be built.
        NotSparseEnoughError: The IR has no MatMul with at least `BREAK_EVEN` zeros.
    """
    import openvino as ov

    model = read_ir(source)
    ranges = _ranges(model)
    _remove_activation_quantizers(model)
    products, dense = _products(model, ranges)
    if not products:
        most = max(dense.values(), default=0.0)
        raise NotSparseEnoughError(
            f"no matrix is sparse enough: at most {most:.0%} zeros, the sparse kernels need {BREAK_EVEN:.0%}",
            where=str(source),
        )
    operations = _replace(products)
    _gather_before_dequantizing(model)
    model.validate_nodes_and_infer_types()
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_dir():  # settings of a library, such as sentence-transformers' 1_Pooling
            shutil.copytree(file, target / file.name, dirs_exist_ok=True)
        elif file.stem != Path(MODEL).stem:
            shutil.copy2(file, target)
    ov.save_model(model, target / MODEL, compress_to_fp16=False)
    in_8_bits = sum(p.range is not None for p in products)
    return EngineSummary(tuple(p.op.get_friendly_name() for p in products), operations, in_8_bits, dense)


def reference_ir(source: Path, target: Path) -> None:
    """Writes the reference IR for checking the sparse engine: the same weights in dense FP32 MatMuls.

    Activations that the sparse engine quantizes to 8 bits are fake-quantized with the same ranges.

    Args:
        source: Plain IR folder, FP32 or INT8.
        target: Folder to write; receives the model only.
    """
    import openvino as ov
    from openvino import opset13

    model = read_ir(source)
    ranges = _ranges(model)
    _remove_activation_quantizers(model)
    for op in model.get_ordered_ops():
        if op.get_type_name() != "MatMul" or not _has_constant_matrix(op):
            continue
        _to_fp32(op)
        if ends := ranges.get(id_of(op)):
            rounded = opset13.fake_quantize(op.input_value(0), *ends, *ends, levels=256)
            op.input(0).replace_source_output(rounded.output(0))
    model.validate_nodes_and_infer_types()
    target.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, target / MODEL, compress_to_fp16=False)


def _ranges(model: Any) -> dict[str, Range]:
    """Returns the ranges of the activations of 4x1 matrices of codes, by the `id_of` of their MatMul."""
    found = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() != "MatMul" or not _has_constant_matrix(op) or not _is_suitable(op):
            continue
        quantizer = op.input_value(0).get_node()
        while quantizer.get_type_name() in ("Reshape", "Transpose"):  # in either order
            quantizer = quantizer.input_value(0).get_node()
        if quantizer.get_type_name() != "FakeQuantize" or quantizer.get_attributes()["levels"] != 256:
            continue
        constants = [constant_of(quantizer, i) for i in range(1, 5)]
        ends = [float(c.data.reshape(())) for c in constants if c is not None and c.data.size == 1]
        has_integer_blocks = _pattern(zeros_of(op)) == "4x1" and _codes(op)[1] is not None
        if len(ends) == 4 and ends[:2] == ends[2:] and has_integer_blocks:
            found[id_of(op)] = (ends[0], ends[1])
    return found


def _remove_activation_quantizers(model: Any) -> None:
    """Removes every FakeQuantize of activations; weights are dequantized from a constant and keep theirs."""
    for op in model.get_ordered_ops():
        if op.get_type_name() == "FakeQuantize" and constant_of(op, 0) is None:
            op.output(0).replace(op.input_value(0))


def _has_constant_matrix(op: Any) -> bool:
    """Returns whether a MatMul's second operand is a constant matrix, possibly dequantized."""
    *between, last = (node.get_type_name() for node in chain(op, 1))
    dequantizes = {"Convert", "Subtract", "Multiply", "FakeQuantize"}
    return last == "Constant" and set(between) <= dequantizes and len(constant_of(op).get_output_shape(0)) == 2  # type: ignore[union-attr]


def _is_suitable(op: Any) -> bool:
    """Returns whether a MatMul with a constant matrix has the right layout and enough zeros for the kernels."""
    attributes = op.get_attributes()
    return attributes["transpose_b"] and not attributes["transpose_a"] and zeros_of(op).mean() >= BREAK_EVEN


def _products(model: Any, ranges: dict[str, Range]) -> tuple[list[_Product], dict[str, float]]:
    """Returns the MatMuls to replace, and the fractions of zeros of the others, whose weights become FP32."""
    products, dense = [], {}
    for op in model.get_ordered_ops():
        if op.get_type_name() != "MatMul" or not _has_constant_matrix(op):
            continue
        if _is_suitable(op):
            products.append(_product(op, ranges.get(id_of(op))))
        else:
            dense[op.get_friendly_name()] = float(zeros_of(op).mean())
            _to_fp32(op)
    return products, dense


def _product(op: Any, range_: Range | None) -> _Product:
    import numpy as np

    codes, scales = _codes(op)
    rows, columns = codes.shape
    last, bias = op, None
    if (add := _only_consumer(op)) and add.get_type_name() == "Add":
        constant = add.input_value(1 - _port(op, add)).get_node()
        if constant.get_type_name() == "Constant" and np.prod(constant.get_output_shape(0)) in (1, rows):
            last, bias = add, np.asarray(constant.data, dtype=np.float32).reshape(-1)
    activation: kernels.Activation = "none"
    if (gelu := _only_consumer(last)) and gelu.get_type_name() == "Gelu":
        mode = str(gelu.get_attributes().get("approximation_mode", "ERF")).upper()
        last, activation = gelu, "gelu_erf" if mode == "ERF" else "gelu_tanh"
    pattern = _pattern(zeros_of(op))
    return _Product(op, last, kernels.pack(codes, scales, bias, pattern), pattern, rows, columns, activation, range_)


def _codes(op: Any) -> tuple[Any, Any]:
    """Returns int8 codes and per-row scales if the matrix is stored that way, else FP32 weights and None.

    Fake-quantized weights are returned rounded. OpenVINO's converter leaves none in this toolkit's exports: it folds
    them to 8-bit codes.
    """
    import numpy as np

    constant = constant_of(op)
    assert constant is not None
    if constant.get_element_type().get_type_name() == "i8":
        codes = np.array(constant.data)
        scales = dequantized(op, 1, codes=np.ones((len(codes), 1), dtype=np.float32))
        if scales.shape == (len(codes), 1) and np.array_equal(dequantized(op, 1), codes * scales):
            return codes, scales[:, 0]
    return dequantized(op, 1), None


def _pattern(zeros: Any) -> kernels.Pattern:
    """Returns 4x1 if storing complete 4x1 blocks adds at most 25 % to the number of values, else 1x1."""
    if len(zeros) % 4:
        return "1x1"
    blocks = ~zeros.reshape(-1, 4, zeros.shape[1]).all(axis=1)
    return "4x1" if 4 * blocks.sum() <= 1.25 * (~zeros).sum() else "1x1"


def _to_fp32(op: Any) -> None:
    """Stores a dense matrix as FP32, since the plugin may quantize the activations of 8-bit weights dynamically."""
    from openvino import opset13

    if constant_of(op).get_element_type().get_type_name() != "f32":  # type: ignore[union-attr]
        op.input(1).replace_source_output(opset13.constant(dequantized(op, 1)).output(0))


def _replace(products: list[_Product]) -> int:
    """Replaces MatMuls by SparseLinear: first chains of two, then groups with a common input, and single ones."""
    from openvino.utils.node_factory import NodeFactory

    by_op = {id_of(p.op): p for p in products}
    left = list(products)
    groups: list[tuple[list[_Product], bool]] = []
    for first in products:
        consumer = _only_consumer(first.last)
        second = by_op.get(id_of(consumer)) if consumer is not None else None
        chains = second is not None and _port(first.last, consumer) == 0 and first.activation != "none"
        if chains and second is not None and second.activation == "none" and _kind(first) == _kind(second):
            groups.append(([first, second], True))
            left = [p for p in left if p is not first and p is not second]
    while left:
        head = left[0]
        same = [p for p in left if _can_merge(p, head)]
        groups.append((same, False))
        left = [p for p in left if not any(p is s for s in same)]
    factory = NodeFactory()
    factory.add_extension(str(kernels.build()))
    for members, chained in groups:
        _insert(factory, members, chained)
    return len(groups)


def _can_merge(one: _Product, other: _Product) -> bool:
    """Returns whether one operation can compute both MatMuls."""
    same_input = id_of(one.input.get_node()) == id_of(other.input.get_node())
    return (
        same_input
        and one.input.get_index() == other.input.get_index()
        and (one.activation, *_kind(one)) == (other.activation, *_kind(other))
    )


def _kind(product: _Product) -> tuple[kernels.Pattern, bool]:
    """Returns the pattern and whether activations are in 8 bits; both are equal within one operation."""
    return product.pattern, product.range is not None


def _insert(factory: Any, members: list[_Product], chain: bool) -> None:
    from openvino import opset13

    head = members[0]
    blobs = []
    for product in members:
        constant = opset13.constant(product.blob)
        # `inspect_ir` derives the module from this name.
        constant.set_friendly_name(f"{product.op.get_friendly_name()}/packed")
        blobs.append(constant.output(0))
    attributes = {
        "format_version": kernels.FORMAT_VERSION,
        "rows": [p.rows for p in members],
        "columns": head.columns,
        "pattern": head.pattern,
        "activation": head.activation,
        "chain": chain,
        "input_ranges": [repr(end) for p in members for end in p.range or ()],
    }
    node = factory.create("SparseLinear", [head.input, *blobs], attributes)
    node.set_friendly_name(f"{members[-1].op.get_friendly_name()}/sparse")
    ends = members[-1:] if chain else members
    for i, product in enumerate(ends):
        product.last.output(0).replace(node.output(i))


def _gather_before_dequantizing(model: Any) -> None:
    """Dequantizes embedding rows after the lookup, so that the FP32 table is never materialised."""
    import numpy as np
    from openvino import opset13

    for op in model.get_ordered_ops():
        constant = constant_of(op, 0) if op.get_type_name() == "Gather" else None
        if constant is None or constant.get_element_type().get_type_name() != "i8":
            continue
        codes = np.array(constant.data)
        scales = dequantized(op, 0, codes=np.ones((len(codes), 1), dtype=np.float32))
        if scales.shape != (len(codes), 1) or not np.array_equal(dequantized(op, 0), codes * scales):
            continue
        zero = opset13.constant(np.array(0, dtype=np.int64))
        rows = opset13.gather(opset13.constant(codes), op.input_value(1), zero)
        row_scales = opset13.gather(opset13.constant(scales), op.input_value(1), zero)
        value = opset13.multiply(opset13.convert(rows, "f32"), row_scales)
        value.set_friendly_name(op.get_friendly_name())
        op.output(0).replace(value.output(0))


def _only_consumer(op: Any) -> Any | None:
    """Returns the only consumer of an operation's output; None if there are several or none."""
    readers = list(op.output(0).get_target_inputs())
    return readers[0].get_node() if len(readers) == 1 else None


def _port(op: Any, reader: Any) -> int:
    """Returns the index of the reader's input that an operation feeds."""
    inputs: Iterable[int] = range(reader.get_input_size())
    return next(i for i in inputs if id_of(reader.input_value(i).get_node()) == id_of(op))


def id_of(op: Any) -> str:
    """Returns a node's unique name, since OpenVINO creates a new Python object at each access."""
    return str(op.get_name())
