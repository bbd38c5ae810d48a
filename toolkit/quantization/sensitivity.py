"""Sensitivity of the logits to quantizing each operation alone, measured on real examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.models.task_heads import task_logits
from toolkit.quantization.operations import bypassed
from toolkit.recipe import Kind


@torch.inference_mode()
def measure(
    kind: Kind, model: Any, batches: Sequence[Mapping[str, Tensor]], operations: Mapping[str, Any]
) -> dict[str, float]:
    """Returns the mean squared change of the logits, by operation, when only that operation is quantized.

    Quantizing one operation at a time also ranks two harmful operations correctly. Keeping one at a time in FP32 does
    not: the other one still ruins the logits, so neither differs from a harmless operation.

    Args:
        kind: The task's kind.
        model: Quantized model; restored afterwards.
        batches: Model inputs.
        operations: Result of `operations.quantized_ops`.
    """
    names = set(operations)
    with bypassed(model, names, operations):
        plain = _logits(kind, model, batches)
    found = {}
    for name in operations:
        with bypassed(model, names - {name}, operations):
            found[name] = float((_logits(kind, model, batches) - plain).square().mean())
    return found


def _logits(kind: Kind, model: Any, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Returns the logits of all batches, flattened and concatenated."""
    model.eval()
    device = next(model.parameters()).device
    moved = ({k: v.to(device) for k, v in batch.items()} for batch in batches)
    return torch.cat([task_logits(kind, model, batch).float().flatten() for batch in moved])
