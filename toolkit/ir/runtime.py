"""Opening what this toolkit exports: an OpenVINO core that knows SparseLinear, where its extension is built."""

import functools
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.ir import kernels

MODEL = "openvino_model.xml"


def core() -> Any:
    """This process's `openvino.Core`, with the operation SparseLinear if its extension is built."""
    return _core(kernels.extension())


@functools.cache
def _core(extension: Path | None) -> Any:
    # Never closed. OpenVINO 2026.4 gives each core a signal stack; two that are closed in the order they were opened in
    # leave one that is unmapped, and the next signal with a handler (Ctrl-C, a child's end) is a segmentation fault.
    import openvino as ov

    made = ov.Core()
    if extension:
        made.add_extension(str(extension))
    return made


def read_ir(folder: Path) -> Any:
    """The `openvino.Model` of an IR folder.

    Raises:
        UserError: OpenVINO cannot read it, or it needs the sparse kernel, which is not built.
    """
    path = folder / MODEL
    needed_extension(folder)
    try:
        return core().read_model(path)
    except RuntimeError as error:
        raise UserError(f"OpenVINO cannot read it ({_reason(error)})", where=str(path)) from None


def needed_extension(folder: Path) -> Path | None:
    """The extension that an IR folder cannot be opened without; None if any OpenVINO opens it.

    Raises:
        UserError: It needs the sparse kernel, which is not built.
    """
    if not is_engine(folder):
        return None
    if path := kernels.extension():
        return path
    raise UserError(
        "this IR runs on the sparse kernel, which is not built here", where=str(folder), instead=kernels.BUILD
    )


def is_engine(folder: Path) -> bool:
    """Whether an IR has the operation SparseLinear."""
    path = folder / MODEL
    return path.is_file() and b'type="SparseLinear"' in path.read_bytes()


def _reason(error: RuntimeError) -> str:
    """OpenVINO's own sentence: its last line that is no place in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
