"""Translation of INC's `quantization` section: formats per model, per operation type and per operation."""

from collections.abc import Mapping
from typing import Any

from toolkit.core.yaml_document import KeyPath
from toolkit.recipe.inc.inc_file import IncPlan, IncSource

# INC's names of operation types -> the recipe's.
_TYPES = {
    **dict.fromkeys(("linear", "fullyconnected", "gemm"), "Linear"),
    "embedding": "Embedding",
    **dict.fromkeys(("matmul", "bmm", "batchmatmul"), "MatMul"),
}
_DEFAULT = "default_qconfig"  # INC's format of the modules without one of their own, not the name of a module
_FP32 = {"fp32": "fp32", "bf16": "fp32", "fp16": "fp32"}
# Key -> supported values of INC -> the recipe's value. None: the only behaviour, so nothing is set.
_WEIGHT: dict[str, dict[Any, Any]] = {
    "granularity": {"per_channel": "per_channel", "per_tensor": "per_tensor"},
    "scheme": {"sym": "sym"},
    "dtype": {"int8": "int8", **_FP32},
    "algorithm": {"minmax": None},
    "bit": {7.0: 7},
}
_ACTIVATION: dict[str, dict[Any, Any]] = {
    "granularity": {"per_tensor": "per_tensor"},
    "scheme": {"asym": "asym", "sym": "sym"},
    "dtype": {"uint8": "int8", "int8": "int8", **_FP32},
    "algorithm": {"minmax": None, "placeholder": None},
}
_WHY = {
    ("weight", "scheme"): "OpenVINO's CPU kernels require symmetric weights",
    ("weight", "dtype"): "8-bit weights are signed (int8)",
    ("weight", "bit"): "weights have 8 bits, or 7 to avoid saturation",
    ("activation", "granularity"): "OpenVINO uses one scale per activation tensor",
    ("activation", "algorithm"): "ranges are computed with minmax, which differ from those of kl",
}


def quantization(plan: IncPlan, source: IncSource) -> None:
    """Translates the section except for `train`, which the caller translates.

    Raises:
        UserError: A requested format is not supported by NNCF or OpenVINO.
    """
    at: KeyPath = ("quantize", "quantization")
    approach = source.take("quantization", "approach")
    plan.put((*at, "approach"), approach, source.where("quantization", "approach"))
    sizes = source.take("quantization", "calibration", "sampling_size")
    where = source.where("quantization", "calibration", "sampling_size")
    plan.put((*at, "calibration", "sampling_size"), sizes[0], where)
    if len(sizes) > 1:
        plan.note(where, "sampling_size", f"only the first value, {sizes[0]}, is used")
    _formats(plan, source, ("quantization", "model_wise"), (*at, "model_wise"), approach)
    for group, name_of in (("optype_wise", _type), ("op_wise", None)):
        for name in source.peek("quantization", group):
            path: KeyPath = ("quantization", group, name)
            if group == "op_wise" and name == _DEFAULT:
                source.take(*path)
                plan.note(source.where(*path), f"op_wise.{name}", "every operation that is quantized has a format")
                continue
            key = name_of(source, path) if name_of else name
            if key in plan.recipe["quantize"]["quantization"].get(group, {}):
                raise source.refuse(path, f"duplicate entry for {key} under another name", f"one entry for {key}")
            _formats(plan, source, path, (*at, group, key), approach)
    _recipes(plan, source, at, approach)


def _type(source: IncSource, path: KeyPath) -> str:
    found = _TYPES.get(str(path[-1]).lower())
    if found is None:
        raise source.refuse(
            path, "a BERT-like encoder has no such operation to quantize", "Linear, Embedding or MatMul"
        )
    return found


def _formats(plan: IncPlan, source: IncSource, path: KeyPath, at: KeyPath, approach: str) -> None:
    """Translates the weight and activation formats of the model or of some operations."""
    for half, known in (("weight", _WEIGHT), ("activation", _ACTIVATION)):
        for key, can in known.items():
            if not source.peek(*path, half, key):
                continue
            value = _chosen(plan, source, (*path, half, key), can, _WHY.get((half, key), ""))
            where = source.where(*path, half, key)
            if value is None:
                continue
            if approach == "post_training_dynamic_quant" and half == "activation" and value != "fp32":
                plan.note(where, f"activation.{key}", "OpenVINO chooses the format at inference time")
            elif key == "bit" and "model_wise" not in path:
                what = "7 bits can only be set for all weights together"
                raise source.refuse((*path, half, key), what, "model_wise.weight.bit")
            else:
                plan.put((*at, half, key), value, where)
    if at[-2] in ("optype_wise", "op_wise"):
        plan.recipe["quantize"]["quantization"].setdefault(at[-2], {}).setdefault(at[-1], {})


def _chosen(plan: IncPlan, source: IncSource, path: KeyPath, can: Mapping[Any, Any], why: str) -> Any:
    """Returns the first supported candidate of INC's list; the others are noted as ignored."""
    candidates = source.take(*path)
    possible = [c for c in candidates if c in can]
    if not possible:
        verb = "is" if len(candidates) == 1 else "are"
        what = f"{', '.join(map(str, candidates))} {verb} not supported: {why}"
        raise source.refuse(path, what, ", ".join(map(str, can)))
    chosen, others = possible[0], [str(c) for c in candidates if c != possible[0]]
    where = source.where(*path)
    if others:
        plan.note(
            where,
            str(path[-1]),
            f"{', '.join(others)}: {chosen} is used; tuning keeps operations in FP32 instead of trying other formats",
        )
    if chosen in ("bf16", "fp16"):
        plan.note(where, str(path[-1]), f"{chosen}: the operation is kept in FP32")
    return can[chosen]


def _recipes(plan: IncPlan, source: IncSource, at: KeyPath, approach: str) -> None:
    path = ("quantization", "recipes")
    if not source.peek(*path, "first_conv_or_matmul_quantization"):
        raise source.refuse(
            (*path, "first_conv_or_matmul_quantization"),
            "the operation to keep in FP32 must be named",
            "op_wise: {…: {weight: {dtype: [fp32]}}}",
        )
    if source.peek(*path, "weight_correction"):
        raise source.refuse((*path, "weight_correction"), "NNCF corrects only biases", "fast_bias_correction: true")
    static = approach == "post_training_static_quant"
    where = source.where(*path, "fast_bias_correction")
    value = source.take(*path, "fast_bias_correction")
    if static:
        plan.put((*at, "recipes", "fast_bias_correction"), value, where)
        plan.put((*at, "recipes", "smooth_quant"), False, "not in INC 1.x; true often loses less accuracy")
    elif source.written(*path, "fast_bias_correction"):
        plan.note(
            where,
            "fast_bias_correction",
            "quantization-aware training updates the biases"
            if approach == "quant_aware_training"
            else "dynamic quantization has no bias correction",
        )
