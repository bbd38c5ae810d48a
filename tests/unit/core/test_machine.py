"""What is recorded of the machine and the libraries."""

import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from toolkit.core import machine, paths


def test_machine_names_the_cpu_and_counts_what_may_be_used():
    here = machine.describe()
    assert here["cpu"]
    assert here["cores"] >= 1
    assert here["memory_gb"] > 0.1
    assert set(here["isa"]) <= machine.isa()


@pytest.mark.parametrize(
    ("line", "expected"),
    [("flags\t\t: fpu avx2 avx512_vnni", {"fpu", "avx2", "avx512_vnni"}), ("Features\t: fp asimd", {"fp", "asimd"})],
)
def test_isa_reads_the_flags_of_intel_and_arm(monkeypatch, line, expected):
    monkeypatch.setattr(machine, "_cpuinfo", lambda: ["processor\t: 0", line])
    assert machine.isa() == expected


def test_isa_is_empty_where_there_is_no_cpuinfo(monkeypatch):
    monkeypatch.setattr(machine, "_cpuinfo", list)
    assert machine.isa() == set()


def test_versions_are_the_installed_ones():
    assert machine.versions()["openvino"] == metadata.version("openvino")


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    result = subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True)
    return result.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository whose `toolkit/` is where the module believes to lie."""
    package = tmp_path / "toolkit"
    package.mkdir()
    (package / "module.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(paths, "PACKAGE", package)
    return tmp_path


def test_commit_is_the_checkouts_head(checkout):
    assert git(checkout, "rev-parse", "HEAD").startswith(machine.commit())
    assert machine.commit()


def test_commit_says_when_files_differ_from_it(checkout):
    (checkout / "toolkit" / "module.py").write_text("changed")
    assert machine.commit().endswith("-dirty")


def test_commit_is_empty_for_a_copy_inside_another_repository(checkout, monkeypatch):
    inside = checkout / "venv" / "toolkit"
    inside.mkdir(parents=True)
    monkeypatch.setattr(paths, "PACKAGE", inside)
    assert machine.commit() == ""
