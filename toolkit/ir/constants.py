"""The constant behind an operation's input, and what the operations between make of it."""

from collections.abc import Iterator
from typing import Any

from toolkit.core.errors import UserError

_AROUND_CONSTANTS = {"Convert", "Multiply", "Subtract", "FakeQuantize", "Transpose", "Reshape"}


def constant_of(op: Any, port: int = 1) -> Any | None:
    """The constant behind an operation's weight input, through Convert, Multiply, Subtract and the like; or None."""
    *_, last = chain(op, port)
    return last if last.get_type_name() == "Constant" else None


def zeros_of(op: Any) -> Any:
    """Bool array of the stored matrix's shape: True where the dequantized weight is zero."""
    import numpy as np

    constant = constant_of(op)
    assert constant is not None
    values = np.asarray(constant.data)
    offset = zero_point(op, 1)  # moves the code that means zero
    return values == 0 if offset is None else values.astype(np.float32) == offset


def dequantized(op: Any, port: int, codes: Any = None) -> Any:
    """float32 array of the stored matrix's shape: what Convert, Subtract, Multiply and FakeQuantize make of it.

    Args:
        op: An operation with a constant behind `port`.
        port: The input.
        codes: Instead of what is stored; broadcast, so ones [rows, 1] show the scale of each row.
    """
    import numpy as np

    *between, constant = chain(op, port)
    value = np.asarray(constant.data if codes is None else codes, dtype=np.float32)
    for node in reversed(between):
        kind = node.get_type_name()
        if kind in ("Multiply", "Subtract"):
            *_, other = chain(node, 1)
            operand = np.asarray(other.data, dtype=np.float32)
            value = value * operand if kind == "Multiply" else value - operand
        elif kind == "FakeQuantize":
            value = _fake_quantized(node, value)
        elif kind != "Convert":
            raise UserError(f"{kind} between a constant and {op.get_friendly_name()} is not understood")
    return value


def _fake_quantized(node: Any, value: Any) -> Any:
    """OpenVINO's definition: clamp to the input range, round to one of `levels`, stretch to the output range."""
    import numpy as np

    low, high, out_low, out_high = (np.asarray(node.input_value(i).get_node().data, np.float32) for i in range(1, 5))
    steps = node.get_attributes()["levels"] - 1
    clamped = np.clip(value, low, high)
    return (np.rint((clamped - low) / (high - low) * steps) / steps * (out_high - out_low) + out_low).astype(np.float32)


def chain(op: Any, port: int) -> Iterator[Any]:
    """The operations from an input back to its constant, or to the first that computes something."""
    node = op.input_value(port).get_node()
    yield node
    while node.get_type_name() in _AROUND_CONSTANTS:
        node = node.input_value(0).get_node()
        yield node


def zero_point(op: Any, port: int) -> Any | None:
    """Float array of what is subtracted from the codes, or None."""
    import numpy as np

    for node in chain(op, port):
        if node.get_type_name() == "Subtract":
            *_, offset = chain(node, 1)
            return np.asarray(offset.data, dtype=np.float32)
    return None
