"""Facts about this machine and installation: CPU, memory, library versions and commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from toolkit.core import paths

# Instruction sets that determine the speed and the accuracy of 8-bit and 16-bit matrix products.
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
    """Returns the CPU's instruction-set flags in Linux's spelling (`avx2`, `avx512_vnni`, ...); empty elsewhere."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """Returns total and free bytes of the memory that training uses: the GPU's if there is one, else the host's."""
    import psutil
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return total, free
    found = psutil.virtual_memory()
    return int(found.total), int(found.available)


def describe() -> dict[str, Any]:
    """Returns CPU model, relevant instruction sets, usable cores, memory in GB (2^30 bytes) and operating system."""
    models = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    flags = isa()
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "isa": [flag for flag in _INTERESTING if flag in flags],
        "cores": cores(),
        "memory_gb": round(_host_memory() / 2**30, 1),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _host_memory() -> int:
    """Returns the bytes of the host's memory; psutil is loaded only where the system does not report them itself."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import psutil

    return int(psutil.virtual_memory().total)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed libraries that affect results."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Returns the commit of this toolkit, with `-dirty` if tracked files differ from it; empty outside a checkout."""
    top = _git(paths.PACKAGE, "rev-parse", "--show-toplevel")
    # An installed copy may be inside another repository (a virtual environment in a project).
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
