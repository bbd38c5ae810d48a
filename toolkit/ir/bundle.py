"""One compressed file for one deployment: an IR folder, packed so that its zeros and codes compress, and back.

What compresses well must lie together. So the .bin is taken apart: of a sparse constant the positions of its non-zeros
and their values, of floats each byte by itself, of the sparse kernel's weights the distances between indices. Parts of
one kind are joined to a stream, and each stream goes through zstd. Unpacking gives every file back bit for bit, which
`pack` makes sure of before it keeps what it wrote.

    POFABNDL, u32 version, u32 bytes of the index packed, u32 bytes of it unpacked, index (JSON), streams
"""

import hashlib
import json
import struct
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from toolkit.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np

SUFFIX = ".pofa"
_MAGIC, _VERSION = b"POFABNDL", 1
_MODEL, _WEIGHTS = "openvino_model.xml", "openvino_model.bin"
_LEVEL = 9  # 19 takes twenty times as long and saves 1 %
_LARGE = 1024  # bytes from which a constant is worth a look
_SPARSE = 0.3  # share of zeros from which positions and values go apart
# The sparse kernel's header (native/format.h): where its sections begin.
_BLOB, _BLOB_HEADER = b"POFASPRS", struct.Struct("<8s8I10Q")


@dataclass(frozen=True)
class _Constant:
    kind: str
    offset: int
    size: int


