"""Which operations suffer most from 8 bits: each is quantized alone, on real examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.models.task_heads import task_logits
from toolkit.quantization.operations import bypassed


@torch.inference_mode()
def measure(model: Any, batches: Sequence[Mapping[str, Tensor]], operations: Mapping[str, Any]) -> dict[str, float]:
    """Operation -> mean squared change of the logits when it alone is quantized.

    Quantizing one at a time, rather than returning one at a time, tells two bad operations apart from a good one:
    while both are quantized, the logits are lost whichever of them is returned.

    Args:
        model: A quantized model; it is left as it was.
        batches: Model inputs.
        operations: As from `nncf_ops.quantized_ops`.
    """
    names = set(operations)
    with bypassed(model, names, operations):
        plain = _logits(model, batches)
    found = {}
    for name in operations:
        with bypassed(model, names - {name}, operations):
            found[name] = float((_logits(model, batches) - plain).square().mean())
    return found


def _logits(model: Any, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """All logits of all batches, one after the other."""
    model.eval()
    device = next(model.parameters()).device
    moved = ({k: v.to(device) for k, v in batch.items()} for batch in batches)
    return torch.cat([task_logits(model, batch).float().flatten() for batch in moved])
