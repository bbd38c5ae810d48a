"""`pruneofa doctor`: check of the machine against the toolkit's requirements."""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.terminal import Outcome, with_output
from toolkit.core import paths
from toolkit.core.errors import CheckFailed

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Fact:
    """A fact about the machine or installation.

    Attributes:
        item: What it is about.
        found: What was found.
        required: What is required, or the command that installs it; empty if nothing is.
        ok: Whether an installed version is the pinned one; true for everything else.
    """

    item: str
    found: str
    required: str = ""
    ok: bool = True


def facts() -> list[Fact]:
    """Returns versions, machine, disk, compiler and native extensions."""
    from importlib import metadata

    from toolkit.core import machine
    from toolkit.ir import kernels
    from toolkit.pipeline.requirements import EXTRAS, extra_of, install_command, missing_module

    listed: list[Fact] = []
    for name, wanted in pinned_versions().items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "not installed"
            if extra := extra_of(name):  # extras are optional, e.g. on a machine that only trains
                listed.append(Fact(name, found, f"{wanted}, for the extra `{extra}`"))
                continue
            if not _is_required(name):  # of development, or a dependency of something that is not installed
                continue
        listed.append(Fact(name, found, wanted, ok=found.split("+")[0] == wanted))
    for extra in EXTRAS:
        absent = missing_module(extra)
        listed.append(Fact(f"extra {extra}", f"{absent} is missing" if absent else "complete", install_command(extra)))
    for what, value in machine.describe().items():
        listed.append(Fact(what, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    free = f"{shutil.disk_usage('.').free / 2**30:.0f} GB"
    compiler = shutil.which("g++") or shutil.which("clang++") or "none: 8-bit training is slower"
    listed.append(Fact("python", sys.version.split()[0], ">= 3.10"))
    listed.append(Fact("free disk", free, ">= 5 GB for the quickstart"))
    listed.append(Fact("C++ compiler", compiler))
    extension = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix) / "torch_ext")
    built = any(extension.rglob("*.so")) if extension.is_dir() else False
    found = "built" if built else "not built: the first quantization builds it"
    listed.append(Fact("NNCF extension", found, "built"))
    if kernels.extension():
        found = f"built, uses {kernels.isa()}"
    else:
        missing = kernels.missing_tool()
        found = f"not built: {kernels.BUILD}"
        if missing:
            found = f"cannot be built: {missing} is missing; only IRs without the sparse engine are exported"
    listed.append(Fact("sparse kernel", found, "built"))
    return listed


def _is_required(name: str) -> bool:
    """Returns whether the installed toolkit cannot do without a distribution; true for all if it is not installed."""
    from importlib import metadata

    try:
        lines = metadata.requires("pruneofa") or []
    except metadata.PackageNotFoundError:
        return True
    needed = [re.split(r"[^\w.-]", line)[0].lower() for line in lines if "extra ==" not in line]
    return name.lower() in needed


def facts_table(listed: Sequence[Fact]) -> "Table":
    """Returns a table of facts."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="doctor", show_header=True)
    for column in ("item", "found", "required"):
        table.add_column(column, overflow="fold")  # commands can be copied from it
    for fact in listed:
        table.add_row(fact.item, fact.found if fact.ok else Text(fact.found, "red"), fact.required)
    return table


def pinned_versions() -> dict[str, str]:
    """Returns the versions pinned in constraints.txt."""
    lines = paths.PINS.read_text().splitlines()
    pins = (line.partition(";")[0].strip().partition("==") for line in lines if not line.startswith("#"))
    return {name: version for name, equals, version in pins if equals}


@with_output
def doctor() -> Outcome:
    """Check this machine against the toolkit's requirements: versions, ISA, cores, memory, disk, NNCF extension."""
    from toolkit.pipeline.requirements import install_command

    listed = facts()
    pinned = all(fact.ok for fact in listed)
    error = None if pinned else CheckFailed(f"some versions differ from the pinned ones: {install_command('all')}")
    return Outcome({"ok": pinned, "facts": listed}, facts_table(listed), error=error)
