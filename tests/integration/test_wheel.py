"""The wheel and the sdist are complete: every command works in an empty folder, without the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from toolkit.core.paths import REPOSITORY
from toolkit.ir.kernels import folder
from toolkit.recipe.load import load_recipe

_NOT_SOURCES = (".git", ".venv", "runs", "build", "*.egg-info", "__pycache__", ".*_cache", "measured")


def checked(*command: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel made from it, with the installed setuptools and without a network."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    shutil.copytree(REPOSITORY, source, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_SOURCES))
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    checked(sys.executable, "-c", code, folder, cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    checked(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, unpacked, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel, unpacked


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Runs `pruneofa` of the installed wheel in a folder. It sees all other packages, but no checkout."""
    fresh = tmp_path_factory.mktemp("installed") / "venv"
    checked(sys.executable, "-m", "venv", "--without-pip", fresh, cwd=fresh.parent)
    (packages,) = fresh.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # .pth files there are not read
    python = fresh / "bin" / "python"
    checked(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", built[0], cwd=fresh)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "400",
        "PATH": f"{fresh}/bin:{os.environ['PATH']}",
    }

    def run(*arguments: object, cwd: Path, code: str = "") -> subprocess.CompletedProcess:
        command = [python, "-c", code] if code else [fresh / "bin" / "pruneofa", *arguments]
        return subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)

    where = run(cwd=fresh, code="import toolkit; print(toolkit.__file__)").stdout
    assert where.strip() == str(packages / "toolkit" / "__init__.py")
    return run


def test_the_wheel_has_every_recipe_pin_and_kernel_source(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    tops = {"yaml_configs": "toolkit/shipped/yaml_configs", "native": "toolkit/native"}
    for top, inside in tops.items():
        files = [p.relative_to(REPOSITORY / top) for p in (REPOSITORY / top).rglob("*") if p.is_file()]
        assert files
        assert {f"{inside}/{file.as_posix()}" for file in files} <= names
    assert {"toolkit/shipped/scoreboard.yaml", "toolkit/shipped/constraints.txt"} <= names
    assert "pruneofa.py" in names
    assert not [name for name in names if not name.startswith(("toolkit/", "pruneofa-", "pruneofa.py"))]


def test_the_sdist_has_all_files_of_the_repository(built):
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True).stdout.splitlines()
    source = built[1].parent.parent / "source"
    # Without git, as in an unpacked sdist, all that was copied of the folder.
    files = tracked or [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
    links = ("toolkit/native", "toolkit/shipped/yaml_configs")
    assert "tests/integration/test_wheel.py" in files
    assert [name for name in files if not (built[1] / name).exists() and name not in links] == []


def test_an_installed_wheel_writes_and_checks_recipes_of_its_own(installed, tmp_path):
    assert installed("init", cwd=tmp_path).stdout.startswith("Wrote recipe.yaml")
    assert installed("init", "deep/other.yaml", "--from", "bert_base/90", cwd=tmp_path).returncode == 0
    assert load_recipe(tmp_path / "deep" / "other.yaml").student is not None
    done = installed("init", "x.yaml", "--from", "nothing", cwd=tmp_path)
    assert done.returncode == 2
    assert "minilm/four_tasks" in done.stderr


def test_an_installed_wheel_runs_a_stage_of_the_quickstart(installed, tmp_path):
    changes = ["ready={}", "student=null", "task_teacher=null", "transfer=null", "quantize=null", "export=null"]
    done = installed("run", *changes, "benchmark=null", "teacher={train: {steps: 2}}", "corpus.limit=20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "quickstart" / "teacher" / "model.safetensors").is_file()


def test_an_installed_wheel_lists_published_results_and_starts_to_reproduce_one(installed, tmp_path):
    assert (
        "bert-base-90-fp32-squad"
        in installed("scoreboard", "--markdown", "board.md", cwd=tmp_path).stdout + (tmp_path / "board.md").read_text()
    )
    done = installed("reproduce", "bert-base-90-fp32-squad", cwd=tmp_path)
    assert done.returncode == 2  # its model is on the hub, which is offline
    assert "Traceback" not in done.stderr
    assert "no shipped recipe" not in done.stderr
    assert "no row" in installed("reproduce", "nothing", cwd=tmp_path).stderr


def test_an_installed_wheel_knows_its_pins_models_and_kernel_sources(installed, tmp_path):
    shown = installed("doctor", cwd=tmp_path)
    assert shown.returncode in (0, 1)  # 1: this environment has other versions than the pinned ones
    pin = next(line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert pin.removeprefix("torch==") in shown.stdout
    assert "shipped/constraints.txt 'pruneofa[deploy]'" in shown.stdout
    assert "minilm-80-1x1" in installed("models", cwd=tmp_path).stdout
    assert installed(cwd=tmp_path, code="import pruneofa; print(pruneofa.compress)").stdout.startswith("<function")
    path = installed(cwd=tmp_path, code="from toolkit.ir.kernels.library import folder; print(folder())").stdout.strip()
    assert path == str(folder())  # its name is the hash of all sources, of which `kernels build` makes it
