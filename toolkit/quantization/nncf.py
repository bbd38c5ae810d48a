"""8-bit quantization by NNCF, and how a quantized model is kept on disk and opened again, exactly.

No `nncf.prune` is needed to hold the pattern: the weights' quantizer is symmetric, so what is zero stays code 0, and
`PatternLock` keeps the weights themselves at zero.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.measure import system
from toolkit.recipe import Quantization

_CONFIG = "nncf_config.json"
_WEIGHTS = "quantized.safetensors"
_NO_SATURATION = {"avx512_vnni", "avx_vnni", "amx_int8"}  # 8-bit products are summed in 32 bits


def resolve_overflow_fix(section: Quantization) -> Literal["enable", "disable"]:
    """`auto` read off this CPU: without VNNI, sums of two 8-bit products saturate at 16 bits."""
    if section.overflow_fix != "auto":
        return section.overflow_fix
    return "disable" if system.isa() & _NO_SATURATION else "enable"


def quantize(model: nn.Module, batches: Sequence[dict[str, Tensor]], section: Quantization) -> Any:
    """A copy of the model with trainable fake quantization, calibrated; for quantization-aware training.

    Args:
        model: FP32 model; stays as it is.
        batches: Model inputs (no labels), each at most a few examples.
        section: Granularity, scheme, overflow fix, which parts.
    """
    return _quantized(model, batches, section, for_training=True)


def post_training(model: nn.Module, batches: Sequence[dict[str, Tensor]], section: Quantization) -> Any:
    """A quantized copy of the model without training: NNCF's default algorithm for transformers, at its best."""
    return _quantized(model, batches, section, for_training=False)


def _quantized(
    model: nn.Module, batches: Sequence[dict[str, Tensor]], section: Quantization, for_training: bool
) -> Any:
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
        QuantizationParameters,
    )

    nncf.set_log_level(logging.WARNING)
    # SmoothQuant and bias correction move weights and biases between layers: good without training, in its way with.
    without = {"smooth_quant_alphas": AdvancedSmoothQuantParameters(matmul=-1), "disable_bias_correction": True}
    asymmetric = section.model_wise.activation.scheme == "asym"
    return nncf.quantize(
        model.eval(),
        nncf.Dataset(list(batches)),
        preset=nncf.QuantizationPreset.MIXED if asymmetric else nncf.QuantizationPreset.PERFORMANCE,
        target_device=nncf.TargetDevice.CPU,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
        fast_bias_correction=True,
        ignored_scope=None if section.embeddings else nncf.IgnoredScope(patterns=[".*embeddings.*"], validate=False),
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if resolve_overflow_fix(section) == "enable" else OverflowFix.DISABLE,
            weights_quantization_params=QuantizationParameters(
                per_channel=section.model_wise.weight.granularity == "per_channel"
            ),
            **(without if for_training else {}),
        ),
    )


def save(model: Any, folder: Path) -> None:
    """Writes what `load` needs: where the quantizers sit, and all weights and ranges."""
    import nncf.torch

    (folder / _CONFIG).write_text(json.dumps(nncf.torch.get_config(model)))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / _WEIGHTS)


def load(folder: Path, plain: Callable[[], nn.Module]) -> Any:
    """Opens a quantized model: the same numbers, bit for bit.

    Args:
        folder: Where `save` wrote.
        plain: Makes the model without quantizers.

    Raises:
        UserError: Something is missing or damaged.
    """
    import nncf.torch

    try:
        config = json.loads((folder / _CONFIG).read_text())
        state = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"this quantized model cannot be read ({error})", where=str(folder), instead="run the quantize stage again"
        ) from None
    model: Any = nncf.torch.load_from_config(plain(), config)
    model.load_state_dict(state)
    return model.eval()


def calibration_batches(collate: Callable[[list[Any]], dict[str, Tensor]], examples: Any, count: int) -> list[Any]:
    """The first `count` training examples one by one, as model inputs."""
    from toolkit.distillation import inputs_of

    with torch.no_grad():
        return [inputs_of(collate([examples[i]])) for i in range(min(count, len(examples)))]
