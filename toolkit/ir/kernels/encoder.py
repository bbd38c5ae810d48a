"""Python binding of the kernels' encoder stack, for tests and for timing it outside OpenVINO."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.ir.kernels import packed

_ACTIVATIONS = ("none", "gelu_erf", "gelu_tanh", "relu")
_Blobs = ctypes.c_void_p * 6
_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)
_PARALLEL_FOR = ctypes.CFUNCTYPE(None, ctypes.c_size_t, _TASK, ctypes.c_void_p)


class _LayerSpec(ctypes.Structure):
    """`pofa_encoder_layer` of `native/encoder.h`."""

    _fields_ = (
        ("blobs", _Blobs),
        ("sizes", ctypes.c_size_t * 6),
        ("ranges", ctypes.c_float * 12),
        ("attention_ranges", ctypes.c_float * 4),
        ("norm_scales", ctypes.c_void_p * 2),
        ("norm_offsets", ctypes.c_void_p * 2),
        ("epsilons", ctypes.c_float * 2),
    )


@dataclass(frozen=True)
class EncoderLayer:
    """One encoder layer.

    Attributes:
        blobs: Packed matrices, uint8 each: query, key, value, attention output, feed-forward inner and outer.
        norms: Scale and offset of the LayerNorm after the attention, then of that after the feed-forward, float32
            [4, hidden].
        ranges: Low and high end of each matrix's 8-bit input; None: the input is not quantized.
        attention_ranges: Low and high end of the attention's queries, and of its keys; None: they are not quantized.
        epsilons: Term that each LayerNorm adds to the variance.
    """

    blobs: Sequence[Any]
    norms: Any
    ranges: Sequence[tuple[float, float] | None] = (None,) * 6
    epsilons: tuple[float, float] = (1e-12, 1e-12)
    attention_ranges: tuple[tuple[float, float], tuple[float, float]] | None = None


class Encoder:
    """A stack of encoder layers.

    Args:
        layers: The layers; blobs and norms are not copied.
        heads: Number of attention heads.
        activation: Activation of the feed-forward: `none`, `gelu_erf`, `gelu_tanh` or `relu`.
        scale: Factor of the attention scores; None: one over the root of a head's size.
        isa: One of `instruction_sets`; None: the fastest.

    Raises:
        UserError: A blob is damaged, sizes do not fit together, or this CPU does not support the instruction set.
    """

    def __init__(
        self,
        layers: Sequence[EncoderLayer],
        heads: int,
        activation: str = "gelu_erf",
        scale: float | None = None,
        isa: str | None = None,
    ) -> None:
        import numpy as np

        self._library = packed._library()
        self._handle = ctypes.c_void_p()
        self._kept: list[Any] = list(layers)
        self._hidden = layers[0].norms.shape[1]
        specs = (_LayerSpec * len(layers))()
        for spec, layer in zip(specs, layers, strict=True):
            norms = np.ascontiguousarray(layer.norms, dtype=np.float32)
            self._kept.append(norms)
            spec.blobs = _Blobs(*(blob.ctypes.data for blob in layer.blobs))
            spec.sizes = (ctypes.c_size_t * 6)(*(blob.size for blob in layer.blobs))
            spec.ranges = (ctypes.c_float * 12)(*(end for pair in layer.ranges for end in pair or (np.nan, np.nan)))
            ends = layer.attention_ranges or ((np.nan, np.nan),) * 2
            spec.attention_ranges = (ctypes.c_float * 4)(*ends[0], *ends[1])
            spec.norm_scales = (ctypes.c_void_p * 2)(norms[0].ctypes.data, norms[2].ctypes.data)
            spec.norm_offsets = (ctypes.c_void_p * 2)(norms[1].ctypes.data, norms[3].ctypes.data)
            spec.epsilons = (ctypes.c_float * 2)(*layer.epsilons)
        factor = (self._hidden // max(heads, 1)) ** -0.5 if scale is None else scale
        packed._check(
            self._library.pofa_encoder_open(
                *(specs, len(layers), self._hidden, heads, ctypes.c_float(factor), _ACTIVATIONS.index(activation)),
                *(isa.encode() if isa else None, ctypes.byref(self._handle)),
            )
        )

    def __call__(self, x: Any, mask: Any = None, threads: int = 1) -> Any:
        """Computes the hidden states after the last layer.

        Args:
            x: Hidden states, float32 [batch, length, hidden].
            mask: True for valid tokens, bool [batch, length]; None: all tokens are valid.
            threads: Number of threads to divide the work among; 1: the calling thread only.

        Returns:
            Hidden states, float32, same shape as `x`; zero for tokens that are not valid.
        """
        import numpy as np

        x = np.ascontiguousarray(x, dtype=np.float32)
        assert x.ndim == 3, x.shape
        assert x.shape[2] == self._hidden, x.shape
        valid = None if mask is None else np.ascontiguousarray(mask, dtype=np.uint8)
        assert valid is None or valid.shape == x.shape[:2], valid.shape
        y = np.empty_like(x)
        parallel = in_threads(threads) if threads > 1 else None
        code = self._library.pofa_encoder_run(
            *(self._handle, packed._pointer(x), packed._pointer(valid), ctypes.c_size_t(x.shape[0])),
            *(ctypes.c_size_t(x.shape[1]), packed._pointer(y), parallel, threads),
        )
        packed._check(code)
        return y

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.pofa_encoder_close(self._handle)


def in_threads(threads: int) -> Any:
    """Returns the parallel loop of the C interface, for tests: Python threads."""
    from concurrent.futures import ThreadPoolExecutor

    def run(n: int, task: Any, context: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda i: task(context, i), range(n)))

    return _PARALLEL_FOR(run)
