"""Lossless compressed bundle of an IR folder, exploiting zeros and 8-bit codes: packing and unpacking.

Similar data compresses best when it is contiguous, so the .bin is split: a sparse constant into the positions and the
values of its non-zeros, floats into byte planes, packed matrices into index deltas and values. Parts of one kind are
concatenated to a stream, and each stream is compressed with zstd. Unpacking restores every file bit for bit; `pack`
verifies this before it writes the target.

    POFABNDL, u32 version, u32 bytes of the compressed index, u32 bytes of the raw index, index (JSON), streams

The quickstart's IRs take 9 % (sparse-int8) and 13 % (sparse-fp32) more as a tar with zstd of the same level, so
the toolkit has a container of its own; those of the sparse engine, which are packed already, take 1 and 8 % more.

A bundle may come from anywhere, so `bundle_index.py` checks every size and name before anything is decompressed.
"""

import hashlib
import struct
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from toolkit.core.errors import UserError
from toolkit.ir.bundle_index import (
    SUBFOLDERS,
    DensePart,
    File,
    Index,
    PackedPart,
    Part,
    PlainPart,
    SparsePart,
    Stream,
    Width,
    parse_index,
    require_file_name,
    require_plausible_size,
)

if TYPE_CHECKING:
    import numpy as np

SUFFIX = ".pofa"
_MAGIC, _VERSION = b"POFABNDL", 2
_FLAT_VERSION = 1  # of a bundle without subfolders, which older versions of the toolkit unpack too
_MODEL, _WEIGHTS = "openvino_model.xml", "openvino_model.bin"
_LEVEL = 9  # zstd level; 19 takes twenty times as long and saves 1 %
_LARGE = 1024  # bytes; smaller constants are not split
_SPARSE = 0.3  # fraction of zeros from which positions and values are stored separately
_WIDTHS: dict[str, Width] = {"i8": 1, "u8": 1, "f16": 2, "f32": 4}  # bytes of each element type that is split
_PACKED_WIDTHS: dict[int, Width] = {0: 4, 1: 2, 2: 1}  # the same for each value type of a packed matrix
# Header of a packed matrix (native/format.h): sizes and section offsets.
_BLOB, _BLOB_HEADER = b"POFASPRS", struct.Struct("<8s8I10Q")


@dataclass(frozen=True)
class _Constant:
    kind: str
    offset: int
    size: int


