"""Opens an IR and says what is in it, matrix by matrix: nothing is taken on trust from the exporter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import UserError

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
    """

    name: str
    weight_name: str
    shape: tuple[int, ...]
    stored_type: str
    zero_fraction: float
    input_fake_quantized: bool


@dataclass(frozen=True)
class IRInspection:
    """What `inspect_ir` found."""

    matmuls: tuple[MatMul, ...]


def inspect_ir(folder: Path) -> IRInspection:
    """Every MatMul of an IR that has a constant matrix.

    Raises:
        UserError: The IR cannot be read.
    """
    import openvino as ov

    path = folder / "openvino_model.xml"
    try:
        model = ov.Core().read_model(path)
    except RuntimeError as error:
        raise UserError(f"OpenVINO cannot read it ({str(error).splitlines()[-1]})", where=str(path)) from None
    found = (_matmul(op) for op in model.get_ordered_ops() if op.get_type_name() == "MatMul")
    return IRInspection(tuple(m for m in found if m is not None))


def constant_of(op: Any) -> Any | None:
    """The constant behind an operation's weight input, through Convert, Multiply, Subtract and the like; or None."""
    node = op.input_value(1).get_node()
    while node.get_type_name() in ("Convert", "Multiply", "Subtract", "FakeQuantize", "Transpose", "Reshape"):
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def zeros_of(op: Any) -> Any:
    """Bool array of the stored matrix's shape: True where the dequantized weight is zero."""
    import numpy as np

    constant = constant_of(op)
    assert constant is not None
    values = np.asarray(constant.data)
    node = op.input_value(1).get_node()
    while node is not constant:  # a zero point moves the code that means zero
        if node.get_type_name() == "Subtract":
            offset = node.input_value(1).get_node()
            while offset.get_type_name() != "Constant":
                offset = offset.input_value(0).get_node()
            return values.astype(np.float32) == np.asarray(offset.data, dtype=np.float32)
        node = node.input_value(0).get_node()
    return values == 0


def _matmul(op: Any) -> MatMul | None:
    constant = constant_of(op)
    if constant is None or len(constant.get_output_shape(0)) != 2:
        return None
    name = constant.get_friendly_name()
    return MatMul(
        name=op.get_friendly_name(),
        weight_name=name if name.endswith(".weight") else "",
        shape=tuple(int(n) for n in constant.get_output_shape(0)),
        stored_type=constant.get_element_type().get_type_name(),
        zero_fraction=float(zeros_of(op).mean()),
        input_fake_quantized=_fake_quantized(op.input_value(0).get_node()),
    )


def _fake_quantized(node: Any) -> bool:
    while node.get_type_name() in _PASSES_THROUGH:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")


def executed(folder: Path) -> dict[str, str]:
    """Layer name -> precision in which the CPU plugin runs each fully connected layer, after one real inference."""
    import numpy as np
    import openvino as ov

    model = ov.Core().read_model(folder / "openvino_model.xml")
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ones = np.ones((1, 16), dtype=np.int64)
    compiled({port.get_any_name(): ones for port in compiled.inputs})
    found = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if "FullyConnected" in str(
            info["layerType"].value if hasattr(info["layerType"], "value") else info["layerType"]
        ):
            precision = info["runtimePrecision"]
            found[node.get_friendly_name()] = str(getattr(precision, "value", precision))
    return found
