"""Damaged bundles: they are unpacked into their folder, or they are a UserError and nothing is written."""

import json
import struct
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.damage import damaged, damaged_bytes, refused_or
from toolkit.ir.bundle import pack, unpack

HEAD = struct.Struct("<8sIII")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small IR, beside the folder to unpack to."""
    folder = tmp_path_factory.mktemp("fuzzed") / "ir"
    folder.mkdir()
    data = bytes(range(256)) * 8 + bytes(4096)
    layer = '<layer type="Const"><data element_type="f32" shape="" offset="0" size="6144"/></layer>'
    (folder / "openvino_model.xml").write_text(f"<net><layers>{layer}</layers></net>")
    (folder / "openvino_model.bin").write_bytes(data)
    (folder / "config.json").write_text("{}")
    pack(folder, folder.with_suffix(".pofa"))
    return folder.with_suffix(".pofa")


def use(bundle: Path, content: bytes) -> None:
    source, target = bundle.with_name("damaged.pofa"), bundle.with_name("unpacked")
    source.write_bytes(content)
    before = sorted(bundle.parent.rglob("*"))
    refused_or(lambda: unpack(source, target))
    if target.exists():
        assert sum(p.stat().st_size for p in target.iterdir()) < 100_000
        for path in target.iterdir():
            path.unlink()
        target.rmdir()
    assert sorted(bundle.parent.rglob("*")) == before


def test_the_bundle_that_is_damaged_is_valid(bundle):
    target = bundle.with_name("restored")
    unpack(bundle, target)
    assert (target / "config.json").read_text() == "{}"


@given(data=st.data())
def test_a_bundle_with_a_damaged_index_is_refused_or_unpacked(bundle, data):
    whole, codec = bundle.read_bytes(), pyarrow.Codec("zstd")
    magic, version, packed, size = HEAD.unpack_from(whole)
    index = json.loads(codec.decompress(whole[HEAD.size : HEAD.size + packed], size, asbytes=True))
    raw = json.dumps(data.draw(damaged(index))).encode("utf-8", "surrogatepass")
    head = codec.compress(raw, asbytes=True)
    use(bundle, HEAD.pack(magic, version, len(head), len(raw)) + head + whole[HEAD.size + packed :])


@given(data=st.data())
def test_a_damaged_bundle_is_refused_or_unpacked(bundle, data):
    use(bundle, data.draw(damaged_bytes(bundle.read_bytes())))
