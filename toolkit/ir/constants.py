"""Constants that feed an operation's input, and the dequantization operations in between."""

from collections.abc import Iterator
from typing import Any

from toolkit.core.errors import UserError

_DEQUANTIZATION = {"Convert", "Multiply", "Subtract", "FakeQuantize", "Transpose", "Reshape"}
_AS_STORED = {"f64", "f32", "f16", "i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8"}


def constant_of(op: Any, port: int = 1) -> Any | None:
    """Returns the constant that feeds an input, directly or through dequantization operations; or None."""
    *_, last = chain(op, port)
    return last if last.get_type_name() == "Constant" else None


def values_of(constant: Any) -> Any:
    """Returns the stored values of a constant, in the shape of the constant.

    `Constant.data` contains several values in each byte of a 4-bit type, and the bytes of 8-bit and bf16 floats; these
    types are converted to float32.

    Raises:
        RuntimeError: OpenVINO cannot convert the type, such as strings.
    """
    import numpy as np

    if constant.get_element_type().get_type_name() in _AS_STORED:
        return np.asarray(constant.data)
    return np.asarray(constant.get_data(dtype=np.float32))


def zeros_of(op: Any) -> Any:
    """Returns a bool array of the stored matrix's shape: True where the dequantized weight is zero."""
    import numpy as np

    constant = constant_of(op)
    assert constant is not None
    values = values_of(constant)
    offset = zero_point(op, 1)  # a zero point shifts the code that represents zero
    return values == 0 if offset is None else values.astype(np.float32) == offset


def dequantized(op: Any, port: int, codes: Any = None) -> Any:
    """Returns the dequantized constant as a float32 array of the stored matrix's shape.

    Evaluates the Convert, Subtract, Multiply and FakeQuantize operations between the constant and the input.

    Args:
        op: Operation whose input `port` is fed by a constant.
        port: Index of the input.
        codes: Values to use in place of the stored ones; broadcast, so ones [rows, 1] yield the scale of each row.

    Raises:
        UserError: An operation of another type is located between the constant and the input.
    """
    import numpy as np

    *between, constant = chain(op, port)
    value = np.asarray(values_of(constant) if codes is None else codes, dtype=np.float32)
    for node in reversed(between):
        kind = node.get_type_name()
        if kind in ("Multiply", "Subtract"):
            *_, other = chain(node, 1)
            operand = np.asarray(values_of(other), dtype=np.float32)
            value = value * operand if kind == "Multiply" else value - operand
        elif kind == "FakeQuantize":
            value = _fake_quantized(node, value)
        elif kind != "Convert":
            raise UserError(f"unsupported operation {kind} between a constant and {op.get_friendly_name()}")
    return value


def codes_and_scales(op: Any, port: int) -> tuple[Any, Any] | None:
    """Returns int8 codes [rows, columns] and the scale of each row, [rows, 1]; None if an input is not stored so.

    Args:
        op: An operation.
        port: Index of its input, a constant, possibly dequantized.
    """
    import numpy as np

    constant = constant_of(op, port)
    if constant is None or constant.get_element_type().get_type_name() != "i8" or len(constant.data.shape) != 2:
        return None
    codes = np.array(constant.data)
    scales = dequantized(op, port, codes=np.ones((len(codes), 1), dtype=np.float32))
    exact = scales.shape == (len(codes), 1) and np.array_equal(dequantized(op, port), codes * scales)
    return (codes, scales) if exact else None


def _fake_quantized(node: Any, value: Any) -> Any:
    """OpenVINO's FakeQuantize: clamp to the input range, round to one of `levels`, rescale to the output range."""
    import numpy as np

    low, high, out_low, out_high = (np.asarray(node.input_value(i).get_node().data, np.float32) for i in range(1, 5))
    steps = node.get_attributes()["levels"] - 1
    clamped = np.clip(value, low, high)
    return (np.rint((clamped - low) / (high - low) * steps) / steps * (out_high - out_low) + out_low).astype(np.float32)


def chain(op: Any, port: int) -> Iterator[Any]:
    """Yields the operations from an input back to its constant, or to the first that is not a dequantization."""
    node = op.input_value(port).get_node()
    yield node
    while node.get_type_name() in _DEQUANTIZATION:
        node = node.input_value(0).get_node()
        yield node


def zero_point(op: Any, port: int) -> Any | None:
    """Returns the zero point that is subtracted from the codes, as a float array; None if there is none."""
    import numpy as np

    for node in chain(op, port):
        if node.get_type_name() == "Subtract":
            *_, offset = chain(node, 1)
            return np.asarray(values_of(offset), dtype=np.float32)
    return None
