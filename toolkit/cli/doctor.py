"""`pruneofa doctor`: this machine against what the toolkit needs."""

import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.core import paths
from toolkit.core.errors import CheckFailed
from toolkit.ir import kernels
from toolkit.pipeline.requirements import EXTRAS, extra_of, install_command, missing_module

if TYPE_CHECKING:
    from rich.table import Table


def doctor_table() -> "tuple[Table, bool]":
    """Versions against the pins, ISA, cores, memory, disk, compiler; and whether all versions are the pinned ones."""
    from rich.table import Table

    from toolkit.core import machine

    table = Table(title="doctor", show_header=True)
    for column in ("what", "found", "wanted"):
        table.add_column(column)
    sound = True
    for name, wanted in pinned_versions().items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "not installed"
            if extra := extra_of(name):  # this machine may be there for training alone
                table.add_row(name, found, f"{wanted}, for the extra `{extra}`")
                continue
        same = found.split("+")[0] == wanted
        sound &= same
        table.add_row(name, found if same else f"[red]{found}[/]", wanted)
    for extra in EXTRAS:
        absent = missing_module(extra)
        table.add_row(f"extra {extra}", f"{absent} is missing" if absent else "whole", install_command(extra))
    for what, value in machine.describe().items():
        table.add_row(what, ", ".join(map(str, value)) if isinstance(value, list) else str(value), "")
    table.add_row("python", sys.version.split()[0], ">= 3.10")
    table.add_row("free disk", f"{shutil.disk_usage('.').free / 2**30:.0f} GB", ">= 5 GB for the quickstart")
    table.add_row(
        "C++ compiler", shutil.which("g++") or shutil.which("clang++") or "none: 8-bit training is slower", ""
    )
    extension = Path(sys.prefix) / "torch_ext"
    built = any(extension.rglob("*.so")) if extension.is_dir() else False
    table.add_row("NNCF extension", "built" if built else "not built: the first quantization builds it", "built")
    if kernels.extension():
        found = f"built, computes with {kernels.isa()}"
    else:
        missing = kernels.missing_tool()
        found = f"not built: {kernels.BUILD}"
        if missing:
            found = f"cannot be built: {missing} is missing; the plain IRs are exported"
    table.add_row("sparse kernel", found, "built")
    return table, sound


def pinned_versions() -> dict[str, str]:
    """The pins of constraints.txt; empty where the toolkit was installed without its repository."""
    lines = paths.PINS.read_text().splitlines() if paths.PINS.is_file() else []
    pins = (line.partition(";")[0].strip().partition("==") for line in lines if not line.startswith("#"))
    return {name: version for name, equals, version in pins if equals}


def doctor() -> None:
    """Compare this machine with what the toolkit needs: versions, ISA, cores, memory, disk, NNCF's extension."""
    from rich.console import Console

    pass

    table, sound = doctor_table()
    Console().print(table)
    if not sound:
        raise CheckFailed("some versions are not the pinned ones: pip install -c constraints.txt -e '.[all]'")
