"""Build of the kernels library and the OpenVINO extension with CMake, cached by OpenVINO version and sources."""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata, util
from pathlib import Path

from toolkit.core import paths
from toolkit.core.errors import UserError

EXTENSION = "libpruneofa_openvino.so"
KERNELS = "libpruneofa_kernels.so"
BUILD = "pruneofa kernels build"
_OTHER_CACHE = "set XDG_CACHE_HOME to a folder that can be written"


class KernelMissingError(UserError):
    """The kernels are not built and cannot be built here; everything except the sparse engine works without them."""


def extension() -> Path | None:
    """Returns the extension for the installed OpenVINO; None if it is not built or OpenVINO is not installed."""
    if util.find_spec("openvino") is None:
        return None
    path = folder() / EXTENSION
    try:
        return path if path.is_file() else None
    except OSError:  # a folder on the way cannot be searched
        return None


def available() -> bool:
    """Returns whether the kernels are built, or the tools to build them are installed."""
    return extension() is not None or missing_tool() is None


def folder() -> Path:
    """Returns the cache folder of the libraries for the current sources and the installed OpenVINO."""
    home = os.path.expanduser("~/.cache")  # noqa: PTH111 - Path.expanduser raises for a user without a home
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home)
    return cache / "pruneofa" / "kernels" / f"openvino-{metadata.version('openvino')}-{_sources_hash()[:12]}"


@functools.cache
def _sources_hash() -> str:
    digest = hashlib.sha256()
    for source in sorted(sources().iterdir()):
        if source.suffix in (".h", ".cpp", ".txt"):
            digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()


def sources() -> Path:
    """Returns the folder with the C++ sources: the repository's `native/`, packaged with the toolkit."""
    return paths.NATIVE


def build() -> Path:
    """Builds both libraries unless they are cached.

    Returns:
        Path of the OpenVINO extension.

    Raises:
        KernelMissingError: OpenVINO, a compiler, CMake or a folder to write to is missing, or the build fails.
    """
    if (built := extension()) is not None:
        return built
    _require_tools()
    target = folder()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            _cmake(
                "-S", str(sources()), "-B", work, f"-DOpenVINO_DIR={_openvino_cmake()}", "-DCMAKE_BUILD_TYPE=Release"
            )
            _cmake("--build", work, "--parallel")
            finished = Path(tempfile.mkdtemp(dir=target.parent))
            finished.chmod(0o755)  # readable by a model server that runs as another user
            for name in (KERNELS, EXTENSION):
                shutil.copy2(Path(work) / name, finished)
            try:
                finished.rename(target)  # atomic; fails if another process has built the same libraries
            except OSError:
                shutil.rmtree(finished)
    except OSError as error:
        what = f"the sparse kernels cannot be built in {target.parent}: {error.strerror or error}"
        raise KernelMissingError(what, instead=_OTHER_CACHE) from None
    return target / EXTENSION


def build_checks(target: Path) -> Path:
    """Builds the kernels' native test program with the address and undefined-behaviour sanitizers.

    Args:
        target: Build folder.

    Returns:
        Path of the program.

    Raises:
        KernelMissingError: OpenVINO, a compiler or CMake is missing, or the build fails.
    """
    _require_tools()
    _cmake("-S", str(sources()), "-B", str(target), "-DPOFA_SANITIZE=ON")
    _cmake("--build", str(target), "--parallel")
    return target / "check"


def missing_tool() -> str | None:
    """Returns what the build needs and this machine lacks: a tool, or a cache folder to write to; None if nothing."""
    if platform.system() != "Linux":
        return "Linux"
    if util.find_spec("openvino") is None:
        return "OpenVINO"
    if not any(map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))):
        return "a C++ compiler (g++ or clang++)"
    if not _cmake_program():
        return "cmake"
    # CMake chooses Unix Makefiles, whatever else is installed, unless its own variable names another generator.
    by_ninja = os.environ.get("CMAKE_GENERATOR", "").startswith("Ninja")
    if not any(map(shutil.which, ("ninja", "ninja-build", "samu") if by_ninja else ("make", "gmake"))):
        return "ninja" if by_ninja else "make"
    parent = folder().parent
    there = next(path for path in (parent, *parent.parents) if os.access(path, os.F_OK))
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK) and parent.parts[0] != "~"
    return None if writable else f"write permission for {parent}"


def _cmake_program() -> str | None:
    """Returns the cmake of this Python environment, which may not be on the PATH, or the one on the PATH."""
    beside = Path(sys.executable).with_name("cmake")
    return str(beside) if beside.is_file() else shutil.which("cmake")


def rebuild(broken: Path) -> str:
    """Returns the command that builds the libraries again, in place of those in a folder."""
    return f"rm -r {broken} && {BUILD}"


def _openvino_cmake() -> Path:
    spec = util.find_spec("openvino")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "cmake"


def _require_tools() -> None:
    if missing := missing_tool():
        raise KernelMissingError(
            f"the sparse kernels cannot be built: {missing} is missing",
            instead=f"install it, {_OTHER_CACHE}, or continue without the kernels",
        )


def _cmake(*arguments: str) -> None:
    result = subprocess.run([str(_cmake_program()), *arguments], capture_output=True, text=True)
    if result.returncode:
        lines = [line for line in (result.stdout + result.stderr).splitlines() if "rror" in line]
        why = lines[0].strip() if lines else f"cmake failed with exit code {result.returncode}"
        raise KernelMissingError(f"building the sparse kernels failed: {why}", where=str(sources()))
