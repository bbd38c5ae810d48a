"""The arithmetic of training: 32 bits, or bfloat16 where the hardware multiplies it faster."""

import ctypes
import platform

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


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_MALLOC_TRIM_THRESHOLD, _MALLOC_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_ALL = 2**31 - 1
_MOST_OF_OLD = 32 << 20  # bytes: glibc before 2.35 refuses to keep larger pieces


def keep_freed_memory() -> None:
    """Tells glibc to keep what this process frees, for the same process to use again.

    As it is, glibc hands large tensors back to the system at once. Each training step then gets the same memory anew,
    page by page and zeroed: up to a tenth of a step. What a process needs at its highest hardly changes by it.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    # Both of them, or none: one alone ends glibc's own adapting, and every tensor would be new memory again.
    if library.mallopt(_MALLOC_MMAP_THRESHOLD, _ALL) or library.mallopt(_MALLOC_MMAP_THRESHOLD, _MOST_OF_OLD):
        library.mallopt(_MALLOC_TRIM_THRESHOLD, _ALL)
