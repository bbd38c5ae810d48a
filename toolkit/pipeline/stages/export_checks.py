"""Tolerances of an exported IR, and the checks that hold it to them."""

import hashlib
from typing import Any

from toolkit.core.artifacts import Check
from toolkit.ir.conformance import mismatches
from toolkit.recipe import Quantization

FP32_TOLERANCE = 1e-3  # share of the logits' range
ENGINE_TOLERANCE = 1e-4
# Of the mean, where activations are in 8 bits: the last bit of a float may decide which of two levels is nearer, and
# one layer's level many of the next's. A trained MiniLM differed by 1e-3, its plain INT8 IR by 8e-3.
ENGINE_INT8_TOLERANCE = 5e-3
SINGLE_LOGIT_FACTOR = 10  # times the tolerance of INT8: what the mean would hide, a single answer that is lost


def check_at_most(variant: str, name: str, measured: float, limit: float) -> Check:
    """A figure of a variant that may be `limit` at most."""
    return Check(name=f"{variant}: {name}", ok=measured <= limit, measured=measured, limit=limit)


def check_zeros(variant: str, inspection: Any, mask: Any) -> list[Check]:
    """Every pruned matrix is in the IR with at least its zeros."""
    found = {f"{m.module}.weight": m.zero_fraction for m in inspection.matmuls if m.module}
    present = [name for name in mask.tensors if name in found]
    missing = max((share - found[name] for name, share in mask.per_matrix().items() if name in found), default=0.0)
    return [
        Check(
            name=f"{variant}: pruned matrices found in the IR",
            ok=len(present) == len(mask.tensors),
            measured=float(len(present)),
            limit=float(len(mask.tensors)),
        ),
        check_at_most(variant, "zeros lost in a matrix, share", max(0.0, missing), 1e-6),
    ]


def check_quantization(variant: str, inspection: Any, section: Quantization, returned: tuple[str, ...]) -> Check:
    """Every operation of the IR is quantized as the recipe asks, or in FP32 where tuning returned it."""
    broken = mismatches(inspection, section, returned)
    return Check(
        name=f"{variant}: operations that are not quantized as asked for",
        ok=not broken,
        measured="; ".join(broken[:3]) or 0.0,
        limit=0.0,
    )


def weights_hash(model: Any) -> str:
    """SHA-256 over the names and values of all tensors of a model, hex."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
