"""Damaged manifests: a report, a plan and `inspect` read them, or they are a UserError."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.damage import damaged, damaged_bytes, refused_or
from tests.helpers.manifests import run_manifests
from toolkit import reporting
from toolkit.cli.inspect import inspection
from toolkit.core.artifacts import Manifest
from toolkit.pipeline.graph import finished_manifests

RUN: list[Manifest] = run_manifests()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


def place(folder: Path, manifest: Manifest) -> Path:
    return (folder / "tasks" / manifest.task if manifest.task else folder) / manifest.stage / "manifest.json"


def use(folder: Path, number: int, content: bytes, page: bool) -> None:
    """Writes a run with one damaged manifest, and reports it; the page takes most of a second."""
    for other, manifest in enumerate(RUN):
        path = place(folder, manifest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if other == number else manifest.model_dump_json().encode())
    refused_or(lambda: inspection(folder))
    refused_or(lambda: reported(folder, page))


def reported(folder: Path, page: bool) -> None:
    found = [finished_manifests(folder)]
    reporting.console(found)
    if page:
        reporting.build(found, folder / "report")
    reporting.failures(found[0])


def test_the_run_that_is_damaged_is_valid(folder):
    use(folder, -1, b"", page=False)
    reported(folder, page=True)


@given(data=st.data())
def test_a_damaged_manifest_is_refused_or_reported(folder, data):
    number = data.draw(st.integers(0, len(RUN) - 1))
    values = json.loads(RUN[number].model_dump_json())
    changed = data.draw(damaged(values))
    encoded = json.dumps(changed).encode("utf-8", "surrogatepass")
    content = data.draw(st.one_of(st.just(encoded), st.just(encoded), damaged_bytes(encoded)))
    use(folder, number, content, page=data.draw(st.integers(0, 7)) == 0)
