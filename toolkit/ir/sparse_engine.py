"""From a sparse IR to one whose pruned matrices run on the sparse kernel: zeros are neither stored nor multiplied.

Weights keep exactly the values, or the 8-bit codes and scales, that they have in the plain IR. What quantizes
activations in an INT8 IR is taken out: arithmetic is FP32. 4x1 matrices of codes are the exception, since they are
multiplied as codes. Their activations stay quantized on every CPU, so that answers do not depend on it.
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

# Share of zeros from which the kernel beats OpenVINO's dense FP32 product (benchmarks/: it does from about 65 %).
BREAK_EVEN = 0.7


class NotSparseEnoughError(UserError):
    """No matrix of an IR has as many zeros as the kernel needs to pay."""


@dataclass(frozen=True)
class EngineSummary:
    """What `to_engine` did.

    Attributes:
        matrices: Names of the products that the kernel computes now, in the graph's order.
        operations: How many SparseLinear operations they became.
        in_8_bits: How many of the products have activations in 8 bits.
        ordinary: Products with a constant matrix that stayed, each with its share of zeros.
    """

    matrices: tuple[str, ...]
    operations: int
    in_8_bits: int
    ordinary: dict[str, float]


@dataclass
class _Product:
    """One MatMul that the kernel can take over, with what follows it."""

    op: Any
    last: Any  # its bias's Add, or the activation behind that
    blob: Any
    pattern: kernels.Pattern
    rows: int
    columns: int
    activation: kernels.Activation
    range: Range | None  # of its activations, if they are in 8 bits

    @property
    def input(self) -> Any:
        return self.op.input_value(0)


def to_sparse_engine(source: Path, target: Path) -> EngineSummary:
    """Writes the engine's form of an IR folder: everything beside the model is copied.

    Args:
        source: A plain IR folder, FP32 or INT8.
        target: Folder to write.

    Raises:
        KernelMissingError: The kernel is not there and cannot be built.
        TooFewZerosError: The IR has no product sparse enough.
    """
    import openvino as ov

    model = read_ir(source)
    ranges = _ranges(model)
    _arithmetic_in_fp32(model)
    products, ordinary = _products(model, ranges)
    if not products:
        most = max(ordinary.values(), default=0.0)
        raise NotSparseEnoughError(
            f"no matrix is sparse enough for the kernel: at most {most:.0%} zeros, it pays from {BREAK_EVEN:.0%}",
            where=str(source),
        )
    operations = _replace(products)
    _gather_before_dequantizing(model)
    model.validate_nodes_and_infer_types()
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.stem != Path(MODEL).stem:
            shutil.copy2(file, target)
    ov.save_model(model, target / MODEL, compress_to_fp16=False)
    in_8_bits = sum(p.range is not None for p in products)
    return EngineSummary(tuple(p.op.get_friendly_name() for p in products), operations, in_8_bits, ordinary)


def reference_ir(source: Path, target: Path) -> None:
    """Writes the plain IR that the engine must agree with: the same weights, dense, and FP32 products.

    Activations that the engine has in 8 bits are rounded as there.
    """
    import openvino as ov
    from openvino import opset13

    model = read_ir(source)
    ranges = _ranges(model)
    _arithmetic_in_fp32(model)
    for op in model.get_ordered_ops():
        if op.get_type_name() != "MatMul" or not _is_matrix(op):
            continue
        _to_fp32(op)
        if ends := ranges.get(id_of(op)):
            rounded = opset13.fake_quantize(op.input_value(0), *ends, *ends, levels=256)
            op.input(0).replace_source_output(rounded.output(0))
    model.validate_nodes_and_infer_types()
    target.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, target / MODEL, compress_to_fp16=False)


def _ranges(model: Any) -> dict[str, Range]:
    """Of the activations of 4x1 matrices of codes: from where to where they are quantized, by the product's `id_of`."""
    found = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() != "MatMul" or not _is_matrix(op) or not _fits(op):
            continue
        quantizer = op.input_value(0).get_node()
        while quantizer.get_type_name() in ("Reshape", "Transpose"):  # it does not matter which comes first
            quantizer = quantizer.input_value(0).get_node()
        if quantizer.get_type_name() != "FakeQuantize" or quantizer.get_attributes()["levels"] != 256:
            continue
        constants = [constant_of(quantizer, i) for i in range(1, 5)]
        ends = [float(c.data.reshape(())) for c in constants if c is not None and c.data.size == 1]
        of_codes = _pattern(zeros_of(op)) == "4x1" and _codes(op)[1] is not None
        if len(ends) == 4 and ends[:2] == ends[2:] and of_codes:
            found[id_of(op)] = (ends[0], ends[1])
    return found


def _arithmetic_in_fp32(model: Any) -> None:
    """Takes out every FakeQuantize of activations; those of weights go into the codes."""
    for op in model.get_ordered_ops():
        if op.get_type_name() == "FakeQuantize" and constant_of(op, 0) is None:
            op.output(0).replace(op.input_value(0))


def _is_matrix(op: Any) -> bool:
    """Whether a product's second factor is a stored matrix, dequantized at most."""
    *between, last = (node.get_type_name() for node in chain(op, 1))
    dequantizes = {"Convert", "Subtract", "Multiply", "FakeQuantize"}
    return last == "Constant" and set(between) <= dequantizes and len(constant_of(op).get_output_shape(0)) == 2  # type: ignore[union-attr]


