"""The machine, the library versions and the commit behind a measurement."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from toolkit.core import paths

# The instruction sets that decide how fast, and how exactly, 8-bit and 16-bit products are computed.
_INTERESTING = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
_LIBRARIES = (
    "torch",
    "transformers",
    "openvino",
    "openvino-tokenizers",
    "nncf",
    "neural-compressor",
    "optimum-intel",
    "accelerate",
    "datasets",
    "numpy",
    "scikit-learn",
)


def isa() -> set[str]:
    """Instruction-set flags of this CPU, as Linux spells them (`avx2`, `avx512_vnni`, ...); empty elsewhere."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """CPU model, the instruction sets that matter, usable cores, memory in GB (2^30 bytes), operating system."""
    models = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    flags = isa()
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "isa": [flag for flag in _INTERESTING if flag in flags],
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape a result; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this toolkit, with `-dirty` when files differ from it; empty outside a checkout."""
    top = _git(paths.PACKAGE, "rev-parse", "--show-toplevel")
    # An installed copy may lie inside somebody else's repository (a virtual environment in a project).
    if not top or Path(top) / paths.PACKAGE.name != paths.PACKAGE:
        return ""
    return _git(paths.PACKAGE, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def memory() -> tuple[int, int]:
    """Bytes in all, and free ones, of what training runs in: the GPU's memory where there is a GPU."""
    import psutil
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return total, free
    found = psutil.virtual_memory()
    return int(found.total), int(found.available)
