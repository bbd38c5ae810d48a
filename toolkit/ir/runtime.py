"""OpenVINO core and IR loading, with the sparse engine's extension if it is built."""

import functools
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.core.files import require_regular_files
from toolkit.ir import kernels

MODEL = "openvino_model.xml"


def core() -> Any:
    """Returns this process's `openvino.Core`, with the sparse engine's operations if its extension is built."""
    return _core(kernels.extension())


@functools.cache
def _core(extension: Path | None) -> Any:
    # Cached and never closed. OpenVINO 2026.4 gives each core a signal stack. Closing two cores in the order in which
    # they were opened leaves an unmapped one installed, and the next handled signal (Ctrl-C, SIGCHLD) segfaults.
    import openvino as ov

    made = ov.Core()
    if extension:
        try:
            made.add_extension(str(extension))
        except RuntimeError as error:
            what = f"the sparse kernels cannot be loaded ({_reason(error)})"
            raise UserError(what, where=str(extension), instead=kernels.rebuild(extension.parent)) from None
    return made


def ir_file(path: Path) -> Path:
    """Returns the .xml file of an IR, which may be given as its folder or as the file itself."""
    return path if path.suffix.lower() == ".xml" else path / MODEL


def read_ir(folder: Path) -> Any:
    """Returns the `openvino.Model` of an IR folder or .xml file.

    Raises:
        UserError: OpenVINO cannot read the IR, or the IR needs the sparse kernels and they are not built.
    """
    path = ir_file(folder)
    needed_extension(folder)
    try:
        return core().read_model(path)
    except RuntimeError as error:
        raise UserError(f"OpenVINO cannot read the IR ({_reason(error)})", where=str(path)) from None


def needed_extension(folder: Path) -> Path | None:
    """Returns the extension that is needed to load an IR folder; None if stock OpenVINO can load it.

    Raises:
        UserError: The IR needs the sparse kernels and they are not built, or the folder contains special files.
    """
    require_regular_files(ir_file(folder).parent)
    if not is_engine(folder):
        return None
    if path := kernels.extension():
        return path
    raise UserError("the IR needs the sparse kernels, which are not built", where=str(folder), instead=kernels.BUILD)


def is_engine(folder: Path) -> bool:
    """Returns whether an IR contains an operation of the sparse engine."""
    path = ir_file(folder)
    if not path.is_file():
        return False
    text = path.read_bytes()
    return any(f'type="{name}"'.encode() in text for name in ("SparseLinear", "SparseEncoder"))


def _reason(error: RuntimeError) -> str:
    """Returns the last line of OpenVINO's message, which states the error; source locations precede it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