def _fits(op: Any) -> bool:
    """Whether the kernel pays for a product with a stored matrix."""
    attributes = op.get_attributes()
    return attributes["transpose_b"] and not attributes["transpose_a"] and zeros_of(op).mean() >= BREAK_EVEN


def _products(model: Any, ranges: dict[str, Range]) -> tuple[list[_Product], dict[str, float]]:
    """Products for the kernel, and the shares of zeros of the ones that stay, made FP32."""
    products, ordinary = [], {}
    for op in model.get_ordered_ops():
        if op.get_type_name() != "MatMul" or not _is_matrix(op):
            continue
        if _fits(op):
            products.append(_product(op, ranges.get(id_of(op))))
        else:
            ordinary[op.get_friendly_name()] = float(zeros_of(op).mean())
            _to_fp32(op)
    return products, ordinary


def _product(op: Any, range_: Range | None) -> _Product:
    import numpy as np

    codes, scales = _codes(op)
    rows, columns = codes.shape
    last, bias = op, None
    if (add := _only_follower(op)) and add.get_type_name() == "Add":
        constant = add.input_value(1 - _port(op, add)).get_node()
        if constant.get_type_name() == "Constant" and np.prod(constant.get_output_shape(0)) in (1, rows):
            last, bias = add, np.asarray(constant.data, dtype=np.float32).reshape(-1)
    activation: kernels.Activation = "none"
    if (gelu := _only_follower(last)) and gelu.get_type_name() == "Gelu":
        mode = str(gelu.get_attributes().get("approximation_mode", "ERF")).upper()
        last, activation = gelu, "gelu_erf" if mode == "ERF" else "gelu_tanh"
    pattern = _pattern(zeros_of(op))
    return _Product(op, last, kernels.pack(codes, scales, bias, pattern), pattern, rows, columns, activation, range_)


def _codes(op: Any) -> tuple[Any, Any]:
    """Codes int8 and the scale of each row, where the matrix is stored so; else FP32 weights and no scales.

    Of weights behind a FakeQuantize these are the rounded ones. OpenVINO's converter leaves none in what this toolkit
    exports: it stores their codes.
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
    """4x1 where storing whole blocks of four rows costs at most a quarter more values."""
    if len(zeros) % 4:
        return "1x1"
    blocks = ~zeros.reshape(-1, 4, zeros.shape[1]).all(axis=1)
    return "4x1" if 4 * blocks.sum() <= 1.25 * (~zeros).sum() else "1x1"


def _to_fp32(op: Any) -> None:
    """A matrix that stays ordinary is stored as FP32: behind 8-bit weights the plugin may quantize activations."""
    from openvino import opset13

    if constant_of(op).get_element_type().get_type_name() != "f32":  # type: ignore[union-attr]
        op.input(1).replace_source_output(opset13.constant(dequantized(op, 1)).output(0))


def _replace(products: list[_Product]) -> int:
    """Puts SparseLinear in the products' place: chains first, then those with one input together, then the rest."""
    from openvino.utils.node_factory import NodeFactory

    by_op = {id_of(p.op): p for p in products}
    left = list(products)
    groups: list[tuple[list[_Product], bool]] = []
    for first in products:
        follower = _only_follower(first.last)
        second = by_op.get(id_of(follower)) if follower is not None else None
        chains = second is not None and _port(first.last, follower) == 0 and first.activation != "none"
        if chains and second is not None and second.activation == "none" and _kind(first) == _kind(second):
            groups.append(([first, second], True))
            left = [p for p in left if p is not first and p is not second]
    while left:
        head = left[0]
        same = [p for p in left if _alike(p, head)]
        groups.append((same, False))
        left = [p for p in left if not any(p is s for s in same)]
    factory = NodeFactory()
    factory.add_extension(str(kernels.build()))
    for members, chained in groups:
        _insert(factory, members, chained)
    return len(groups)


def _alike(one: _Product, other: _Product) -> bool:
    same_input = id_of(one.input.get_node()) == id_of(other.input.get_node())
    return (
        same_input
        and one.input.get_index() == other.input.get_index()
        and (one.activation, *_kind(one)) == (other.activation, *_kind(other))
    )


def _kind(product: _Product) -> tuple[kernels.Pattern, bool]:
    """Matrices of one operation are of one pattern, with activations in 8 bits or not."""
    return product.pattern, product.range is not None


def _insert(factory: Any, members: list[_Product], chain: bool) -> None:
    from openvino import opset13

    head = members[0]
    blobs = []
    for product in members:
        constant = opset13.constant(product.blob)
        constant.set_friendly_name(f"{product.op.get_friendly_name()}/packed")  # `inspect_ir` tells the module by it
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
    """Embeddings: rows are looked up as 8-bit codes and dequantized then, so the table is never made FP32."""
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
        of_rows = opset13.gather(opset13.constant(scales), op.input_value(1), zero)
        value = opset13.multiply(opset13.convert(rows, "f32"), of_rows)
        value.set_friendly_name(op.get_friendly_name())
        op.output(0).replace(value.output(0))


def _only_follower(op: Any) -> Any | None:
    """The one operation that reads an operation's one output."""
    readers = list(op.output(0).get_target_inputs())
    return readers[0].get_node() if len(readers) == 1 else None


def _port(op: Any, reader: Any) -> int:
    """Which input of a reader an operation feeds."""
    inputs: Iterable[int] = range(reader.get_input_size())
    return next(i for i in inputs if id_of(reader.input_value(i).get_node()) == id_of(op))


def id_of(op: Any) -> str:
    """Python makes new objects for one node; its unique name stays."""
    return str(op.get_name())
