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

from toolkit.core import machine
from toolkit.core.errors import UserError
from toolkit.ir.conformance import in_8_bits
from toolkit.quantization.operations import quantizable_ops, quantized_ops, quantizers
from toolkit.quantization.per_operation import apply, check_names, keep_within_7_bits
from toolkit.recipe.quantization import Quantization

_CONFIG = "nncf_config.json"
_WEIGHTS = "quantized.safetensors"
_FP32_BIAS = "fp32_bias/"  # before the names of biases as they were before NNCF corrected them
_NO_SATURATION = {"avx512_vnni", "avx_vnni", "amx_int8"}  # 8-bit products are summed in 32 bits


def resolve_overflow_fix(section: Quantization) -> Literal["enable", "disable"]:
    """Whether weights keep to 7 bits: where the recipe says `bit: 7`, else as `overflow_fix` says.

    `auto` is read off this CPU: without VNNI, sums of two 8-bit products saturate at 16 bits.
    """
    if section.model_wise.weight.bit == 7:
        return "enable"
    if section.overflow_fix != "auto":
        return section.overflow_fix
    return "disable" if machine.isa() & _NO_SATURATION else "enable"


def quantized(model: nn.Module, batches: Sequence[dict[str, Tensor]], section: Quantization) -> Any:
    """A quantized copy of the model, made as `section.approach` says; see the three functions below."""
    make = {
        "quant_aware_training": quantize,
        "post_training_static_quant": post_training,
        "post_training_dynamic_quant": dynamic,
    }
    return make[section.approach](model, batches, section)


def quantize(model: nn.Module, batches: Sequence[dict[str, Tensor]], section: Quantization) -> Any:
    """A copy of the model with trainable fake quantization, calibrated; for quantization-aware training.

    Every operation gets what the recipe asks of it. One whose weight or activation is to be `fp32` stays in FP32:
    8 bits need both.

    Args:
        model: FP32 model; stays as it is.
        batches: Model inputs (no labels), each at most a few examples.
        section: Granularity, scheme, overflow fix, for all and for single operations.

    Raises:
        UserError: The recipe names operations that the model has not.
    """
    return _quantized(model, batches, section, smooth_quant=False, bias_correction=False)


def post_training(model: nn.Module, batches: Sequence[dict[str, Tensor]], section: Quantization) -> Any:
    """A quantized copy of the model without training, helped by what `section.recipes` switches on.

    The biases from before the correction stay with the copy (`fp32_biases`), for operations that return to FP32.
    Arguments and errors as of `quantize`.
    """
    recipes = section.recipes
    return _quantized(model, batches, section, recipes.smooth_quant, recipes.fast_bias_correction)


def dynamic(model: nn.Module, batches: Sequence[dict[str, Tensor]], section: Quantization) -> Any:
    """A copy of the model with 8-bit weights alone; the runtime quantizes activations, where the CPU can.

    Arguments and errors as of `quantize`; of the batches only the first is used, to find its way in the model.
    """
    from nncf.torch.function_hook import get_hook_storage

    made = _quantized(model, batches[:1], section, smooth_quant=False, bias_correction=False)
    weights = {hook for op in quantized_ops(made, batches[0]).values() for hook in op.weight_hooks}
    for hook in quantizers(made).keys() - weights:
        get_hook_storage(made).delete_hook(hook)
    return made


def widen_to_7_bits(model: Any, sample: dict[str, Tensor], section: Quantization) -> None:
    """After training: weights that it moved out of the 7 bits of the overflow fix are let in again.

    Args:
        model: From `quantize`; scales are widened in place where their weights need it.
        sample: Model inputs.
        section: What it was quantized by.
    """
    if resolve_overflow_fix(section) == "enable":
        keep_within_7_bits(model, quantized_ops(model, sample))


def _quantized(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    section: Quantization,
    smooth_quant: bool,
    bias_correction: bool,
) -> Any:
    kinds = quantizable_ops(model, batches[0])
    check_names(section, kinds)
    # An asymmetric range can be made symmetric without loss of tightness, not the other way round.
    wanted = [section.wanted(name, kind) for name, kind in kinds.items() if kind == "Linear"]
    asymmetric = any(in_8_bits(w) and w.activation.scheme == "asym" for w in wanted)
    made = _by_nncf(model, batches, section, asymmetric, smooth_quant, bias_correction)
    made.fp32_biases = _changed_biases(model, made)
    apply(made, quantized_ops(made, batches[0]), section, resolve_overflow_fix(section) == "enable")
    return made


def _by_nncf(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    section: Quantization,
    asymmetric: bool,
    smooth_quant: bool,
    bias_correction: bool,
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
    smooth = AdvancedSmoothQuantParameters() if smooth_quant else AdvancedSmoothQuantParameters(matmul=-1)
    return nncf.quantize(
        model.eval(),
        nncf.Dataset(list(batches)),
        preset=nncf.QuantizationPreset.MIXED if asymmetric else nncf.QuantizationPreset.PERFORMANCE,
        target_device=nncf.TargetDevice.CPU,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
        fast_bias_correction=True,
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if resolve_overflow_fix(section) == "enable" else OverflowFix.DISABLE,
            weights_quantization_params=QuantizationParameters(
                per_channel=section.model_wise.weight.granularity == "per_channel"
            ),
            smooth_quant_alphas=smooth,
            disable_bias_correction=not bias_correction,
        ),
    )


def _changed_biases(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> bias before, of those that bias correction changed."""
    old = {name: p.detach() for name, p in before.named_parameters() if name.endswith(".bias")}
    return {name: bias.clone() for name, bias in old.items() if not torch.equal(bias, after.get_parameter(name))}


def save(model: Any, folder: Path) -> None:
    """Writes what `load` needs: where the quantizers sit, and all weights and ranges."""
    import nncf.torch

    (folder / _CONFIG).write_text(json.dumps(nncf.torch.get_config(model)))
    biases = {f"{_FP32_BIAS}{name}": bias for name, bias in getattr(model, "fp32_biases", {}).items()}
    state = model.state_dict() | biases
    # Cloned: SmoothQuant's factors are the same tensor at each of their places, which safetensors refuses.
    save_file(
        {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}, folder / _WEIGHTS
    )


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
    biases = {name: state.pop(name) for name in sorted(state) if name.startswith(_FP32_BIAS)}
    model: Any = nncf.torch.load_from_config(plain(), config)
    model.load_state_dict(state)
    model.fp32_biases = {name.removeprefix(_FP32_BIAS): bias for name, bias in biases.items()}
    return model.eval()


def calibration_batches(collate: Callable[[list[Any]], dict[str, Tensor]], examples: Any, count: int) -> list[Any]:
    """The first `count` training examples one by one, as model inputs."""
    from toolkit.data.batches import model_inputs

    with torch.no_grad():
        return [model_inputs(collate([examples[i]])) for i in range(min(count, len(examples)))]
