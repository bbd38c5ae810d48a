"""Bundles: lossless round trip, and errors on damaged files."""

import json
import os
import struct

import numpy as np
import pyarrow
import pytest

from toolkit.core.errors import UserError
from toolkit.core.files import PAPERS
from toolkit.ir import bundle, kernels
from toolkit.ir.bundle_index import require_file_name

LAYER = '<layer type="Const"><data element_type="{kind}" shape="" offset="{offset}" size="{size}"/></layer>'


def sparse(rng, kind, zeros, shape=(64, 96)):
    values = (50 * rng.normal(size=shape)).astype(kind)
    values[rng.random(shape) < zeros] = 0
    return values


@pytest.fixture
def ir(tmp_path):
    """An IR folder with a constant of every form, odd bytes between them, and minus zeros."""
    rng = np.random.default_rng(0)
    negative = sparse(rng, np.float32, 0.8)
    negative[3, :40] = -0.0
    pieces = [
        ("", b"odd bytes"),
        ("f32", negative.tobytes()),
        ("f32", sparse(rng, np.float32, 0.0).tobytes()),
        ("i8", sparse(rng, np.int8, 0.9).tobytes()),
        ("f16", sparse(rng, np.float16, 0.5).tobytes()),
        ("", b"x" * 333),
        ("i64", np.arange(500).tobytes()),
        ("u8", kernels.pack(sparse(rng, np.int8, 0.9), np.ones(64)).tobytes()),
        ("u8", kernels.pack(sparse(rng, np.float32, 0.9), pattern="4x1").tobytes()),
        ("u8", kernels.pack(np.zeros((9, 500), np.int8)).tobytes()),
        ("f32", np.zeros(4096, np.float32).tobytes()),
        ("", b"end"),
    ]
    layers, content = [], b""
    for kind, data in pieces:
        if kind:
            layers.append(LAYER.format(kind=kind, offset=len(content), size=len(data)))
        content += data
    folder = tmp_path / "ir"
    folder.mkdir()
    (folder / "openvino_model.xml").write_text(f"<net><layers>{''.join(layers)}</layers></net>")
    (folder / "openvino_model.bin").write_bytes(content)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module", autouse=True)
def built():
    kernels.build()


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_bundle_is_written_into_a_folder_that_was_not_there(ir, tmp_path):
    target = tmp_path / "new" / "folder" / "ir.pofa"
    assert bundle.pack(ir, target) == target.stat().st_size


