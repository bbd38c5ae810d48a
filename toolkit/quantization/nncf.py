"""8-bit quantization with NNCF, and bit-exact saving and loading of quantized models.

The sparsity pattern needs no `nncf.prune`: weight quantizers are symmetric, so a zero weight maps to code 0, and
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
from toolkit.quantization.extension import await_builds
from toolkit.quantization.operations import quantizable_ops, quantized_ops, quantizers
from toolkit.quantization.per_operation import apply, check_names, keep_within_7_bits
from toolkit.recipe.quantization import Quantization

_CONFIG = "nncf_config.json"
_WEIGHTS = "quantized.safetensors"
_FP32_BIAS = "fp32_bias/"  # key prefix of the biases from before NNCF's bias correction
_NO_SATURATION = {"avx512_vnni", "avx_vnni", "amx_int8"}  # these accumulate 8-bit products in 32 bits


def resolve_overflow_fix(section: Quantization) -> Literal["enable", "disable"]:
    """Returns whether weights are limited to 7 bits: always with `bit: 7`, otherwise according to `overflow_fix`.

    `auto` depends on this CPU: without VNNI, sums of two 8-bit products saturate at 16 bits.
    """
    if section.model_wise.weight.bit == 7:
        return "enable"
    if section.overflow_fix != "auto":
        return section.overflow_fix
    return "disable" if machine.isa() & _NO_SATURATION else "enable"


def quantized(model: nn.Module, batches: Sequence[dict[str, Tensor]], section: Quantization) -> Any:
    """Returns a copy of the model quantized by `section.approach`; see the three functions below."""
    make = {
        "quant_aware_training": quantize,
        "post_training_static_quant": post_training,
        "post_training_dynamic_quant": dynamic,
    }
    return make[section.approach](model, batches, section)


def quantize(model: nn.Module, batches: Sequence[dict[str, Tensor]], section: Quantization) -> Any:
    """Returns a calibrated copy of the model with trainable fake quantization, for quantization-aware training.

    Every operation is configured as the recipe requests. An operation stays in FP32 if its weight or its activation
    is `fp32`: an 8-bit operation needs both quantized.

    Args:
        model: FP32 model; left unchanged.
        batches: Calibration inputs without labels, at most a few examples per batch.
        section: Granularity, scheme and overflow fix, for the model and for single operations.

    Raises:
        UserError: The recipe names operations that the model does not have.
    """
    return _quantize_ops(model, batches, section, smooth_quant=False, bias_correction=False)


def post_training(model: nn.Module, batches: Sequence[dict[str, Tensor]], section: Quantization) -> Any:
    """Returns a copy of the model after static post-training quantization, with the options of `section.recipes`.

    The copy keeps the biases from before bias correction (`fp32_biases`) for operations that fall back to FP32.
    Arguments and errors are those of `quantize`.
    """
    recipes = section.recipes
    return _quantize_ops(model, batches, section, recipes.smooth_quant, recipes.fast_bias_correction)


def dynamic(model: nn.Module, batches: Sequence[dict[str, Tensor]], section: Quantization) -> Any:
    """Returns a copy of the model with 8-bit weights only; the runtime quantizes activations if the CPU supports it.

    Arguments and errors are those of `quantize`. Only the first batch is used, to trace the model.
    """
    from nncf.torch.function_hook import get_hook_storage

    made = _quantize_ops(model, batches[:1], section, smooth_quant=False, bias_correction=False)
    weights = {hook for op in quantized_ops(made, batches[0]).values() for hook in op.weight_hooks}
    for hook in quantizers(made).keys() - weights:
        get_hook_storage(made).delete_hook(hook)
    return made


def widen_to_7_bits(model: Any, sample: dict[str, Tensor], section: Quantization) -> None:
    """Widens scales after training so that all weights fit the overflow fix's 7-bit range again.

    Args:
        model: Model from `quantize`; scales that are too small are enlarged in place.
        sample: Model inputs for tracing.
        section: The section that the model was quantized with.
    """
    if resolve_overflow_fix(section) == "enable":
        keep_within_7_bits(model, quantized_ops(model, sample))


def _quantize_ops(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    section: Quantization,
    smooth_quant: bool,
    bias_correction: bool,
) -> Any:
    kinds = quantizable_ops(model, batches[0])
    check_names(section, kinds)
    # A calibrated asymmetric range determines the tightest symmetric one; the reverse does not hold.
    wanted = [section.wanted(name, kind) for name, kind in kinds.items() if kind == "Linear"]
    asymmetric = any(in_8_bits(w) and w.activation.scheme == "asym" for w in wanted)
    made = _nncf_quantize(model, batches, section, asymmetric, smooth_quant, bias_correction)
    made.fp32_biases = _changed_biases(model, made)
    apply(made, quantized_ops(made, batches[0]), section, resolve_overflow_fix(section) == "enable")
    return made


def _nncf_quantize(
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
    await_builds()
    # SmoothQuant and bias correction shift scales and biases between layers: they help PTQ but interfere with QAT.
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
    """Returns the original values of all biases that bias correction changed, by parameter name."""
    old = {name: p.detach() for name, p in before.named_parameters() if name.endswith(".bias")}
    return {name: bias.clone() for name, bias in old.items() if not torch.equal(bias, after.get_parameter(name))}


def save(model: Any, folder: Path) -> None:
    """Writes the quantizer configuration and the state dict (weights and ranges) that `load` reads."""
    import nncf.torch

    (folder / _CONFIG).write_text(json.dumps(nncf.torch.get_config(model)))
    biases = {f"{_FP32_BIAS}{name}": bias for name, bias in getattr(model, "fp32_biases", {}).items()}
    state = model.state_dict() | biases
    # Cloned because SmoothQuant registers one factor tensor under several names, which safetensors rejects.
    save_file(
        {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}, folder / _WEIGHTS
    )


def load(folder: Path, plain: Callable[[], nn.Module]) -> Any:
    """Loads a quantized model, bit-identical to the saved one.

    Args:
        folder: Folder written by `save`.
        plain: Factory for the model without quantizers.

    Raises:
        UserError: A file is missing or corrupt.
    """
    import nncf.torch

    try:
        config = json.loads((folder / _CONFIG).read_text())
        state = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"cannot read the quantized model ({error})", where=str(folder), instead="rerun the quantize stage"
        ) from None
    biases = {name: state.pop(name) for name in sorted(state) if name.startswith(_FP32_BIAS)}
    nncf.set_log_level(logging.WARNING)
    await_builds()
    model: Any = nncf.torch.load_from_config(plain(), config)
    model.load_state_dict(state)
    model.fp32_biases = {name.removeprefix(_FP32_BIAS): bias for name, bias in biases.items()}
    return model.eval()


def calibration_batches(collate: Callable[[list[Any]], dict[str, Tensor]], examples: Any, count: int) -> list[Any]:
    """Returns `count` training examples, spread evenly over the split, as model inputs, one example per batch.

    Files are often sorted by source or class: the first rows alone would set the ranges of activations.
    """
    from toolkit.data.batches import model_inputs

    count = min(count, len(examples))
    with torch.no_grad():
        return [model_inputs(collate([examples[i * len(examples) // count]])) for i in range(count)]
