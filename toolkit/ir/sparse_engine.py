"""Conversion of a sparse IR to the sparse engine, whose operations neither store nor multiply zeros.

Stacks of complete encoder layers become one operation, SparseEncoder (see `encoder_stack.py`), 8-bit embeddings before
them another, EmbeddingSum (`embedding_sum.py`); other pruned matrices become SparseLinear operations.

Weights keep exactly the values, or the 8-bit codes and scales, of the plain IR. Activations of matrices of 8-bit codes
are rounded to the levels of the plain IR on every CPU, and so are the queries and keys of whole layers. Products are
exact where the kernels multiply integers (VNNI, and AVX2 alone), else those of floats. A last bit can decide to which
level a value is rounded, so predictions may differ slightly by CPU and batch. All other activation quantizers are
removed.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.ir import embedding_sum, encoder_stack, kernels
from toolkit.ir.constants import codes_and_scales, constant_of
from toolkit.ir.products import (
    BREAK_EVEN,
    Product,
    activation_ranges,
    attention_ranges,
    find_products,
    has_constant_matrix,
    id_of,
    only_consumer,
    port_of,
    to_fp32,
)
from toolkit.ir.runtime import MODEL, read_ir


class NotSparseEnoughError(UserError):
    """No matrix of an IR is sparse enough for the kernels to be faster than dense MatMuls."""


@dataclass(frozen=True)
class EngineSummary:
    """Summary of a conversion by `to_sparse_engine`.

    Attributes:
        matrices: Names of the MatMuls that were replaced, in graph order.
        operations: Number of SparseEncoder and SparseLinear operations that replace them.
        in_8_bits: Number of replaced MatMuls with 8-bit activations.
        ordinary: Fraction of zeros of the MatMuls with a constant matrix that stay dense, by name.
    """

    matrices: tuple[str, ...]
    operations: int
    in_8_bits: int
    ordinary: dict[str, float]


def to_sparse_engine(
    source: Path, target: Path, *, whole_layers: bool = True, exact_activations: bool = False
) -> EngineSummary:
    """Converts an IR folder to the sparse engine; files other than the model are copied.

    Args:
        source: Plain IR folder, FP32 or INT8.
        target: Folder to write.
        whole_layers: Whether complete encoder layers become SparseEncoder operations; False, for comparison in
            benchmarks: each matrix becomes a SparseLinear.
        exact_activations: Whether activations of 1x1 matrices of 8-bit codes, queries and keys stay in FP32.

    Raises:
        KernelMissingError: The kernels are not built and cannot be built.
        NotSparseEnoughError: No MatMul of the IR has the zeros of `BREAK_EVEN`.
    """
    import openvino as ov

    model = read_ir(source)
    ranges, of_attention = _ranges(model, exact_activations)
    _remove_activation_quantizers(model)
    products, dense = find_products(model, ranges)
    if not products:
        most = max(dense.values(), default=0.0)
        raise NotSparseEnoughError(
            f"no matrix is sparse enough: at most {most:.0%} zeros; the sparse kernels need {BREAK_EVEN['1x1']:.0%}, "
            f"or {BREAK_EVEN['4x1']:.0%} in blocks of 4x1",
            where=str(source),
        )
    layers = encoder_stack.find_layers(model, products, of_attention) if whole_layers else []
    stacked = {id_of(p.op) for layer in layers for p in layer.products}
    operations = encoder_stack.replace(layers) + _replace([p for p in products if id_of(p.op) not in stacked])
    embedding_sum.replace(model)
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


def _ranges(model: Any, exact_activations: bool) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Returns the ranges of the activations that are rounded to 8 bits: of products, and of attention."""
    if exact_activations:
        return activation_ranges(model, ("4x1",)), {}
    return activation_ranges(model, ("1x1", "4x1")), attention_ranges(model)


