"""What the recipe asks of each operation against what an exported IR has. Needs neither torch nor OpenVINO."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from toolkit.recipe.quantization import ModelWise, Quantization

if TYPE_CHECKING:
    from toolkit.ir.inspect import AttentionProduct, Embedding, IRInspection, MatMul

_SEVEN_BITS = 64  # largest code: half of the range, and the one that 63.5 rounds to


def in_8_bits(wanted: ModelWise) -> bool:
    """Whether an operation is to be quantized: 8 bits need a quantized weight and a quantized activation."""
    return wanted.weight.dtype == "int8" and wanted.activation.dtype == "int8"


def mismatches(inspection: "IRInspection", section: Quantization, returned: Collection[str] = ()) -> list[str]:
    """Where the IR is not what the recipe asks for, in words; empty: each request was honoured.

    Args:
        inspection: What `inspect_ir` found.
        section: The recipe's section.
        returned: Names of operations that tuning gave back to FP32.
    """
    found = [f"{m.name}: its torch module is not known" for m in inspection.matmuls if not m.module]
    for matmul in (m for m in inspection.matmuls if m.module):
        found += [f"{matmul.module}: {what}" for what in _linear(matmul, section, matmul.module in returned)]
    for table in inspection.embeddings:
        found += [f"{table.module}: {what}" for what in _embedding(table, section, table.module in returned)]
    for product in inspection.attentions:
        found += [f"{product.module}: {what}" for what in _attention(product, section, product.module in returned)]
    present = {m.module for m in inspection.matmuls} | {e.module for e in inspection.embeddings}
    present |= {a.module for a in inspection.attentions}
    return found + [
        f"{name}: returned to FP32, but the IR has no such operation" for name in sorted(set(returned) - present)
    ]


def _linear(matmul: "MatMul", section: Quantization, returned: bool) -> Iterator[str]:
    wanted = section.wanted(matmul.module, "Linear")
    static = section.approach != "post_training_dynamic_quant"
    if returned or not in_8_bits(wanted):
        yield from _fp32(matmul.stored_type)
        if matmul.weight_granularity:
            yield "the weight is dequantized from 8 bits, FP32 was wanted"
        if matmul.activation_scheme:
            yield f"the activation is {matmul.activation_scheme}, FP32 was wanted"
        return
    yield from _weight(matmul.stored_type, matmul.weight_granularity, wanted, rows=min(matmul.shape))
    if matmul.weight_scheme == "asym":
        yield "the weight has a zero point, sym was wanted"
    if wanted.weight.bit == 7 and matmul.largest_code > _SEVEN_BITS:
        yield f"the weight has codes up to {matmul.largest_code}, 7 bits end at {_SEVEN_BITS}"
    # A range with zero in its middle is what asym comes to for such values: it is no breach.
    allowed = {"sym": ("sym",), "asym": ("asym", "sym")}[wanted.activation.scheme] if static else ("",)
    if matmul.activation_scheme not in allowed:
        have = matmul.activation_scheme or "not quantized"
        yield f"the activation is {have}, {wanted.activation.scheme if static else 'FP32'} was wanted"


def _embedding(table: "Embedding", section: Quantization, returned: bool) -> Iterator[str]:
    wanted = section.wanted(table.module, "Embedding")
    if returned or not in_8_bits(wanted):
        yield from _fp32(table.stored_type)
    else:
        yield from _weight(table.stored_type, table.weight_granularity, wanted, rows=min(table.shape))


def _attention(product: "AttentionProduct", section: Quantization, returned: bool) -> Iterator[str]:
    """Symmetric wherever it is quantized: OpenVINO has no other 8-bit product of two activations."""
    static = section.approach != "post_training_dynamic_quant"
    quantized = static and in_8_bits(section.wanted(product.module, "MatMul")) and not returned
    if product.activation_scheme != ("sym" if quantized else ""):
        have = product.activation_scheme or "not quantized"
        yield f"queries and keys are {have}, {'sym' if quantized else 'FP32'} was wanted"


def _fp32(stored_type: str) -> Iterator[str]:
    if stored_type != "f32":
        yield f"the weight is stored as {stored_type}, f32 was wanted"


def _weight(stored_type: str, granularity: str, wanted: ModelWise, rows: int) -> Iterator[str]:
    """A matrix of one row, as of a regression's head, has one scale whatever is asked for."""
    if stored_type != "i8":
        yield f"the weight is stored as {stored_type}, i8 was wanted"
    elif rows > 1 and granularity != wanted.weight.granularity:
        yield f"the weight's scale is {granularity}, {wanted.weight.granularity} was wanted"
