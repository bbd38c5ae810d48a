"""Comparison of an exported IR's quantization with the recipe. Needs neither torch nor OpenVINO."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from toolkit.recipe.quantization import ModelWise, Quantization

if TYPE_CHECKING:
    from toolkit.ir.inspect import AttentionProduct, Embedding, IRInspection, MatMul

_SEVEN_BITS = 64  # largest 7-bit code: half of the 8-bit range is 63.5, which rounds to 64


def in_8_bits(wanted: ModelWise) -> bool:
    """Returns whether an operation runs in 8 bits, which needs both its weight and its activation quantized."""
    return wanted.weight.dtype == "int8" and wanted.activation.dtype == "int8"


def mismatches(inspection: "IRInspection", section: Quantization, returned: Collection[str] = ()) -> list[str]:
    """Returns one message per operation whose quantization in the IR differs from the recipe.

    Args:
        inspection: Result of `inspect_ir`.
        section: The recipe's quantization section.
        returned: Names of operations that tuning keeps in FP32.
    """
    found = [f"{m.name}: torch module unknown" for m in inspection.matmuls if not m.module]
    for matmul in (m for m in inspection.matmuls if m.module):
        found += [f"{matmul.module}: {what}" for what in _linear(matmul, section, matmul.module in returned)]
    for table in inspection.embeddings:
        found += [f"{table.module}: {what}" for what in _embedding(table, section, table.module in returned)]
    for product in inspection.attentions:
        found += [f"{product.module}: {what}" for what in _attention(product, section, product.module in returned)]
    present = {m.module for m in inspection.matmuls} | {e.module for e in inspection.embeddings}
    present |= {a.module for a in inspection.attentions}
    return found + [
        f"{name}: kept in FP32 by tuning, but missing from the IR" for name in sorted(set(returned) - present)
    ]


def _linear(matmul: "MatMul", section: Quantization, returned: bool) -> Iterator[str]:
    wanted = section.wanted(matmul.module, "Linear")
    static = section.approach != "post_training_dynamic_quant"
    if returned or not in_8_bits(wanted):
        yield from _fp32(matmul.stored_type)
        if matmul.weight_granularity:
            yield "weight is dequantized from 8 bits, expected FP32"
        if matmul.activation_scheme:
            yield f"activation is {matmul.activation_scheme}, expected FP32"
        return
    yield from _weight(matmul.stored_type, matmul.weight_granularity, wanted, rows=min(matmul.shape))
    if matmul.weight_scheme == "asym":
        yield "weight has a zero point, expected sym"
    if wanted.weight.bit == 7 and matmul.largest_code > _SEVEN_BITS:
        yield f"weight has codes up to {matmul.largest_code}, expected at most {_SEVEN_BITS} (7 bits)"
    # Calibration may yield a range centred on zero; an asymmetric quantizer then looks symmetric.
    allowed = {"sym": ("sym",), "asym": ("asym", "sym")}[wanted.activation.scheme] if static else ("",)
    if matmul.activation_scheme not in allowed:
        have = matmul.activation_scheme or "not quantized"
        yield f"activation is {have}, expected {wanted.activation.scheme if static else 'FP32'}"


def _embedding(table: "Embedding", section: Quantization, returned: bool) -> Iterator[str]:
    wanted = section.wanted(table.module, "Embedding")
    if returned or not in_8_bits(wanted):
        yield from _fp32(table.stored_type)
    else:
        yield from _weight(table.stored_type, table.weight_granularity, wanted, rows=min(table.shape))


def _attention(product: "AttentionProduct", section: Quantization, returned: bool) -> Iterator[str]:
    """Quantized attention is always symmetric: OpenVINO has no other 8-bit MatMul of two activations."""
    static = section.approach != "post_training_dynamic_quant"
    quantized = static and in_8_bits(section.wanted(product.module, "MatMul")) and not returned
    if product.activation_scheme != ("sym" if quantized else ""):
        have = product.activation_scheme or "not quantized"
        yield f"queries and keys are {have}, expected {'sym' if quantized else 'FP32'}"


def _fp32(stored_type: str) -> Iterator[str]:
    if stored_type != "f32":
        yield f"weight is stored as {stored_type}, expected f32"


def _weight(stored_type: str, granularity: str, wanted: ModelWise, rows: int) -> Iterator[str]:
    """Granularity is not checked for a single row (a regression head), which has one scale either way."""
    if stored_type != "i8":
        yield f"weight is stored as {stored_type}, expected i8"
    elif rows > 1 and granularity != wanted.weight.granularity:
        yield f"weight scale is {granularity}, expected {wanted.weight.granularity}"
