"""Opens an IR and says what is in it, matrix by matrix: nothing is taken on trust from the exporter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.ir.constants import chain, constant_of, zero_point, zeros_of

Granularity = Literal["per_channel", "per_tensor", ""]
Scheme = Literal["sym", "asym", ""]

# Operations that move values without changing them: behind them a quantized value is still quantized.
_PASSES_THROUGH = {"Reshape", "Transpose", "Convert", "Gather", "StridedSlice", "Slice", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class MatMul:
    """One product with a constant matrix.

    Attributes:
        name: The operation's name in the IR.
        weight_name: Name of the torch parameter, where the IR still knows it, else empty.
        shape: Of the stored matrix.
        stored_type: Element type in the .bin: f32, i8, …
        zero_fraction: Share of weights that are exactly zero once dequantized.
        input_fake_quantized: Whether the activations come from a FakeQuantize, so that the product runs in 8 bits.
        module: Name of the torch module, e.g. `bert.encoder.layer.0.attention.self.query`; empty if not known.
        weight_granularity: `per_channel` or `per_tensor`; empty where nothing dequantizes the weight.
        weight_scheme: `sym`, or `asym` with a zero point; empty where nothing dequantizes the weight.
        activation_scheme: Of the FakeQuantize before it: `sym` where zero is in the middle or at the end of its range,
            else `asym`; empty without one.
        largest_code: Largest absolute value of an integer weight as it is stored; 0 for other types.
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
    """One table of constant rows; attributes as of `MatMul`."""

    name: str
    module: str
    shape: tuple[int, ...]
    stored_type: str
    weight_granularity: Granularity
    weight_scheme: Scheme


@dataclass(frozen=True)
class AttentionProduct:
    """Attention's product of queries and keys.

    Attributes:
        name: The operation's name in the IR.
        module: Name of the torch module that computes it; empty if not known.
        activation_scheme: `sym` or `asym` where queries and keys both come from a FakeQuantize, else empty.
    """

    name: str
    module: str
    activation_scheme: Scheme


@dataclass(frozen=True)
class IRInspection:
    """What `inspect_ir` found."""

    matmuls: tuple[MatMul, ...]
    embeddings: tuple[Embedding, ...] = ()
    attentions: tuple[AttentionProduct, ...] = ()


def inspect_ir(folder: Path) -> IRInspection:
    """Every product with a constant matrix, every embedding and every attention of an IR.

    Raises:
        UserError: The IR cannot be read.
    """
    from toolkit.ir.runtime import read_ir

    ops = read_ir(folder).get_ordered_ops()
    return IRInspection(
        tuple(m for op in ops for m in _matmuls(op)),
        tuple(e for e in map(_embedding, ops) if e is not None),
        tuple(a for a in map(_attention, ops) if a is not None),
    )


def executed(folder: Path, group_size: int | None = None) -> dict[str, str]:
    """What the CPU plugin makes of each fully connected layer, after one real inference.

    `u8` or `i8` says that activations arrive in 8 bits only where the IR has FakeQuantize; before 8-bit weights alone
    the plugin reports the weights' type, and `quantizes_at_run_time` says what becomes of the activations.

    Args:
        folder: Any IR folder.
        group_size: Dynamic quantization's group; None: the plugin's default.

    Returns:
        Module name (or the layer's name in the IR) -> runtime precision.
    """
    import numpy as np

    compiled = _compiled(folder, group_size)
    ones = np.ones((1, 16), dtype=np.int64)
    compiled({port.get_any_name(): ones for port in compiled.inputs})
    layers = [(n, n.get_rt_info()) for n in compiled.get_runtime_model().get_ordered_ops()]
    return {
        _module(node) or node.get_friendly_name(): _text(info["runtimePrecision"])
        for node, info in layers
        if "FullyConnected" in _text(info["layerType"])
    }


def quantizes_at_run_time(folder: Path) -> bool:
    """Whether this CPU quantizes activations while it runs this IR: its answers differ from those without.

    The runtime graph does not tell: it says `i8` and an f32 kernel for both.
    """
    import numpy as np

    answers = []
    for group_size in (None, 0):
        compiled = _compiled(folder, group_size)
        tokens = np.arange(64, dtype=np.int64).reshape(2, 32) % 30
        answers.append(compiled({p.get_any_name(): _plausible(p.get_any_name(), tokens) for p in compiled.inputs})[0])
    return not np.array_equal(*answers)


