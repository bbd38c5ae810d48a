"""The arithmetic of training: 32 bits, or bfloat16 where the hardware multiplies it faster."""

import torch

from toolkit.recipe import DistillationTrain, Train


def bf16(train: Train) -> bool:
    """Whether the model runs under bfloat16 autocast; its weights stay in 32 bits."""
    return _reduced(train.precision)


def teacher_bf16(train: Train) -> bool | None:
    """The same of its teacher; None: as the model that it teaches."""
    said = train.teacher_precision if isinstance(train, DistillationTrain) else None
    return _reduced(said) if said else None


def _reduced(precision: str) -> bool:
    return _wins() if precision == "auto" else precision == "bf16"


def _wins() -> bool:
    """Whether bfloat16 is faster here. CPUs with AVX512_BF16 alone were not measured, the others are slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
