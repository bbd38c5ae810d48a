"""Inspection of an IR: storage, sparsity and quantization of every matrix, read from the IR itself."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.ir.constants import chain, constant_of, values_of, zero_point, zeros_of

Granularity = Literal["per_channel", "per_group", "per_tensor", ""]
Scheme = Literal["sym", "asym", ""]

# Operations that move values without changing them, so that quantized inputs yield quantized outputs.
_PASSES_THROUGH = {"Reshape", "Transpose", "Convert", "Gather", "StridedSlice", "Slice", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class MatMul:
    """A MatMul with a constant matrix.

    Attributes:
        name: The operation's name in the IR.
        weight_name: Name of the torch parameter; empty if the IR does not contain it.
        shape: Shape of the stored matrix; of one that is stored in groups, the shape of the product's input.
        stored_type: Element type in the .bin: f32, i8, u4, …
        zero_fraction: Fraction of weights that are exactly zero after dequantization; NaN: not counted.
        input_fake_quantized: Whether a FakeQuantize feeds the activations, so that the MatMul runs in 8 bits.
        module: Name of the torch module, e.g. `bert.encoder.layer.0.attention.self.query`; empty if unknown.
        weight_granularity: `per_channel`, `per_group` (several scales per channel) or `per_tensor`; empty if the weight
            is not dequantized.
        weight_scheme: `sym`, or `asym` with a zero point; empty if the weight is not dequantized.
        activation_scheme: Scheme of the input's FakeQuantize: `sym` if zero is the centre or an end of its range,
            else `asym`; empty without a FakeQuantize.
        largest_code: Largest absolute value of a stored integer weight; 0 for other types.
    """

    name: str
    weight_name: str
    shape: tuple[int, ...]
    stored_type: str
    zero_fraction: float
    input_fake_quantized: bool
    module: str = ""
    weight_granularity: Granularity = ""
    weight_scheme: Scheme = ""
    activation_scheme: Scheme = ""
    largest_code: int = 0


@dataclass(frozen=True)
class Embedding:
    """An embedding table; its attributes have the same meaning as those of `MatMul`."""

    name: str
    module: str
    shape: tuple[int, ...]
    stored_type: str
    weight_granularity: Granularity
    weight_scheme: Scheme


@dataclass(frozen=True)
class AttentionProduct:
    """The attention MatMul of queries and keys.

    Attributes:
        name: The operation's name in the IR.
        module: Name of the attention's torch module; empty if unknown.
        activation_scheme: `sym` or `asym` if a FakeQuantize feeds both queries and keys, else empty.
    """

    name: str
    module: str
    activation_scheme: Scheme


@dataclass(frozen=True)
class IRInspection:
    """Result of `inspect_ir`.

    Attributes:
        matmuls: All MatMuls with a constant matrix.
        embeddings: All embedding tables.
        attentions: All attention MatMuls.
    """

    matmuls: tuple[MatMul, ...]
    embeddings: tuple[Embedding, ...] = ()
    attentions: tuple[AttentionProduct, ...] = ()


def inspect_ir(folder: Path) -> IRInspection:
    """Returns all MatMuls with a constant matrix, embeddings and attention MatMuls of an IR.

    Raises:
        UserError: The IR cannot be read.
    """
    from toolkit.ir.runtime import read_ir

    ops = read_ir(folder).get_ordered_ops()
    return IRInspection(
        tuple(m for op in ops for m in _matmuls(op)),
        tuple(e for op in ops for e in _embeddings(op)),
        tuple(a for a in map(_attention, ops) if a is not None),
    )


def _matmuls(op: Any) -> list[MatMul]:
    if op.get_type_name() == "SparseLinear":
        rounds = bool(op.get_attributes().get("input_ranges"))
        return [_packed(op.input_value(i).get_node(), rounds) for i in range(1, op.get_input_size())]
    if op.get_type_name() == "SparseEncoder":
        lows = op.get_attributes()["input_ranges"][::2]
        return [_packed(op.input_value(3 + i).get_node(), low != "none") for i, low in enumerate(lows)]
    found = _matmul(op) if op.get_type_name() == "MatMul" else None
    return [found] if found else []


def _packed(constant: Any, rounds: bool) -> MatMul:
    """Inspects a matrix of a SparseLinear; `sparse_engine.py` names its constant after the replaced MatMul."""
    import numpy as np

    from toolkit.ir import kernels

    values, _, _ = kernels.unpack(np.asarray(constant.data))
    int8 = values.dtype == np.int8
    return MatMul(
        name=constant.get_friendly_name(),
        weight_name="",
        shape=values.shape,
        stored_type="i8" if int8 else "f32" if values.dtype == np.float32 else "f16",
        zero_fraction=float((values == 0).mean()),
        input_fake_quantized=rounds,
        module=module_of(constant),
        weight_granularity="per_channel" if int8 else "",
        weight_scheme="sym" if int8 else "",
        largest_code=int(np.abs(values.astype(np.int64)).max()) if int8 else 0,
    )


def _matmul(op: Any) -> MatMul | None:
    constant = constant_of(op)
    shape = None if constant is None else _matrix_shape(op, 1, constant)
    if constant is None or shape is None:
        return None
    name = constant.get_friendly_name()
    scheme = _activation_scheme(op, 0)
    return MatMul(
        name=op.get_friendly_name(),
        weight_name=name if name.endswith(".weight") else "",
        shape=shape,
        stored_type=constant.get_element_type().get_type_name(),
        zero_fraction=_zero_fraction(op),
        input_fake_quantized=scheme != "",
        module=module_of(op),
        weight_granularity=_granularity(op, 1),
        weight_scheme=_weight_scheme(op, 1),
        activation_scheme=scheme,
        largest_code=_largest_code(constant),
    )


def _matrix_shape(op: Any, port: int, constant: Any) -> tuple[int, ...] | None:
    """Returns the shape of a matrix that is stored as it is, or in groups as [rows, groups, size]; None: no matrix."""
    stored = tuple(int(n) for n in constant.get_output_shape(0))
    if len(stored) == 2:
        return stored
    given = op.input_value(port).get_partial_shape()
    grouped = len(stored) == 3 and given.is_static and len(given) == 2
    return tuple(int(n) for n in given.to_shape()) if grouped else None


def _zero_fraction(op: Any) -> float:
    try:
        return float(zeros_of(op).mean())
    except RuntimeError:  # a type that OpenVINO does not convert
        return math.nan


def _embeddings(op: Any) -> list[Embedding]:
    if op.get_type_name() == "EmbeddingSum":
        tables = [op.input_value(i).get_node() for i in range(2, op.get_input_size(), 3)]
        return [
            Embedding(t.get_friendly_name(), module_of(t), tuple(t.get_output_shape(0)), "i8", "per_channel", "sym")
            for t in tables
        ]
    found = _embedding(op) if op.get_type_name() == "Gather" else None
    return [found] if found else []


def _embedding(op: Any) -> Embedding | None:
    """Inspects a Gather of rows from a constant table: floats, dequantized codes, or codes dequantized afterwards."""
    constant = constant_of(op, 0)
    shape = None if constant is None else _matrix_shape(op, 0, constant)
    if constant is None or shape is None or shape[1] == 1:
        return None  # a single column holds the scales of a table
    kind = constant.get_element_type().get_type_name()
    codes = kind == "i8" and not op.get_output_element_type(0).is_real()  # dequantized after the Gather
    if not codes and not op.get_output_element_type(0).is_real():
        return None
    return Embedding(
        name=op.get_friendly_name(),
        module=module_of(op),
        shape=shape,
        stored_type=kind,
        weight_granularity="per_channel" if codes else _granularity(op, 0),
        weight_scheme="sym" if codes else _weight_scheme(op, 0),
    )


def _attention(op: Any) -> AttentionProduct | None:
    if op.get_type_name() != "ScaledDotProductAttention":
        return None
    schemes = {_activation_scheme(op, 0), _activation_scheme(op, 1)}
    scheme: Scheme = "" if "" in schemes else "asym" if "asym" in schemes else "sym"
    return AttentionProduct(op.get_friendly_name(), module_of(op), scheme)


def _granularity(op: Any, port: int) -> Granularity:
    """Returns the granularity, given by the number of scales of the dequantizing Multiply."""
    import numpy as np

    for node in chain(op, port):
        if node.get_type_name() == "Multiply":
            scales = tuple(node.input_value(1).get_shape())
            if len(scales) == 3 and scales[1] > 1:
                return "per_group"
            return "per_channel" if int(np.prod(scales)) > 1 else "per_tensor"
    return ""


def _weight_scheme(op: Any, port: int) -> Scheme:
    if not _granularity(op, port):
        return ""
    offset = zero_point(op, port)
    return "asym" if offset is not None and (offset != 0).any() else "sym"


def _largest_code(constant: Any) -> int:
    import numpy as np

    if not constant.get_element_type().is_integral():
        return 0
    return int(np.abs(values_of(constant).astype(np.int64)).max())


def _activation_scheme(op: Any, port: int) -> Scheme:
    """Returns the scheme, given by the ranges of the FakeQuantize that feeds an input."""
    import numpy as np

    node = op.input_value(port).get_node()
    while node.get_type_name() in _PASSES_THROUGH:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "FakeQuantize":
        return ""
    low, high = (np.asarray(node.input_value(i).get_node().data, dtype=np.float64) for i in (1, 2))
    levels = node.get_attributes()["levels"]
    signed = np.isclose(low, -high * (levels / (levels - 2) if levels % 2 == 0 else 1), rtol=1e-3)
    return "sym" if bool((signed | (low == 0)).all()) else "asym"


def module_of(node: Any) -> str:
    """Returns the torch module: `__module.bert.pooler.dense/aten::linear/MatMul` -> `bert.pooler.dense`."""
    name: str = node.get_friendly_name()
    return name.removeprefix("__module.").partition("/")[0] if name.startswith("__module.") else ""
