"""What the CPU plugin makes of an IR: the precision in which it executes each layer."""

from pathlib import Path
from typing import Any

import numpy as np

from toolkit.ir.runtime import core, read_ir


def executed(folder: Path) -> dict[str, str]:
    """Returns the precision in which each fully connected layer is executed, by torch module.

    `u8` or `i8` implies 8-bit activations only if the IR has a FakeQuantize. For weight-only quantization the plugin
    reports the weights' type; `quantizes_at_run_time` detects quantized activations in that case.
    """
    compiled = _compiled(folder)
    ones = np.ones((1, 16), dtype=np.int64)
    compiled({port.get_any_name(): ones for port in compiled.inputs})
    layers = [(node.get_friendly_name(), node.get_rt_info()) for node in compiled.get_runtime_model().get_ordered_ops()]
    return {
        name.removeprefix("__module.").partition("/")[0]: _text(info["runtimePrecision"])
        for name, info in layers
        if "FullyConnected" in _text(info["layerType"])
    }


def quantizes_at_run_time(folder: Path) -> bool:
    """Returns whether this CPU runs an IR with dynamic quantization: disabling it changes the logits.

    The runtime graph does not show the difference: it reports `i8` and an f32 kernel in both cases.
    """
    tokens = np.arange(64, dtype=np.int64).reshape(2, 32) % 30
    inputs = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    logits = []
    for changes in ({}, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}):
        compiled = _compiled(folder, **changes)
        logits.append(compiled({p.get_any_name(): inputs[p.get_any_name()] for p in compiled.inputs})[0])
    return not np.array_equal(*logits)


def _compiled(folder: Path, **properties: str) -> Any:
    return core().compile_model(read_ir(folder), "CPU", {"INFERENCE_PRECISION_HINT": "f32"} | properties)


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))