def _plausible(name: str, tokens: Any) -> Any:
    """Some model inputs: ids as they are, a mask of ones, segments of zeros."""
    import numpy as np

    return {"attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}.get(name, tokens)


def _compiled(folder: Path, group_size: int | None) -> Any:
    from toolkit.ir.runtime import core, read_ir

    config = {"INFERENCE_PRECISION_HINT": "f32"}
    if group_size is not None:
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(group_size)
    return core().compile_model(read_ir(folder), "CPU", config)


def _matmuls(op: Any) -> list[MatMul]:
    if op.get_type_name() == "SparseLinear":
        rounds = bool(op.get_attributes().get("input_ranges"))
        return [_packed(op.input_value(i).get_node(), rounds) for i in range(1, op.get_input_size())]
    found = _matmul(op) if op.get_type_name() == "MatMul" else None
    return [found] if found else []


def _packed(constant: Any, rounds: bool) -> MatMul:
    """A matrix of a SparseLinear; `sparse_engine.py` names its constant after the product that it stands for."""
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
        module=_module(constant),
        weight_granularity="per_channel" if int8 else "",
        weight_scheme="sym" if int8 else "",
        largest_code=int(np.abs(values.astype(np.int64)).max()) if int8 else 0,
    )


def _matmul(op: Any) -> MatMul | None:
    constant = constant_of(op)
    if constant is None or len(constant.get_output_shape(0)) != 2:
        return None
    name = constant.get_friendly_name()
    scheme = _activation_scheme(op, 0)
    return MatMul(
        name=op.get_friendly_name(),
        weight_name=name if name.endswith(".weight") else "",
        shape=tuple(int(n) for n in constant.get_output_shape(0)),
        stored_type=constant.get_element_type().get_type_name(),
        zero_fraction=float(zeros_of(op).mean()),
        input_fake_quantized=scheme != "",
        module=_module(op),
        weight_granularity=_granularity(op, 1),
        weight_scheme=_weight_scheme(op, 1),
        activation_scheme=scheme,
        largest_code=_largest_code(constant),
    )


def _embedding(op: Any) -> Embedding | None:
    """A Gather of rows from a constant table of floats, of what a dequantization makes one, or of its codes."""
    constant = constant_of(op, 0) if op.get_type_name() == "Gather" else None
    if constant is None or len(constant.get_output_shape(0)) != 2 or constant.get_output_shape(0)[1] == 1:
        return None  # a column: the scales of a table
    kind = constant.get_element_type().get_type_name()
    codes = kind == "i8" and not op.get_output_element_type(0).is_real()  # dequantized after the Gather
    if not codes and not op.get_output_element_type(0).is_real():
        return None
    return Embedding(
        name=op.get_friendly_name(),
        module=_module(op),
        shape=tuple(int(n) for n in constant.get_output_shape(0)),
        stored_type=kind,
        weight_granularity="per_channel" if codes else _granularity(op, 0),
        weight_scheme="sym" if codes else _weight_scheme(op, 0),
    )


def _attention(op: Any) -> AttentionProduct | None:
    if op.get_type_name() != "ScaledDotProductAttention":
        return None
    schemes = {_activation_scheme(op, 0), _activation_scheme(op, 1)}
    scheme: Scheme = "" if "" in schemes else "asym" if "asym" in schemes else "sym"
    return AttentionProduct(op.get_friendly_name(), _module(op), scheme)


def _granularity(op: Any, port: int) -> Granularity:
    """By the number of scales of the Multiply that dequantizes."""
    import numpy as np

    for node in chain(op, port):
        if node.get_type_name() == "Multiply":
            return "per_channel" if int(np.prod(node.input_value(1).get_shape())) > 1 else "per_tensor"
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
    return int(np.abs(np.asarray(constant.data).astype(np.int64)).max())


def _activation_scheme(op: Any, port: int) -> Scheme:
    """By the ranges of the FakeQuantize that feeds an input."""
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


def _module(node: Any) -> str:
    """`__module.bert.pooler.dense/aten::linear/MatMul` -> `bert.pooler.dense`."""
    name: str = node.get_friendly_name()
    return name.removeprefix("__module.").partition("/")[0] if name.startswith("__module.") else ""


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))
