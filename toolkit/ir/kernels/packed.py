"""The kernels' C interface: matrices packed without their zeros, unpacked, and multiplied."""

import ctypes
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from toolkit.core.errors import UserError
from toolkit.ir.kernels.library import BUILD, KERNELS, KernelMissingError, folder

Pattern = Literal["1x1", "4x1"]
Activation = Literal["none", "gelu_erf", "gelu_tanh"]
FORMAT_VERSION = 2  # of the packed form; `native/format.h` says it too
_ACTIVATIONS = ("none", "gelu_erf", "gelu_tanh")
_VALUE_TYPES = ("float32", "float16", "int8")


def _library() -> ctypes.CDLL:
    path = folder() / KERNELS
    if not path.is_file():
        raise KernelMissingError("the sparse kernel is not built", instead=BUILD)
    return _opened(path)


@functools.cache
def _opened(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.pofa_error.restype = ctypes.c_char_p
    library.pofa_isa.restype = ctypes.c_char_p
    library.pofa_format_version.restype = ctypes.c_uint32
    library.pofa_pack.restype = ctypes.c_int64
    return library


def isa() -> str:
    """The one of `instruction_sets` that the kernel uses here, unless PRUNEOFA_ISA names another."""
    return str(_library().pofa_isa().decode())


def format_version() -> int:
    """Version of the packed form that `pack` writes."""
    return int(_library().pofa_format_version())


def pack(
    values: Any,
    scales: Any = None,
    biases: Any = None,
    pattern: Pattern = "1x1",
    block_columns: int = 0,
    group_rows: int = 0,
) -> Any:
    """A matrix without its zeros, as the kernel reads it.

    Args:
        values: float32, float16 or int8 [rows, columns]: weights, or the codes of 8-bit weights.
        scales: float32 [rows]: what a row's codes are multiplied by; None: 1.
        biases: float32 [rows]; None: 0.
        pattern: `4x1` stores four neighbouring rows together, zeros between them included.
        block_columns: Columns of a block, 256 at most; 0: the default.
        group_rows: Rows of a group, 254 at most; 0: the default.

    Returns:
        uint8 [bytes].
    """
    import numpy as np

    values = np.ascontiguousarray(values)
    rows, columns = values.shape
    per_row = [
        None if x is None else np.ascontiguousarray(np.broadcast_to(x, (rows,)), np.float32) for x in (scales, biases)
    ]
    arguments = (
        *(_pointer(values), _VALUE_TYPES.index(values.dtype.name), *map(_pointer, per_row), rows, columns),
        *(int(pattern[0]), block_columns, group_rows),
    )
    room = values.nbytes + 65_536  # a sparse matrix fits, and is packed once
    while True:
        blob = np.empty(room, dtype=np.uint8)
        size = _library().pofa_pack(*arguments, _pointer(blob), ctypes.c_size_t(room))
        _sound(size)
        if size <= room:
            return blob[:size].copy()
        room = size


def describe(blob: Any) -> dict[str, Any]:
    """What a packed matrix is: rows, columns, pattern, value type, non-zeros, entries stored.

    Raises:
        UserError: The blob is damaged, cut off or newer than this library.
    """
    facts = (ctypes.c_uint64 * 6)()
    _sound(_library().pofa_describe(_pointer(blob), ctypes.c_size_t(blob.size), facts))
    rows, columns, block, kind, nonzeros, entries = facts
    return {
        **{"rows": rows, "columns": columns, "pattern": f"{block}x1", "values": _VALUE_TYPES[kind]},
        **{"nonzeros": nonzeros, "entries": entries},
    }


def unpack(blob: Any) -> tuple[Any, Any, Any]:
    """The inverse of `pack`: values [rows, columns], scales [rows], biases [rows].

    Raises:
        UserError: As of `describe`.
    """
    import numpy as np

    facts = describe(blob)
    values = np.empty((facts["rows"], facts["columns"]), dtype=facts["values"])
    scales, biases = np.empty((2, facts["rows"]), dtype=np.float32)
    _sound(_library().pofa_unpack(_pointer(blob), ctypes.c_size_t(blob.size), *map(_pointer, (values, scales, biases))))
    return values, scales, biases


class Layer:
    """Packed matrices ready to multiply, outside OpenVINO: for tests and for timing the kernel alone.

    Args:
        blobs: Packed matrices, uint8 each. They are read where they lie.
        chain: The first makes the second's input; else each makes an output from the same input.
        activation: After each matrix, or between the two of a chain.
        ranges: Low and high for each matrix: the activations that it meets are rounded to 256 equal steps from low to
            high first. None: they are not rounded.
        isa: One of `instruction_sets`; None: the fastest.

    Raises:
        UserError: A blob is damaged, or this processor lacks the instruction set.
    """

    def __init__(
        self,
        blobs: Sequence[Any],
        *,
        chain: bool = False,
        activation: Activation = "none",
        ranges: Sequence[tuple[float, float]] | None = None,
        isa: str | None = None,
    ) -> None:
        self._blobs = list(blobs)
        described = [describe(blob) for blob in self._blobs]
        self._columns = described[0]["columns"]
        self._rows = [one["rows"] for one in described][-1 if chain else 0 :]
        self._handle = ctypes.c_void_p()
        pointers = (ctypes.c_void_p * len(blobs))(*(b.ctypes.data for b in self._blobs))
        sizes = (ctypes.c_size_t * len(blobs))(*(b.size for b in self._blobs))
        ends = (
            None if ranges is None else (ctypes.c_float * (2 * len(blobs)))(*(end for pair in ranges for end in pair))
        )
        name = isa.encode() if isa else None
        opened = _library().pofa_open(
            *(pointers, sizes, len(blobs), int(chain), _ACTIVATIONS.index(activation), ends, name),
            ctypes.byref(self._handle),
        )
        _sound(opened)

    def __call__(self, x: Any) -> list[Any]:
        """float32 [tokens, columns] -> float32 [tokens, rows] for each output; on the calling thread alone."""
        import numpy as np

        x = np.ascontiguousarray(x, dtype=np.float32)
        assert x.shape[1:] == (self._columns,), f"{x.shape} is not [tokens, {self._columns}]"
        out = [np.empty((len(x), rows), dtype=np.float32) for rows in self._rows]
        pointers = (ctypes.c_void_p * len(out))(*(y.ctypes.data for y in out))
        _sound(_library().pofa_run(self._handle, _pointer(x), ctypes.c_size_t(len(x)), pointers, None, 1))
        return out

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            _library().pofa_close(self._handle)


def instruction_sets() -> Iterator[str]:
    """Those of `scalar`, `avx2`, `avxvnni`, `avx512` and `vnni` that this processor runs.

    The two with `vnni` are AVX2 and AVX-512 with products of 8-bit numbers.
    """
    blob = pack(_ones())
    for name in ("scalar", "avx2", "avxvnni", "avx512", "vnni"):
        try:
            Layer([blob], isa=name)
        except UserError:
            continue
        yield name


def _ones() -> Any:
    import numpy as np

    return np.ones((1, 1), dtype=np.float32)


def _pointer(array: Any) -> ctypes.c_void_p | None:
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def _sound(code: int) -> None:
    if code < 0:
        raise UserError(_library().pofa_error(int(code)).decode())