def reference_ir(source: Path, target: Path, *, whole_layers: bool = True, exact_activations: bool = False) -> None:
    """Writes the reference IR for checking the sparse engine: the same weights in dense FP32 MatMuls.

    Activations that the sparse engine quantizes to 8 bits are fake-quantized with the same ranges.

    Args:
        source: Plain IR folder, FP32 or INT8.
        target: Folder to write; receives the model only.
        whole_layers: As in `to_sparse_engine`.
        exact_activations: As in `to_sparse_engine`.
    """
    import openvino as ov
    from openvino import opset13

    model = read_ir(source)
    ranges, of_attention = _ranges(model, exact_activations)
    _remove_activation_quantizers(model)
    products, _ = find_products(model, ranges)
    for layer in encoder_stack.find_layers(model, products, of_attention) if whole_layers else ():
        for port, range_ in enumerate(layer.attention_ranges or ()):
            rounded = opset13.fake_quantize(layer.attention.input_value(port), *range_, *range_, levels=256)
            layer.attention.input(port).replace_source_output(rounded.output(0))
    for op in model.get_ordered_ops():
        # OpenVINO 2026.4 cannot compile an 8-bit table of one row, such as RoBERTa's token types, beside FP32 weights.
        if _has_8_bit_table(op):
            to_fp32(op, 0)
        if op.get_type_name() != "MatMul" or not has_constant_matrix(op):
            continue
        to_fp32(op)
        if ends := ranges.get(id_of(op)):
            rounded = opset13.fake_quantize(op.input_value(0), *ends, *ends, levels=256)
            op.input(0).replace_source_output(rounded.output(0))
    model.validate_nodes_and_infer_types()
    target.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, target / MODEL, compress_to_fp16=False)


def _remove_activation_quantizers(model: Any) -> None:
    """Removes every FakeQuantize of activations; weights are dequantized from a constant and keep theirs."""
    for op in model.get_ordered_ops():
        if op.get_type_name() == "FakeQuantize" and constant_of(op, 0) is None:
            op.output(0).replace(op.input_value(0))


def _replace(products: list[Product]) -> int:
    """Replaces MatMuls by SparseLinear: first chains of two, then groups with a common input, and single ones."""
    from openvino.utils.node_factory import NodeFactory

    by_op = {id_of(p.op): p for p in products}
    left = list(products)
    groups: list[tuple[list[Product], bool]] = []
    for first in products:
        consumer = only_consumer(first.last)
        second = by_op.get(id_of(consumer)) if consumer is not None else None
        chains = second is not None and port_of(first.last, consumer) == 0 and first.activation != "none"
        if chains and second is not None and second.activation == "none" and first.kind == second.kind:
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


def _can_merge(one: Product, other: Product) -> bool:
    """Returns whether one operation can compute both MatMuls."""
    same_input = id_of(one.input.get_node()) == id_of(other.input.get_node())
    return (
        same_input
        and one.input.get_index() == other.input.get_index()
        and (one.activation, *one.kind) == (other.activation, *other.kind)
    )


def _insert(factory: Any, members: list[Product], chain: bool) -> None:
    head = members[0]
    attributes = {
        "format_version": kernels.FORMAT_VERSION,
        "rows": [p.rows for p in members],
        "columns": head.columns,
        "pattern": head.pattern,
        "activation": head.activation,
        "chain": chain,
        "input_ranges": [repr(end) for p in members for end in p.range or ()],
    }
    node = factory.create("SparseLinear", [head.input, *(p.constant() for p in members)], attributes)
    node.set_friendly_name(f"{members[-1].op.get_friendly_name()}/sparse")
    ends = members[-1:] if chain else members
    for i, product in enumerate(ends):
        product.last.output(0).replace(node.output(i))


def _has_8_bit_table(op: Any) -> bool:
    """Returns whether an operation looks up rows of a table of 8-bit codes, as an embedding does."""
    constant = constant_of(op, 0) if op.get_type_name() == "Gather" else None
    return constant is not None and constant.get_element_type().get_type_name() == "i8"


def _gather_before_dequantizing(model: Any) -> None:
    """Dequantizes embedding rows after the lookup, so that the FP32 table is never materialised."""
    import numpy as np
    from openvino import opset13

    for op in model.get_ordered_ops():
        if not _has_8_bit_table(op):
            continue
        found = codes_and_scales(op, 0)
        if found is None:
            continue
        codes, scales = found
        zero = opset13.constant(np.array(0, dtype=np.int64))
        rows = opset13.gather(opset13.constant(codes), op.input_value(1), zero)
        row_scales = opset13.gather(opset13.constant(scales), op.input_value(1), zero)
        value = opset13.multiply(opset13.convert(rows, "f32"), row_scales)
        value.set_friendly_name(op.get_friendly_name())
        op.output(0).replace(value.output(0))