def test_every_file_comes_back_bit_for_bit_and_takes_less_room(ir, tmp_path):
    size = bundle.pack(ir, tmp_path / "one.pofa")
    assert size == (tmp_path / "one.pofa").stat().st_size
    assert size < 0.6 * sum(map(len, contents(ir).values()))
    bundle.unpack(tmp_path / "one.pofa", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(ir)


def test_a_card_is_packed_and_can_be_left_out(ir, tmp_path):
    (ir / "README.md").write_text("# Card \u2013\n")
    (ir / "manifest.json").write_text("{}")
    bundle.pack(ir, tmp_path / "one.pofa")
    bundle.unpack(tmp_path / "one.pofa", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(ir)
    size = bundle.pack(ir, tmp_path / "two.pofa", without=PAPERS)
    for name in PAPERS:
        (ir / name).unlink()
    assert size == bundle.pack(ir, tmp_path / "three.pofa")


def test_wherever_a_bundle_is_damaged_or_cut_it_is_refused_and_nothing_is_written(ir, tmp_path):
    bundle.pack(ir, tmp_path / "one.pofa")
    content = (tmp_path / "one.pofa").read_bytes()
    rng = np.random.default_rng(1)
    for at in [*range(0, 40), *rng.integers(0, len(content), 60)]:
        bad = bytearray(content)
        bad[at] ^= 1 << int(rng.integers(8))
        cut = at % 3 == 0
        (tmp_path / "bad.pofa").write_bytes(content[:at] if cut else bad)
        try:
            bundle.unpack(tmp_path / "bad.pofa", tmp_path / f"bad{at}")
        except UserError:
            assert not (tmp_path / f"bad{at}").exists()
        else:  # zstd has bits that mean nothing; the files' own checksums have the last word
            assert not cut
            assert contents(tmp_path / f"bad{at}") == contents(ir)


def changed(content, change, after=b""):
    """Returns a bundle with a changed index: `change` gets the index as a dict and returns a dict or JSON text."""
    codec = pyarrow.Codec("zstd")
    _, packed, size = struct.unpack_from("<III", content, 8)
    index = json.loads(codec.decompress(content[20 : 20 + packed], size, asbytes=True))
    text = change(index)
    raw = text if isinstance(text, bytes) else json.dumps(text).encode()
    head = codec.compress(raw, asbytes=True)
    return b"".join([content[:8], struct.pack("<III", 1, len(head), len(raw)), head, content[20 + packed :], after])


def renamed(name):
    return lambda index: index | {"files": [index["files"][0] | {"name": name}, *index["files"][1:]]}


def with_stream(**values):
    return lambda index: index | {"streams": [index["streams"][0] | values, *index["streams"][1:]]}


def with_part(**values):
    def change(index):
        parts = index["files"][1]["parts"]
        index["files"][1]["parts"] = [parts[0] | values, *parts[1:]]
        return index

    return change


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "", ".", "..", "a\0b", "a\nb", "a\\b", "x" * 256, "\ud800", 7, None]
)
def test_a_bundle_with_a_name_that_is_none_is_refused(ir, tmp_path, name):
    (ir / "config.json").rename(ir / "a.json")  # the first file
    refused(ir, tmp_path, renamed(name))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_stream(size=-1), "greater than or equal to 0"),
        (with_stream(packed=-1), "greater than or equal to 0"),
        (with_stream(size=1 << 40), "declare to contain"),
        (with_stream(size=1 << 70), "less than"),
        (with_stream(size=True), "valid integer"),
        (with_part(size=-4), "greater than or equal to 0"),
        (with_part(size=3), "do not add up"),
        (with_part(form="other"), "form"),
        (lambda index: index | {"files": [*index["files"], index["files"][0]]}, "same name"),
        (lambda index: index | {"streams": [*index["streams"], index["streams"][0]]}, "same name"),
        (lambda index: index | {"files": index["files"][:1]}, "contains no openvino_model"),
        (lambda index: {"files": [], "streams": []}, "contains no openvino_model"),
        (lambda index: index | {"note": ""}, "note"),
        (lambda index: b"[" * 100_000, "recursion limit"),
        (lambda index: b"[]", "index"),
        (lambda index: b"\xff", "index"),
        (lambda index: index["files"], "index"),
    ],
)
def test_a_bundle_with_an_impossible_index_is_refused(ir, tmp_path, change, reason):
    refused(ir, tmp_path, change, reason)


