"""Systems without the interfaces of POSIX and Linux: commands can be loaded, and what needs Linux says so."""

import ast
import subprocess
import sys

import pytest

from toolkit.core.paths import PACKAGE

_HIDDEN = """
import os, platform, sys
import psutil  # itself another one on other systems
sys.modules["fcntl"] = None
for name in ("sched_getaffinity", "sysconf", "getuid"):
    delattr(os, name)
platform.system = lambda: "Windows"
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", _HIDDEN + code], capture_output=True, text=True)


def test_no_module_of_posix_is_imported_with_a_module_of_the_toolkit():
    """Within a function it may be: whoever calls it is told what is missing."""
    found = [
        f"{path}: {name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
        )
        if name in ("crypt", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")
    ]
    assert found == []
    assert any("import fcntl" in path.read_text() for path in PACKAGE.rglob("*.py"))  # else nothing is left to test


def test_commands_that_load_no_torch_work_without_posix(tmp_path):
    code = """
import importlib, pkgutil, toolkit.cli, toolkit.core, toolkit.data, toolkit.pipeline, toolkit.recipe
for package in (toolkit.cli, toolkit.core, toolkit.data, toolkit.pipeline, toolkit.recipe):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
from toolkit.cli import main
sys.argv = ["pruneofa", "init", FILE]
main()
"""
    done = run(code.replace("FILE", repr(str(tmp_path / "recipe.yaml"))))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Wrote ")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "from pathlib import Path\nfrom toolkit.pipeline.run_folder import exclusive\n"
            "with exclusive(Path('.')): pass",
            "Windows has no file locks of POSIX",
        ),
        ("from toolkit.ir import kernels\nkernels.build()", "the sparse kernels cannot be built: Linux is missing"),
    ],
)
def test_what_needs_linux_says_so(code, message, tmp_path):
    code = (
        "import os\nos.chdir(" + repr(str(tmp_path)) + f")\nos.environ['XDG_CACHE_HOME'] = {str(tmp_path)!r}\n" + code
    )
    done = run(code)
    assert done.returncode
    assert "UserError" in done.stderr or "KernelMissingError" in done.stderr
    assert message in done.stderr


def test_the_machine_is_described_without_sysconf():
    done = run("from toolkit.core import machine\nprint(machine.describe()['memory_gb'] > 0.1, machine.cores() > 0)")
    assert done.stdout.split() == ["True", "True"], done.stderr
