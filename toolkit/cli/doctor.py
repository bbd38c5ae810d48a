"""`pruneofa doctor`: check of the machine against the toolkit's requirements."""

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.core import paths
from toolkit.core.errors import CheckFailed

if TYPE_CHECKING:
    from rich.table import Table


def doctor_table() -> "tuple[Table, bool]":
    """Builds the table of versions, machine, disk, compiler and native extensions.

    Returns:
        The table, and whether all installed versions are the pinned ones.
    """
    from importlib import metadata

    from rich.table import Table
    from rich.text import Text

    from toolkit.core import machine
    from toolkit.ir import kernels
    from toolkit.pipeline.requirements import EXTRAS, extra_of, install_command, missing_module

    table = Table(title="doctor", show_header=True)
    for column in ("item", "found", "required"):
        table.add_column(column)
    all_pinned = True
    for name, wanted in pinned_versions().items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "not installed"
            if extra := extra_of(name):  # extras are optional, e.g. on a machine that only trains
                table.add_row(name, found, f"{wanted}, for the extra `{extra}`")
                continue
        same = found.split("+")[0] == wanted
        all_pinned &= same
        table.add_row(name, found if same else Text(found, "red"), wanted)
    for extra in EXTRAS:
        absent = missing_module(extra)
        table.add_row(f"extra {extra}", f"{absent} is missing" if absent else "complete", install_command(extra))
    for what, value in machine.describe().items():
        table.add_row(what, ", ".join(map(str, value)) if isinstance(value, list) else str(value), "")
    table.add_row("python", sys.version.split()[0], ">= 3.10")
    table.add_row("free disk", f"{shutil.disk_usage('.').free / 2**30:.0f} GB", ">= 5 GB for the quickstart")
    table.add_row(
        "C++ compiler", shutil.which("g++") or shutil.which("clang++") or "none: 8-bit training is slower", ""
    )
    extension = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix) / "torch_ext")
    built = any(extension.rglob("*.so")) if extension.is_dir() else False
    table.add_row("NNCF extension", "built" if built else "not built: the first quantization builds it", "built")
    if kernels.extension():
        found = f"built, uses {kernels.isa()}"
    else:
        missing = kernels.missing_tool()
        found = f"not built: {kernels.BUILD}"
        if missing:
            found = f"cannot be built: {missing} is missing; only IRs without the sparse engine are exported"
    table.add_row("sparse kernel", found, "built")
    return table, all_pinned


def pinned_versions() -> dict[str, str]:
    """Returns the versions pinned in constraints.txt."""
    lines = paths.PINS.read_text().splitlines()
    pins = (line.partition(";")[0].strip().partition("==") for line in lines if not line.startswith("#"))
    return {name: version for name, equals, version in pins if equals}


def doctor() -> None:
    """Check this machine against the toolkit's requirements: versions, ISA, cores, memory, disk, NNCF extension."""
    from toolkit.cli.terminal import Console
    from toolkit.pipeline.requirements import install_command

    table, all_pinned = doctor_table()
    Console().print(table)
    if not all_pinned:
        raise CheckFailed(f"some versions differ from the pinned ones: {install_command('all')}")