def pack(folder: Path, target: Path) -> int:
    """Writes a folder's files into one.

    Args:
        folder: An IR folder; files only, no folders in it.
        target: File to write; it is whole or not there.

    Returns:
        Bytes written.

    Raises:
        UserError: There is no whole IR in the folder, or more than one; or what was written does not come back the
            same.
    """
    for name in (_MODEL, _WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"no {name} here", where=str(folder), instead="<run>/tasks/<task>/export/<variant>")
    inner = next((p.name for p in sorted(folder.iterdir()) if p.is_dir()), None)
    if inner is not None:
        raise UserError(f"it has a folder in it, {inner}", where=str(folder), instead="an IR folder, which has none")
    streams: dict[str, list[Any]] = defaultdict(list)
    files = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        data = path.read_bytes()
        parts = _take_apart(data, _constants(folder / _MODEL), streams) if path.name == _WEIGHTS else None
        if parts is None:
            streams["text"].append(_bytes(data))
        files.append({"name": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "parts": parts})

    import numpy as np

    codec, index, payload = _codec(), [], []
    for kind, pieces in streams.items():
        joined = np.concatenate(pieces).tobytes()
        payload.append(codec.compress(joined, asbytes=True))
        index.append({"kind": kind, "size": len(joined), "packed": len(payload[-1])})
    described = json.dumps({"files": files, "streams": index}).encode()
    head = codec.compress(described, asbytes=True)
    content = b"".join([_MAGIC, struct.pack("<III", _VERSION, len(head), len(described)), head, *payload])
    for name, data in _files(content, target):
        if (folder / name).read_bytes() != data:
            raise UserError(f"{name} would not come back the same; nothing was written", where=str(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(content)
    partial.replace(target)
    return len(content)


def unpack(source: Path, folder: Path) -> None:
    """Writes the files of a bundle into a new folder.

    Raises:
        UserError: The bundle is damaged, cut off or newer than this toolkit, or the folder exists.
    """
    if folder.exists():
        raise UserError("it is already there", where=str(folder), instead="another folder; nothing was overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "whole"
        made.mkdir()
        for name, data in _files(source.read_bytes(), source):
            (made / name).write_bytes(data)
        made.rename(folder)


def _files(content: bytes, source: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a bundle's files, each checked."""
    start = len(_MAGIC) + 12
    if content[: len(_MAGIC)] != _MAGIC or len(content) < start:
        raise UserError("not a bundle of `pruneofa pack`", where=str(source))
    version, packed, size = struct.unpack_from("<III", content, len(_MAGIC))
    if version > _VERSION:
        raise UserError(f"written by a newer toolkit (version {version})", where=str(source), instead="pip install -U")
    try:
        yield from _whole_files(content, start, packed, size)
    except (ArithmeticError, LookupError, MemoryError, OSError, TypeError, ValueError) as error:
        raise UserError(f"the bundle is damaged ({error})", where=str(source), instead="another copy of it") from None


def _whole_files(content: bytes, start: int, packed: int, size: int) -> Iterator[tuple[str, bytes]]:
    import numpy as np

    codec = _codec()
    index = json.loads(codec.decompress(content[start : start + packed], size, asbytes=True))
    at, streams = start + packed, {}
    for stream in index["streams"]:
        data = codec.decompress(content[at : at + stream["packed"]], stream["size"], asbytes=True)
        streams[stream["kind"]] = _Reader(np.frombuffer(data, dtype=np.uint8))
        at += stream["packed"]
    for file in index["files"]:
        if Path(file["name"]).name != file["name"] or file["name"] in ("", ".", ".."):
            raise ValueError(f"the file name {file['name']!r}")
        if file["parts"] is None:
            data = streams["text"].take(file["size"]).tobytes()
        else:
            data = b"".join(_put_together(p, streams).tobytes() for p in file["parts"])
        if len(data) != file["size"] or hashlib.sha256(data).hexdigest() != file["sha256"]:
            raise ValueError(f"the checksum of {file['name']}")
        yield file["name"], data


class _Reader:
    """A stream, read from its beginning to its end."""

    def __init__(self, data: "np.ndarray") -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> "np.ndarray":
        if not 0 <= size <= len(self._data) - self._at:
            raise ValueError("a stream ends early")
        self._at += size
        return self._data[self._at - size : self._at]


def _constants(model: Path) -> list[_Constant]:
    """The large constants of an IR, in the order of the .bin."""
    found = []
    try:
        root = ElementTree.parse(model).getroot()
    except ElementTree.ParseError as error:
        raise UserError(f"not an IR ({error})", where=str(model), instead="export it again") from None
    for layer in root.iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None and int(data.get("size", 0)) >= _LARGE:
            found.append(_Constant(data.get("element_type", ""), int(data.get("offset", 0)), int(data.get("size", 0))))
    return sorted(found, key=lambda c: c.offset)


def _take_apart(data: bytes, constants: list[_Constant], streams: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Hands the .bin's bytes to the streams; the parts say how they came from there."""
    parts: list[dict[str, Any]] = []
    at = 0

    def plain(end: int) -> None:
        nonlocal at
        if end > at:
            streams["plain"].append(_bytes(data[at:end]))
            parts.append({"form": "plain", "size": end - at})
            at = end

    for constant in constants:
        if constant.offset < at or constant.offset + constant.size > len(data):
            continue  # shared with another constant
        plain(constant.offset)
        raw = _bytes(data[at : at + constant.size])
        part = _constant_apart(raw, constant.kind, streams)
        if part is not None:
            parts.append(part)
            at += constant.size
    plain(len(data))
    return parts


def _constant_apart(raw: "np.ndarray", kind: str, streams: dict[str, list[Any]]) -> dict[str, Any] | None:
    import numpy as np

    if raw[: len(_BLOB)].tobytes() == _BLOB:
        return _blob_apart(raw, streams)
    width = {"i8": 1, "u8": 1, "f16": 2, "f32": 4}.get(kind)
    if width is None or raw.size % width:
        return None
    values = raw.view(f"u{width}")
    kept = values != 0
    if 1 - kept.mean() < _SPARSE:
        streams[f"dense {kind}"].append(_planes(raw, width))
        return {"form": "dense", "kind": kind, "size": raw.size, "width": width}
    streams["positions"].append(np.packbits(kept))
    streams[f"values {kind}"].append(_planes(values[kept].view(np.uint8), width))
    return {"form": "sparse", "kind": kind, "size": raw.size, "width": width, "kept": int(kept.sum())}


def _blob_apart(raw: "np.ndarray", streams: dict[str, list[Any]]) -> dict[str, Any] | None:
    """The sparse kernel's weights: indices as distances from the one before in the same row, values by their bytes.

    None: the header does not describe what is behind it.
    """
    import numpy as np

    head = _BLOB_HEADER.unpack(raw[: _BLOB_HEADER.size].tobytes())
    block_rows, value_type = head[5], head[6]
    entries, indices_at, values_at = head[11], head[15], head[16]
    step, width = (2 if block_rows == 1 else 1), {0: 4, 1: 2, 2: 1}.get(value_type, 0)
    count = entries * block_rows
    if not width or not indices_at + entries <= values_at <= raw.size - count * width:
        return None
    indices = raw[indices_at : indices_at + entries]
    before = np.concatenate([np.zeros(min(step, entries), np.uint8), indices[:-step]]) if entries else indices
    streams["distances"].append(indices - before)  # modulo 256, so nothing is lost where a row begins
    streams[f"packed values {width}"].append(_planes(raw[values_at : values_at + count * width], width))
    rest = np.concatenate([raw[:indices_at], raw[indices_at + entries : values_at], raw[values_at + count * width :]])
    streams["packed rest"].append(rest)
    return {
        **{"form": "packed", "rest": rest.size, "entries": entries, "step": step, "width": width, "count": count},
        **{"indices_at": indices_at, "values_at": values_at},
    }


def _put_together(part: dict[str, Any], streams: dict[str, _Reader]) -> "np.ndarray":
    """The inverse of what `_take_apart` did to one part."""
    import numpy as np

    form = part["form"]
    if form == "plain":
        return streams["plain"].take(part["size"])
    if form == "dense":
        return _together(streams[f"dense {part['kind']}"].take(part["size"]), part["width"])
    if form == "sparse":
        width = part["width"]
        total = part["size"] // width
        kept = np.unpackbits(streams["positions"].take(-(-total // 8)), count=total).astype(bool)
        values = np.zeros(total, dtype=f"u{width}")
        values[kept] = _together(streams[f"values {part['kind']}"].take(part["kept"] * width), width).view(f"u{width}")
        return values.view(np.uint8)
    if form != "packed":
        raise ValueError(f"the form {form!r}")
    distances = streams["distances"].take(part["entries"])
    indices = np.empty_like(distances)
    for i in range(part["step"]):
        indices[i :: part["step"]] = np.cumsum(distances[i :: part["step"]], dtype=np.uint8)
    values = _together(streams[f"packed values {part['width']}"].take(part["count"] * part["width"]), part["width"])
    rest = streams["packed rest"].take(part["rest"])
    between = part["values_at"] - part["indices_at"] - part["entries"]
    first, middle, last = np.split(rest, [part["indices_at"], part["indices_at"] + between])
    return np.concatenate([first, indices, middle, values, last])


def _planes(raw: "np.ndarray", width: int) -> "np.ndarray":
    """Bytes of multi-byte values, all first ones, all second ones, …: exponents lie together."""
    import numpy as np

    return np.ascontiguousarray(raw.reshape(-1, width).T).reshape(-1)


def _together(planes: "np.ndarray", width: int) -> "np.ndarray":
    import numpy as np

    return np.ascontiguousarray(planes.reshape(width, -1).T).reshape(-1)


def _bytes(data: bytes) -> "np.ndarray":
    import numpy as np

    return np.frombuffer(data, dtype=np.uint8)


def _codec() -> Any:
    import pyarrow

    return pyarrow.Codec("zstd", compression_level=_LEVEL)
