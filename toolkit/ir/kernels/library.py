"""The kernels' two libraries: where they are cached, by OpenVINO version and sources, and how CMake builds them."""

import functools
import hashlib
import os
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


class KernelMissingError(UserError):
    """The kernel is not there and cannot be built here; everything else works without it."""


def extension() -> Path | None:
    """The OpenVINO extension for the installed OpenVINO, or None if it has not been built, or there is no OpenVINO."""
    if util.find_spec("openvino") is None:
        return None
    path = folder() / EXTENSION
    return path if path.is_file() else None


def available() -> bool:
    """Whether the kernel is built, or can be as far as one can tell without trying."""
    return extension() is not None or missing_tool() is None


def folder() -> Path:
    """Where the libraries lie that fit these sources and the installed OpenVINO."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "pruneofa" / "kernels" / f"openvino-{metadata.version('openvino')}-{_sources_hash()[:12]}"


@functools.cache
def _sources_hash() -> str:
    digest = hashlib.sha256()
    for source in sorted(sources().iterdir()):
        if source.suffix in (".h", ".cpp", ".txt"):
            digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()


def sources() -> Path:
    """The folder with the C++ code: `native/` of the repository, packaged with the toolkit."""
    return paths.NATIVE


def build() -> Path:
    """Builds both libraries, unless they are there.

    Returns:
        The OpenVINO extension.

    Raises:
        KernelMissingError: There is no compiler or no CMake, or the build fails.
    """
    target = folder()
    if not (target / EXTENSION).is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            _cmake(
                "-S", str(sources()), "-B", work, f"-DOpenVINO_DIR={_openvino_cmake()}", "-DCMAKE_BUILD_TYPE=Release"
            )
            _cmake("--build", work, "--parallel")
            finished = Path(tempfile.mkdtemp(dir=target.parent))
            finished.chmod(0o755)  # a model server under another user may load them
            for name in (KERNELS, EXTENSION):
                shutil.copy2(Path(work) / name, finished)
            try:
                finished.rename(target)  # whole or not at all: another process may build the same
            except OSError:
                shutil.rmtree(finished)
    return target / EXTENSION


def build_checks(target: Path) -> Path:
    """Builds the kernel's own test program with the address and undefined-behaviour sanitizers.

    Raises:
        KernelMissingError: As of `build`.
    """
    _cmake("-S", str(sources()), "-B", str(target), "-DPOFA_SANITIZE=ON")
    _cmake("--build", str(target), "--parallel")
    return target / "check"


def missing_tool() -> str | None:
    """What a build needs and this machine lacks, in words; None if nothing."""
    if util.find_spec("openvino") is None:
        return "OpenVINO"
    if not any(map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))):
        return "a C++ compiler (g++ or clang++)"
    return None if _cmake_program() else "cmake"


def _cmake_program() -> str | None:
    """The one installed with the toolkit, which is not on the PATH unless its environment is activated; or any."""
    beside = Path(sys.executable).with_name("cmake")
    return str(beside) if beside.is_file() else shutil.which("cmake")


def _openvino_cmake() -> Path:
    spec = util.find_spec("openvino")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "cmake"


def _cmake(*arguments: str) -> None:
    if missing := missing_tool():
        raise KernelMissingError(
            f"the sparse kernel cannot be built: {missing} is missing", instead="install it, or go on without"
        )
    result = subprocess.run([str(_cmake_program()), *arguments], capture_output=True, text=True)
    if result.returncode:
        lines = [line for line in (result.stdout + result.stderr).splitlines() if "rror" in line]
        why = lines[0].strip() if lines else f"cmake exits with {result.returncode}"
        raise KernelMissingError(f"the sparse kernel could not be built: {why}", where=str(sources()))
