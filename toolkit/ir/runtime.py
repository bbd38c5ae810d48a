"""An OpenVINO core that runs what this toolkit exports."""

from typing import Any

from toolkit import kernels


def core() -> Any:
    """A new `openvino.Core`, with the operation `SparseLinear` if its extension is built."""
    import openvino as ov

    made = ov.Core()
    if path := kernels.extension():
        made.add_extension(str(path))
    return made