def pack(folder: Path, target: Path, *, without: Collection[str] = ()) -> int:
    """Packs an IR folder into one file.

    Args:
        folder: IR folder without subfolders other than those of sentence-transformers.
        target: Bundle to write; written atomically.
        without: Names of files that are left out.

    Returns:
        Size of the bundle in bytes.

    Raises:
        UserError: The folder has no complete IR or has other subfolders, or a file does not survive the round trip.
    """
    for name in (_MODEL, _WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{name} is missing", where=str(folder), instead="<run>/tasks/<task>/export/<variant>")
    streams: dict[str, list[Any]] = defaultdict(list)
    files = []
    for path in (path for path in regular_files(folder) if path.name not in without):
        data = path.read_bytes()
        parts = _split(data, _constants(folder / _MODEL), streams) if path.name == _WEIGHTS else None
        if parts is None:
            streams["text"].append(_bytes(data))
        digest = hashlib.sha256(data).hexdigest()
        name = path.relative_to(folder).as_posix()
        files.append(File(name=name, size=len(data), sha256=digest, parts=parts))

    import numpy as np

    codec, index, payload = _codec(), [], []
    for kind, pieces in streams.items():
        joined = np.concatenate(pieces).tobytes()
        payload.append(codec.compress(joined, asbytes=True))
        index.append(Stream(kind=kind, size=len(joined), packed=len(payload[-1])))
    described = Index(files=files, streams=index).model_dump_json().encode()
    head = codec.compress(described, asbytes=True)
    version = _VERSION if any("/" in file.name for file in files) else _FLAT_VERSION
    content = b"".join([_MAGIC, struct.pack("<III", version, len(head), len(described)), head, *payload])
    for name, data in _files(content, target):
        if (folder / name).read_bytes() != data:
            raise UserError(f"{name} would not be restored exactly; nothing was written", where=str(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(content)
    partial.replace(target)
    return len(content)


def regular_files(folder: Path) -> list[Path]:
    """Returns the files of an IR folder. Anything else would be lost, or come back as a copy of something outside."""
    files = sorted(folder.iterdir())
    known = [path for path in files if path.name in SUBFOLDERS and path.is_dir() and not path.is_symlink()]
    files = [path for path in files if path not in known]
    files += [inside for path in known for inside in sorted(path.iterdir())]
    for path in files:
        kind = "a link" if path.is_symlink() else "a subfolder" if path.is_dir() else "a special file"
        if kind != "a special file" or not path.is_file():
            what = f"the IR folder contains {kind}, {path.name}"
            raise UserError(what, where=str(folder), instead="a folder of regular files only")
        try:
            require_file_name(path.relative_to(folder).as_posix())
        except ValueError as error:
            raise UserError(str(error), where=str(folder), instead="another name") from None
    return files


def unpack(source: Path, folder: Path) -> None:
    """Unpacks a bundle into a new folder.

    Args:
        source: Bundle written by `pack`.
        folder: Folder to create.

    Raises:
        UserError: The bundle is damaged, truncated or newer than this toolkit, or the folder exists.
    """
    if folder.exists():
        raise UserError(
            "folder already exists", where=str(folder), instead="choose another folder (nothing was overwritten)"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "unpacked"
        made.mkdir()
        for name, data in _files(source.read_bytes(), source):
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_bytes(data)
        made.rename(folder)


def _files(content: bytes, source: Path) -> Iterator[tuple[str, bytes]]:
    """Yields names and contents of a bundle's files, each verified by its checksum."""
    start = len(_MAGIC) + 12
    if content[: len(_MAGIC)] != _MAGIC or len(content) < start:
        raise UserError("not a bundle written by `pruneofa pack`", where=str(source))
    version, packed, size = struct.unpack_from("<III", content, len(_MAGIC))
    if version > _VERSION:
        raise UserError(f"written by a newer toolkit (version {version})", where=str(source), instead="pip install -U")
    try:
        yield from _read_files(content, start, packed, size)
    except MemoryError:
        what = "the memory does not suffice for the files of this bundle"
        raise UserError(what, where=str(source), instead="a machine with more memory") from None
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
        raise UserError(f"the bundle is damaged ({error})", where=str(source), instead="an intact copy") from None


def _read_files(content: bytes, start: int, packed: int, size: int) -> Iterator[tuple[str, bytes]]:
    import numpy as np

    codec = _codec()
    require_plausible_size(size, packed)
    index = parse_index(codec.decompress(content[start : start + packed], size, asbytes=True))
    index.require_complete((_MODEL, _WEIGHTS), len(content) - start - packed)
    at, streams = start + packed, {}
    for stream in index.streams:
        data = codec.decompress(content[at : at + stream.packed], stream.size, asbytes=True)
        streams[stream.kind] = _Reader(np.frombuffer(data, dtype=np.uint8))
        at += stream.packed
    for file in index.files:
        if file.parts is None:
            data = streams["text"].take(file.size).tobytes()
        else:
            data = b"".join(_reassemble(part, streams).tobytes() for part in file.parts)
        if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
            raise ValueError(f"wrong checksum of {file.name}")
        yield file.name, data
    if not all(stream.at_end for stream in streams.values()):
        raise ValueError("a stream has more bytes than the files")


class _Reader:
    """Sequential reader of a stream."""

    def __init__(self, data: "np.ndarray") -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> "np.ndarray":
        if not 0 <= size <= len(self._data) - self._at:
            raise ValueError("truncated stream")
        self._at += size
        return self._data[self._at - size : self._at]

    @property
    def at_end(self) -> bool:
        """Whether every byte has been read."""
        return self._at == len(self._data)


def _constants(model: Path) -> list[_Constant]:
    """Returns the large constants of an IR, ordered by their offset in the .bin."""
    found = []
    try:
        for layer in ElementTree.parse(model).getroot().iter("layer"):
            data = layer.find("data")
            if layer.get("type") == "Const" and data is not None:
                offset, size = int(data.get("offset", 0)), int(data.get("size", 0))
                found.append(_Constant(data.get("element_type", ""), offset, size))
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # also unknown encodings, numbers that are none
        raise UserError(f"not a valid IR ({error})", where=str(model), instead="export the model again") from None
    return sorted((c for c in found if c.size >= _LARGE), key=lambda c: c.offset)


def _split(data: bytes, constants: list[_Constant], streams: dict[str, list[Any]]) -> list[Part]:
    """Distributes the .bin's bytes over the streams and returns the parts, which describe how to reassemble it."""
    parts: list[Part] = []
    at = 0

    def plain(end: int) -> None:
        nonlocal at
        if end > at:
            streams["plain"].append(_bytes(data[at:end]))
            parts.append(PlainPart(size=end - at))
            at = end

    for constant in constants:
        if constant.offset < at or constant.offset + constant.size > len(data):
            continue  # overlaps a constant that is split already, or exceeds the file
        plain(constant.offset)
        raw = _bytes(data[at : at + constant.size])
        part = _split_constant(raw, constant.kind, streams)
        if part is not None:
            parts.append(part)
            at += constant.size
    plain(len(data))
    return parts


def _split_constant(raw: "np.ndarray", kind: str, streams: dict[str, list[Any]]) -> Part | None:
    import numpy as np

    if raw[: len(_BLOB)].tobytes() == _BLOB:
        return _split_packed(raw, streams)
    width = _WIDTHS.get(kind)
    if width is None or raw.size % width:
        return None
    values = raw.view(f"u{width}")
    kept = values != 0
    if 1 - kept.mean() < _SPARSE:
        streams[f"dense {kind}"].append(_planes(raw, width))
        return DensePart(kind=kind, size=raw.size, width=width)
    streams["positions"].append(np.packbits(kept))
    streams[f"values {kind}"].append(_planes(values[kept].view(np.uint8), width))
    return SparsePart(kind=kind, size=raw.size, width=width, kept=int(kept.sum()))


def _split_packed(raw: "np.ndarray", streams: dict[str, list[Any]]) -> PackedPart | None:
    """Splits a packed matrix into index deltas within each row, byte planes of its values, and the rest.

    Returns None if the header is inconsistent with the data.
    """
    import numpy as np

    head = _BLOB_HEADER.unpack(raw[: _BLOB_HEADER.size].tobytes())
    block_rows, value_type = head[5], head[6]
    entries, indices_at, values_at = head[11], head[15], head[16]
    step: Literal[1, 2] = 2 if block_rows == 1 else 1
    width = _PACKED_WIDTHS.get(value_type)
    count = entries * block_rows
    if width is None or not indices_at + entries <= values_at <= raw.size - count * width:
        return None
    indices = raw[indices_at : indices_at + entries]
    before = np.concatenate([np.zeros(min(step, entries), np.uint8), indices[:-step]]) if entries else indices
    streams["distances"].append(indices - before)  # modulo 256, so the deltas across row boundaries are lossless too
    streams[f"packed values {width}"].append(_planes(raw[values_at : values_at + count * width], width))
    rest = np.concatenate([raw[:indices_at], raw[indices_at + entries : values_at], raw[values_at + count * width :]])
    streams["packed rest"].append(rest)
    return PackedPart(
        rest=rest.size,
        entries=entries,
        step=step,
        width=width,
        count=count,
        indices_at=indices_at,
        values_at=values_at,
    )


def _reassemble(part: Part, streams: dict[str, _Reader]) -> "np.ndarray":
    """Reassembles one part; the inverse of `_split`."""
    import numpy as np

    if isinstance(part, PlainPart):
        return streams["plain"].take(part.size)
    if isinstance(part, DensePart):
        return _from_planes(streams[f"dense {part.kind}"].take(part.size), part.width)
    if isinstance(part, SparsePart):
        total = part.size // part.width
        kept = np.unpackbits(streams["positions"].take(-(-total // 8)), count=total).astype(bool)
        values = np.zeros(total, dtype=f"u{part.width}")
        planes = streams[f"values {part.kind}"].take(part.kept * part.width)
        values[kept] = _from_planes(planes, part.width).view(f"u{part.width}")
        return values.view(np.uint8)
    distances = streams["distances"].take(part.entries)
    indices = np.empty_like(distances)
    for i in range(part.step):
        indices[i :: part.step] = np.cumsum(distances[i :: part.step], dtype=np.uint8)
    values = _from_planes(streams[f"packed values {part.width}"].take(part.count * part.width), part.width)
    rest = streams["packed rest"].take(part.rest)
    between = part.values_at - part.indices_at - part.entries
    first, middle, last = np.split(rest, [part.indices_at, part.indices_at + between])
    return np.concatenate([first, indices, middle, values, last])


def _planes(raw: "np.ndarray", width: int) -> "np.ndarray":
    """Splits multi-byte values into byte planes (all first bytes, all second bytes, …), which groups the exponents."""
    import numpy as np

    return np.ascontiguousarray(raw.reshape(-1, width).T).reshape(-1)


def _from_planes(planes: "np.ndarray", width: int) -> "np.ndarray":
    """Interleaves byte planes; the inverse of `_planes`."""
    import numpy as np

    return np.ascontiguousarray(planes.reshape(width, -1).T).reshape(-1)


def _bytes(data: bytes) -> "np.ndarray":
    import numpy as np

    return np.frombuffer(data, dtype=np.uint8)


def _codec() -> Any:
    import pyarrow

    return pyarrow.Codec("zstd", compression_level=_LEVEL)
