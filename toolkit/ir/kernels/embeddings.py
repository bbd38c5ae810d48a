"""Python binding of the kernels' sum of embeddings, for tests."""

import ctypes
from collections.abc import Sequence
from typing import Any

from toolkit.ir.kernels import packed
from toolkit.ir.kernels.encoder import in_threads


class _Table(ctypes.Structure):
    """`pofa_table` of `native/embeddings.h`."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("indices", ctypes.c_void_p),
        ("rows", ctypes.c_uint64),
        ("index_stride", ctypes.c_uint64),
    )


def embedding_sum(
    tables: Sequence[tuple[Any, Any, Any]],
    norm: Any,
    mask: Any,
    *,
    epsilon: float = 1e-12,
    threads: int = 1,
    isa: str | None = None,
) -> Any:
    """Returns the LayerNorm of a sum of embeddings, float32 [batch, length, hidden]; zero for invalid tokens.

    Args:
        tables: Of each table: codes, int8 [rows, hidden]; scale of each row, float32 [rows]; indices, [batch or 1,
            length].
        norm: Scale and offset of the LayerNorm, float32 [2, hidden].
        mask: True for valid tokens, bool [batch, length].
        epsilon: Term that the LayerNorm adds to the variance.
        threads: Number of threads to divide the work among; 1: the calling thread only.
        isa: One of `instruction_sets`; None: the fastest.

    Raises:
        UserError: An argument is out of range, or this CPU does not support the instruction set.
    """
    import numpy as np

    mask, norm = np.ascontiguousarray(mask, dtype=np.uint8), np.ascontiguousarray(norm, dtype=np.float32)
    specs, kept = (_Table * len(tables))(), []
    for spec, (codes, scales, indices) in zip(specs, tables, strict=True):
        arrays = [np.ascontiguousarray(a, t) for a, t in ((codes, np.int8), (scales, np.float32), (indices, np.int32))]
        kept += arrays
        spec.codes, spec.scales, spec.indices = (a.ctypes.data for a in arrays)
        spec.rows, spec.index_stride = len(arrays[0]), mask.shape[1] if len(arrays[2]) == len(mask) else 0
    parallel = in_threads(threads) if threads > 1 else None
    y = np.empty((*mask.shape, norm.shape[1]), dtype=np.float32)
    code = packed._library().pofa_embed(
        *(specs, len(tables), norm.shape[1], packed._pointer(norm[0]), packed._pointer(norm[1])),
        *(ctypes.c_float(epsilon), packed._pointer(mask), ctypes.c_size_t(mask.shape[0])),
        *(ctypes.c_size_t(mask.shape[1]), packed._pointer(y), parallel, threads, isa.encode() if isa else None),
    )
    packed._check(code)
    return y
