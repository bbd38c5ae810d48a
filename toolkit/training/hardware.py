"""Hardware settings of training: device, FP32 or bfloat16 precision, and glibc's malloc."""

import ctypes
import platform

import torch

from toolkit.recipe import DistillationTrain, Train


def bf16(train: Train) -> bool:
    """Whether the model is expected to run under bfloat16 autocast; its weights stay in FP32.

    On a CPU with bfloat16 instructions `auto` is decided by a measurement when the training starts
    (`toolkit.training.precision`). Estimates, and teacher logits that are cached before that, follow this expectation.
    """
    return _is_bf16(train.precision)


def teacher_bf16(train: Train) -> bool | None:
    """Whether the teacher runs under bfloat16 autocast; None: as its student does."""
    precision = train.teacher_precision if isinstance(train, DistillationTrain) else None
    return _is_bf16(precision) if precision else None


def _is_bf16(precision: str) -> bool:
    return _bf16_is_faster() if precision == "auto" else precision == "bf16"


def _bf16_is_faster() -> bool:
    """Whether bfloat16 is expected to be faster here: with AMX. With AVX512_BF16 alone the factor is not known."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def has_bf16_instructions() -> bool:
    """Whether training runs on a CPU that multiplies bfloat16; on others it is emulated and much slower."""
    found = torch.cpu.get_capabilities()
    return not torch.cuda.is_available() and bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def device() -> torch.device:
    """Returns the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_MALLOC_TRIM_THRESHOLD, _MALLOC_MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of glibc's malloc.h
_ALL = 2**31 - 1
_OLD_MAXIMUM = 32 << 20  # bytes; glibc < 2.35 rejects larger mmap thresholds


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory in this process, for reuse.

    By default, glibc returns large tensors to the system at once. Each training step then maps the same memory again,
    page by page and zeroed, which takes up to a tenth of a step. Peak memory hardly changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    # Both or neither: one alone disables glibc's dynamic threshold, and every tensor would be mapped again.
    if library.mallopt(_MALLOC_MMAP_THRESHOLD, _ALL) or library.mallopt(_MALLOC_MMAP_THRESHOLD, _OLD_MAXIMUM):
        library.mallopt(_MALLOC_TRIM_THRESHOLD, _ALL)
