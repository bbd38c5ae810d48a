"""What the C library does with memory that is freed."""

import ctypes
import platform

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
