"""Python bindings of the kernels' C interface: packing, unpacking and multiplying sparse matrices."""

import ctypes
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from toolkit.core.errors import UserError
from toolkit.ir.kernels.library import BUILD, KERNELS, KernelMissingError, folder, rebuild

Pattern = Literal["1x1", "4x1"]
Activation = Literal["none", "gelu_erf", "gelu_tanh"]
FORMAT_VERSION = 4  # of the packed format; the same as in `native/format.h`
COLUMNS_OF_FLOATS = (
    192  # of a block whose activations are floats, which then fit in the L1 cache; see `native/pack.cpp`
)
EXPORT_VERSION = 3  # raised when the same checkpoint becomes another graph or other arithmetic: exports are made again
_ACTIVATIONS = ("none", "gelu_erf", "gelu_tanh")
_VALUE_TYPES = ("float32", "float16", "int8")


def _library() -> ctypes.CDLL:
    path = folder() / KERNELS
    if not path.is_file():
        raise KernelMissingError("the sparse kernels are not built", instead=BUILD)
    return _open(path)


@functools.cache
def _open(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:  # damaged, or in a file system that may hold no programs
        raise KernelMissingError(
            f"the sparse kernels cannot be loaded: {error}", instead=rebuild(path.parent)
        ) from None
    library.pofa_error.restype = ctypes.c_char_p
    library.pofa_isa.restype = ctypes.c_char_p
    library.pofa_format_version.restype = ctypes.c_uint32
    library.pofa_pack.restype = ctypes.c_int64
    return library


def isa() -> str:
    """Returns the instruction set that the kernels use: the fastest supported one, or that of PRUNEOFA_ISA."""
    return str(_library().pofa_isa().decode())


def format_version() -> int:
    """Returns the version of the packed format that `pack` writes."""
    return int(_library().pofa_format_version())


def pack(
    values: Any,
    scales: Any = None,
    biases: Any = None,
    pattern: Pattern = "1x1",
    block_columns: int = 0,
    group_rows: int = 0,
) -> Any:
    """Packs a matrix without its zeros, in the format that the kernels read.

    Args:
        values: Weights, or the codes of 8-bit weights: float32, float16 or int8 [rows, columns].
        scales: Scale of each row's codes, float32 [rows]; None: 1.
        biases: Bias of each row, float32 [rows]; None: 0.
        pattern: `4x1` stores blocks of four adjacent rows, including zeros within a block.
        block_columns: Columns per block, at most 1024; 0: the default for the type of the values, whose activations are
            taken for codes if they are.
        group_rows: Rows per group, at most 254; 0: the default.

    Returns:
        The packed matrix, uint8 [bytes].

    Raises:
        KernelMissingError: The kernels are not built.
        UserError: An argument is out of range.
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
    room = values.nbytes + 65_536  # enough for a sparse matrix; a dense one is packed twice
    while True:
        blob = np.empty(room, dtype=np.uint8)
        size = _library().pofa_pack(*arguments, _pointer(blob), ctypes.c_size_t(room))
        _check(size)
        if size <= room:
            return blob[:size].copy()
        room = size


def describe(blob: Any) -> dict[str, Any]:
    """Returns the properties of a packed matrix: rows, columns, pattern, value type, non-zeros, stored entries.

    Raises:
        UserError: The blob is damaged, truncated, or of an older or newer format version than this library's.
    """
    facts = (ctypes.c_uint64 * 6)()
    _check(_library().pofa_describe(_pointer(blob), ctypes.c_size_t(blob.size), facts))
    rows, columns, block, kind, nonzeros, entries = facts
    return {
        **{"rows": rows, "columns": columns, "pattern": f"{block}x1", "values": _VALUE_TYPES[kind]},
        **{"nonzeros": nonzeros, "entries": entries},
    }


def unpack(blob: Any) -> tuple[Any, Any, Any]:
    """Unpacks a matrix into values [rows, columns], scales [rows] and biases [rows]; the inverse of `pack`.

    Raises:
        UserError: The blob is damaged, truncated, or of an older or newer format version than this library's.
    """
    import numpy as np

    facts = describe(blob)
    values = np.empty((facts["rows"], facts["columns"]), dtype=facts["values"])
    scales, biases = np.empty((2, facts["rows"]), dtype=np.float32)
    _check(_library().pofa_unpack(_pointer(blob), ctypes.c_size_t(blob.size), *map(_pointer, (values, scales, biases))))
    return values, scales, biases


class Layer:
    """A layer of packed matrices outside OpenVINO, for tests and for timing the kernels alone.

    Args:
        blobs: Packed matrices, uint8 each; they are not copied.
        chain: Whether the first matrix's output is the second's input; otherwise all matrices share one input and
            each produces an output.
        activation: Activation after each matrix, or between the two matrices of a chain.
        ranges: Low and high end of each matrix's input range, which is quantized to 256 levels; None: inputs are not
            quantized.
        isa: One of `instruction_sets`; None: the fastest.

    Raises:
        UserError: A blob is damaged, or this CPU does not support the instruction set.
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
        self._library = _library()
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
        opened = self._library.pofa_open(
            *(pointers, sizes, len(blobs), int(chain), _ACTIVATIONS.index(activation), ends, name),
            ctypes.byref(self._handle),
        )
        _check(opened)

    def __call__(self, x: Any) -> list[Any]:
        """Maps float32 [tokens, columns] to float32 [tokens, rows] per output, on the calling thread only."""
        import numpy as np

        x = np.ascontiguousarray(x, dtype=np.float32)
        assert x.shape[1:] == (self._columns,), f"{x.shape} is not [tokens, {self._columns}]"
        out = [np.empty((len(x), rows), dtype=np.float32) for rows in self._rows]
        pointers = (ctypes.c_void_p * len(out))(*(y.ctypes.data for y in out))
        _check(self._library.pofa_run(self._handle, _pointer(x), ctypes.c_size_t(len(x)), pointers, None, 1))
        return out

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.pofa_close(self._handle)


def instruction_sets() -> Iterator[str]:
    """Yields the instruction sets that this CPU supports: `scalar`, `avx2`, `avxvnni`, `avx512` and `vnni`.

    `avxvnni` and `vnni` are AVX2 and AVX-512 with 8-bit dot products.
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


def _check(code: int) -> None:
    if code < 0:
        raise UserError(_library().pofa_error(int(code)).decode())
