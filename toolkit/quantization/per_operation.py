"""Per-operation quantization settings, applied on top of NNCF's model-wide configuration.

NNCF quantizes the model with one configuration. Operations with other settings get new quantizers afterwards, computed
with NNCF's own formulas, so they equal what NNCF would have created with these settings.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.core.errors import UserError
from toolkit.ir.conformance import in_8_bits
from toolkit.quantization.operations import QuantizedOp, quantizers, return_to_fp32, uncorrect_biases
from toolkit.recipe.quantization import OpType, Quantization


def check_names(section: Quantization, ops: dict[str, OpType]) -> None:
    """Checks that every expression and operation type in the recipe matches an operation of the model.

    Args:
        section: The recipe's quantization section.
        ops: Types of the quantizable operations, by name.

    Raises:
        UserError: An expression or a type matches no quantizable operation.
    """
    firsts = {kind: name for name, kind in reversed(ops.items())}  # the first operation of each type
    for pattern in section.op_wise:
        if not any(re.search(pattern, name) for name in ops):
            raise UserError(
                f"{pattern!r} matches no quantizable operation",
                where="quantization.op_wise",
                instead=f"a regular expression that matches names such as {', '.join(firsts.values())}",
            )
    for kind in section.optype_wise:
        if kind not in ops.values():
            raise UserError(
                f"the model has no {kind} operation to quantize",
                where="quantization.optype_wise",
                instead=", ".join(dict.fromkeys(ops.values())),
            )


def apply(model: Any, ops: Mapping[str, QuantizedOp], section: Quantization, seven_bits: bool) -> None:
    """Replaces or removes quantizers so that every operation has the settings that the recipe requests.

    An operation runs in 8 bits only if its weight and activation are both `int8`; otherwise it is kept in FP32.

    Args:
        model: Model quantized with the `model_wise` settings; changed in place.
        ops: Result of `quantized_ops`.
        section: The recipe's quantization section.
        seven_bits: Whether MatMul weights are limited to half of the 8-bit range (the overflow fix).
    """
    wanted = {name: section.wanted(name, op.kind) for name, op in ops.items()}
    return_to_fp32(model, [name for name in ops if not in_8_bits(wanted[name])], ops)
    shared = _shared(ops)
    for name in (n for n in ops if in_8_bits(wanted[n])):
        op, hooked, edited = ops[name], quantizers(model), False
        for hook in op.weight_hooks:
            per_channel = wanted[name].weight.granularity == "per_channel"
            if hooked[hook].per_channel != per_channel:
                weight = model.get_parameter(f"{name}.weight").detach()
                fixed = seven_bits and op.kind == "Linear"  # an Embedding has no sums that could overflow
                _replace(model, hook, _weight_quantizer(hooked[hook], weight, per_channel, fixed))
                edited = True
        for hook in op.input_hooks if op.kind == "Linear" else ():  # OpenVINO's attention supports only sym
            symmetric = wanted[name].activation.scheme == "sym"
            if _symmetric(hooked[hook]) != symmetric and hook not in shared:
                _replace(model, hook, _input_quantizer(hooked[hook], symmetric))
                edited = True
        if edited:
            uncorrect_biases(model, [name])


def keep_within_7_bits(model: Any, ops: Mapping[str, QuantizedOp]) -> None:
    """Widens scales after training with the overflow fix so that all weights fit half of the 8-bit range again.

    Args:
        model: Model quantized with the overflow fix; scales that are too small are enlarged in place.
        ops: Result of `quantized_ops`.
    """
    hooked = quantizers(model)
    with torch.no_grad():
        for op in ops.values():
            for hook in op.weight_hooks if op.kind == "Linear" else ():
                quantizer, weight = hooked[hook], model.get_parameter(f"{op.name}.weight")
                largest = weight.abs().amax(dim=1, keepdim=True) if quantizer.per_channel else weight.abs().amax()
                storage = quantizer._scale_param_storage
                storage.copy_(torch.maximum(storage.abs(), 2 * largest.reshape(storage.shape)))


def _shared(ops: Mapping[str, QuantizedOp]) -> set[str]:
    """Returns input quantizers shared by several operations; a single operation cannot change their scheme."""
    seen: set[str] = set()
    shared: set[str] = set()
    for op in ops.values():
        shared |= seen & set(op.input_hooks)
        seen |= set(op.input_hooks)
    return shared


def _symmetric(quantizer: Any) -> bool:
    from nncf.torch.quantization.layers import SymmetricQuantizer

    return isinstance(quantizer, SymmetricQuantizer)


def _replace(model: Any, hook: str, quantizer: nn.Module) -> None:
    """Replaces a quantizer, keeping its position among the hooks."""
    from nncf.torch.function_hook import get_hook_storage

    place, _, number = hook.rpartition(".")
    kind, _, key = place.partition(".")
    getattr(get_hook_storage(model), kind)[key][number] = quantizer


def _weight_quantizer(old: Any, weight: Tensor, per_channel: bool, seven_bits: bool) -> Any:
    """Returns the quantizer that NNCF would create for this weight [out, in]."""
    shape = (weight.shape[0], 1) if per_channel else (1,)
    largest = weight.abs().amax(dim=1, keepdim=True) if per_channel else weight.abs().amax()
    state = old.get_config() | {"scale_shape": shape}
    return _calibrated(type(old), state, -largest, largest, is_weight=True, seven_bits=seven_bits)


def _input_quantizer(old: Any, symmetric: bool) -> Any:
    """Returns a quantizer of the other scheme whose range contains the old range."""
    from nncf.torch.quantization.layers import AsymmetricQuantizer, SymmetricQuantizer

    if symmetric:
        low, high = old.input_low.detach(), (old.input_low + old.input_range).detach()
        high = torch.maximum(low.abs(), high)
    else:
        high = old.scale.detach().abs()
        low = -high if old.signed else torch.zeros_like(high)
    state = old.get_config() | {"mode": "symmetric" if symmetric else "asymmetric"}
    return _calibrated(SymmetricQuantizer if symmetric else AsymmetricQuantizer, state, low, high)


def _calibrated(
    cls: Any, state: dict[str, Any], low: Tensor, high: Tensor, is_weight: bool = False, seven_bits: bool = False
) -> Any:
    """Returns a quantizer for values between `low` and `high`, computed with NNCF's formulas."""
    from nncf.common.quantization.structs import QuantizationScheme, QuantizerConfig, QuantizerGroup
    from nncf.common.tensor_statistics.statistics import MinMaxTensorStatistic
    from nncf.quantization.fake_quantize import calculate_quantizer_parameters
    from nncf.tensor import Tensor as NNCFTensor
    from nncf.torch.quantization.layers import PTQuantizerSpec

    quantizer = cls(PTQuantizerSpec.from_state(state))
    shape = tuple(state["scale_shape"])
    config = QuantizerConfig(
        num_bits=state["num_bits"],
        mode=QuantizationScheme(state["mode"]),
        per_channel=len(shape) > 1,
        narrow_range=state["narrow_range"],
    )
    found = calculate_quantizer_parameters(
        MinMaxTensorStatistic(min_values=NNCFTensor(low), max_values=NNCFTensor(high)),
        config,
        QuantizerGroup.WEIGHTS if is_weight else QuantizerGroup.ACTIVATIONS,
        seven_bits,
    )
    lowest, highest = found.input_low.data, found.input_high.data
    if _symmetric(quantizer):
        quantizer.signed = bool((lowest < 0).any())
        quantizer.scale = nn.Parameter((highest - quantizer.eps).reshape(shape))
    else:
        quantizer.input_low = nn.Parameter(lowest.reshape(shape))
        quantizer.input_range = nn.Parameter((highest - lowest - quantizer.eps).reshape(shape))
    return quantizer
