"""Fake quantization for training on CPUs: NNCF's two native functions, each in one pass over memory.

NNCF's own make some thirty element-wise passes per quantizer and step, and took more time than the matrix products of
a training step. `fake_quantize.cpp` repeats their arithmetic operation by operation.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from nncf.torch.extensions import ExtensionLoader, ExtensionsType
from nncf.torch.quantization import quantize_functions
from nncf.torch.quantization.extensions import QuantizedFunctionsCPU
from torch import Tensor
from torch.utils import cpp_extension

from toolkit.quantization.extension import await_builds

_SOURCE = Path(__file__).with_suffix(".cpp")
# Without fused multiply-add, which would round once where NNCF rounds twice.
_FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]


class FakeQuantizeLoader(ExtensionLoader):
    """Builds the extension next to NNCF's; not registered with NNCF, which would load it as one of its own."""

    @classmethod
    def extension_type(cls) -> ExtensionsType:
        return ExtensionsType.CPU

    @classmethod
    def name(cls) -> str:
        return "pruneofa_fake_quantize"

    @classmethod
    def load(cls) -> Any:
        """Returns the extension, built at its first use. Raises whatever the build raises."""
        folder = cls.get_build_dir()
        return cpp_extension.load(
            cls.name(), [str(_SOURCE)], extra_cflags=_FLAGS, build_directory=folder, verbose=False
        )


class _Functions:
    """Has the interface of NNCF's `QuantizedFunctionsCPU`, which it uses for tensors that the extension does not take:
    other types than float32, and ranges other than one, or one per row.
    """

    def __init__(self, extension: Any) -> None:
        self._extension = extension

    def get(self, name: str) -> Any:
        """Returns the function of this name."""
        return {"Quantize_forward": self._forward, "Quantize_backward": self._backward}[name]

    def _forward(self, x: Tensor, low: Tensor, range_: Tensor, levels: int) -> Tensor:
        if not _supported(x, range_):
            return QuantizedFunctionsCPU.get("Quantize_forward")(x, low, range_, levels)
        return self._extension.forward(x.contiguous(), low, range_, levels)

    def _backward(
        self, gradient: Tensor, x: Tensor, low: Tensor, range_: Tensor, levels: int, least: int, most: int, asym: bool
    ) -> list[Tensor]:
        if not (_supported(x, range_) and gradient.dtype == x.dtype):
            return QuantizedFunctionsCPU.get("Quantize_backward")(gradient, x, low, range_, levels, least, most, asym)
        return self._extension.backward(gradient.contiguous(), x.contiguous(), low, range_, levels, least, most)


def _supported(x: Tensor, range_: Tensor) -> bool:
    per_row = x.dim() > 1 and range_.shape == (len(x), *[1] * (x.dim() - 1))
    return x.dtype == range_.dtype == torch.float32 and (range_.numel() == 1 or per_row)


@contextlib.contextmanager
def fast_fake_quantization() -> Iterator[str]:
    """Within the `with`, NNCF's quantizers use this module's functions on the CPU.

    Yields the error if the extension cannot be built; NNCF then computes the same, slowly. GPUs have NNCF's functions.

    Raises:
        UserError: As for `await_builds`.
    """
    if torch.cuda.is_available():
        yield ""
        return
    await_builds(FakeQuantizeLoader)
    try:
        functions, problem = _Functions(FakeQuantizeLoader.load()), ""
    except (RuntimeError, OSError, ImportError) as error:  # no compiler, no ninja, no folder to write to
        functions, problem = QuantizedFunctionsCPU, str(error)
    before = quantize_functions.QuantizedFunctionsCPU
    quantize_functions.QuantizedFunctionsCPU = functions
    try:
        yield problem
    finally:
        quantize_functions.QuantizedFunctionsCPU = before
