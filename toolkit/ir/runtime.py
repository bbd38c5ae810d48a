"""Opening what this toolkit exports: an OpenVINO core that knows SparseLinear, where its extension is built."""

from pathlib import Path
from typing import Any

from toolkit import kernels
from toolkit.errors import UserError

MODEL = "openvino_model.xml"


def core() -> Any:
    """A new `openvino.Core`, with the operation SparseLinear if its extension is built."""
    import openvino as ov

    made = ov.Core()
    if path := kernels.extension():
        made.add_extension(str(path))
    return made


def read_ir(folder: Path, core_: Any = None) -> Any:
    """The `openvino.Model` of an IR folder.

    Raises:
        UserError: OpenVINO cannot read it, or it needs the sparse kernel, which is not built.
    """
    path = folder / MODEL
    needed_extension(folder)
    try:
        return (core_ or core()).read_model(path)
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