def refused(ir, tmp_path, change, reason="damaged"):
    bundle.pack(ir, tmp_path / "one.pofa")
    (tmp_path / "bad.pofa").write_bytes(changed((tmp_path / "one.pofa").read_bytes(), change))
    with pytest.raises(UserError, match=reason):
        bundle.unpack(tmp_path / "bad.pofa", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_bundle_with_bytes_after_its_end_is_refused(ir, tmp_path):
    bundle.pack(ir, tmp_path / "one.pofa")
    content = (tmp_path / "one.pofa").read_bytes()
    (tmp_path / "same.pofa").write_bytes(changed(content, lambda index: index))
    bundle.unpack(tmp_path / "same.pofa", tmp_path / "same")
    (tmp_path / "bad.pofa").write_bytes(content + b"x")
    with pytest.raises(UserError, match="its length differs from the index"):
        bundle.unpack(tmp_path / "bad.pofa", tmp_path / "back")


def test_a_small_bundle_that_would_fill_the_disk_is_refused(ir, tmp_path):
    (ir / "openvino_model.bin").write_bytes(bytes(40_000_000))
    (ir / "openvino_model.xml").write_text("<net/>")
    with pytest.raises(UserError, match="declare to contain 40,"):  # zstd packs these zeros into 3 kB
        bundle.pack(ir, tmp_path / "one.pofa")
    assert not (tmp_path / "one.pofa").exists()


def test_a_bundle_that_is_too_large_for_the_memory_is_not_called_damaged(ir, tmp_path, monkeypatch):
    def full(*arguments):
        raise MemoryError

    bundle.pack(ir, tmp_path / "one.pofa")
    monkeypatch.setattr(bundle, "_read_files", full)
    with pytest.raises(UserError, match="the memory does not suffice"):
        bundle.unpack(tmp_path / "one.pofa", tmp_path / "back")


def test_a_folder_without_an_ir_and_an_existing_target_are_refused(ir, tmp_path):
    with pytest.raises(UserError, match=r"openvino_model\.xml"):
        bundle.pack(tmp_path, tmp_path / "one.pofa")
    bundle.pack(ir, tmp_path / "one.pofa")
    with pytest.raises(UserError, match="folder already exists"):
        bundle.unpack(tmp_path / "one.pofa", ir)


def test_the_subfolder_of_sentence_transformers_comes_back_and_no_other(ir, tmp_path):
    bundle.pack(ir, tmp_path / "flat.pofa")
    (ir / "1_Pooling").mkdir()
    (ir / "1_Pooling" / "config.json").write_text("{}")
    bundle.pack(ir, tmp_path / "one.pofa")
    bundle.unpack(tmp_path / "one.pofa", tmp_path / "back")
    assert (tmp_path / "back/1_Pooling/config.json").read_text() == "{}"
    versions = [int.from_bytes((tmp_path / name).read_bytes()[8:12], "little") for name in ("flat.pofa", "one.pofa")]
    assert versions == [1, 2]  # an older toolkit unpacks the first, and asks for an update at the second
    for name in ("1_Pooling", "1_Pooling/", "1_Pooling/a/b", "1_Pooling/..", "2_Other/config.json"):
        with pytest.raises(ValueError, match="invalid file name"):
            require_file_name(name)


def test_a_folder_that_would_not_come_back_whole_is_refused(ir, tmp_path):
    (ir / "inner").mkdir()
    with pytest.raises(UserError, match="contains a subfolder, inner"):
        bundle.pack(ir, tmp_path / "one.pofa")
    (ir / "inner").rmdir()
    for make, what in (
        (lambda path: path.symlink_to(ir / "config.json"), "a link, other"),
        (os.mkfifo, "a special file, other"),
        (lambda path: path.with_name("ot\nher").touch(), "invalid file name"),
    ):
        make(ir / "other")
        with pytest.raises(UserError, match=what):
            bundle.pack(ir, tmp_path / "one.pofa")
        (ir / "other").unlink(missing_ok=True)
    (ir / "ot\nher").unlink()
    model = ir / "openvino_model.xml"
    model.write_text(model.read_text()[:-20])
    with pytest.raises(UserError, match="not a valid IR") as caught:
        bundle.pack(ir, tmp_path / "one.pofa")
    assert caught.value.where == str(model)
    for text in (LAYER.format(kind="f32", offset="x", size=4), '<?xml version="1.0" encoding="none"?><net/>'):
        model.write_text(text)
        with pytest.raises(UserError, match="not a valid IR"):
            bundle.pack(ir, tmp_path / "one.pofa")
    (ir / "openvino_model.bin").unlink()
    with pytest.raises(UserError, match=r"openvino_model\.bin is missing"):
        bundle.pack(ir, tmp_path / "one.pofa")
    assert not (tmp_path / "one.pofa").exists()


@pytest.mark.parametrize("at", range(24, 128, 4))
def test_packed_weights_with_a_damaged_header_come_back_as_they_were(ir, tmp_path, at):
    weights = ir / "openvino_model.bin"
    content = bytearray(weights.read_bytes())
    first = content.index(b"POFASPRS")
    content[first + at : first + at + 4] = b"\xff\xff\xff\x00"
    weights.write_bytes(content)
    bundle.pack(ir, tmp_path / "one.pofa")
    bundle.unpack(tmp_path / "one.pofa", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(ir)
