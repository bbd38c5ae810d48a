"""Index of a bundle: its files, their parts and the compressed streams, with every size and name checked.

Sizes are checked before anything is decompressed, because a small file can declare any size.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

# Largest ratio of raw to compressed bytes. IRs of very sparse models reach 50; zstd alone could reach 30,000.
_LARGEST_RATIO = 1000
_ALWAYS_PLAUSIBLE = 1 << 24  # bytes; in a small file the ratio means nothing
_LONGEST_NAME = 255  # bytes; the limit of most file systems

Size = Annotated[int, Field(ge=0, lt=1 << 48)]
Width = Literal[1, 2, 4]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PlainPart(_Entry):
    """Bytes stored as they are."""

    form: Literal["plain"] = "plain"
    size: Size


class DensePart(_Entry):
    """Numbers of `width` bytes, stored as byte planes."""

    form: Literal["dense"] = "dense"
    kind: str
    size: Size
    width: Width


class SparsePart(_Entry):
    """Numbers of `width` bytes, stored as the positions and the byte planes of the `kept` ones that are not zero."""

    form: Literal["sparse"] = "sparse"
    kind: str
    size: Size
    width: Width
    kept: Size


class PackedPart(_Entry):
    """A packed matrix (`native/format.h`), stored as index deltas, byte planes of its values, and the rest."""

    form: Literal["packed"] = "packed"
    rest: Size
    entries: Size
    step: Literal[1, 2]
    width: Width
    count: Size
    indices_at: Size
    values_at: Size

    @property
    def size(self) -> int:
        """Size of the packed matrix in bytes."""
        return self.rest + self.entries + self.count * self.width


Part = Annotated[PlainPart | DensePart | SparsePart | PackedPart, Field(discriminator="form")]


class File(_Entry):
    """A file of the IR folder; `parts` is None for a file that is stored in one piece."""

    name: str
    size: Size
    sha256: str
    parts: list[Part] | None


class Stream(_Entry):
    """A compressed stream: `size` bytes, stored in `packed` bytes."""

    kind: str
    size: Size
    packed: Size


class Index(_Entry):
    """The index of a bundle."""

    files: list[File]
    streams: list[Stream]

    def require_complete(self, required: Sequence[str], stored: int) -> None:
        """Checks names and sizes against each other and against the bytes that follow the index.

        Args:
            required: Names that must be among the files.
            stored: Number of bytes after the index.

        Raises:
            ValueError: A required file is missing; a name is invalid or occurs twice; or a size is not plausible.
        """
        names = [file.name for file in self.files]
        kinds = [stream.kind for stream in self.streams]
        for name in names:
            require_file_name(name)
        if missing := [name for name in required if name not in names]:
            raise ValueError(f"it contains no {missing[0]}")
        if len(set(names)) < len(names) or len(set(kinds)) < len(kinds):
            raise ValueError("two files or streams of the same name")
        if sum(stream.packed for stream in self.streams) != stored:
            raise ValueError("its length differs from the index")
        for file in self.files:
            if file.parts is not None and sum(part.size for part in file.parts) != file.size:
                raise ValueError(f"the parts of {file.name} do not add up to its size")
        for sizes in ([file.size for file in self.files], [stream.size for stream in self.streams]):
            require_plausible_size(sum(sizes), stored)


def parse_index(text: bytes) -> Index:
    """Returns the index from its JSON text.

    Raises:
        ValueError: The text is not an index.
    """
    try:
        return Index.model_validate_json(text)
    except ValidationError as error:  # deep JSON and lone surrogates, too
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"index: {'.'.join(map(str, first['loc']))} {first['msg']}".replace(":  ", ": ")) from None


def require_plausible_size(size: int, packed: int) -> None:
    """Checks that `packed` bytes can be an honest compression of `size` bytes.

    Raises:
        ValueError: They cannot.
    """
    if size > max(_ALWAYS_PLAUSIBLE, _LARGEST_RATIO * packed):
        raise ValueError(f"{packed:,} bytes declare to contain {size:,}")


SUBFOLDERS = ("1_Pooling",)  # of a sentence-transformers folder


def require_file_name(name: str) -> None:
    """Checks that a name is that of a file in the folder itself or in one of `SUBFOLDERS`, on any file system.

    Raises:
        ValueError: It is not.
    """
    folder, _, inside = name.partition("/")
    name = inside if folder in SUBFOLDERS else name
    if name in ("", ".", "..") or re.search(r"[\x00-\x1f\x7f/\\]", name) or len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"invalid file name {name!r}")
