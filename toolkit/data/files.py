"""Files of pre-training text, as lines; and a look at all of them before anything is trained. Loads no torch."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from toolkit.core.errors import UserError
from toolkit.data.hub import hub_split
from toolkit.recipe.references import is_hub, package_path


def paragraphs(path: Path) -> Iterator[str]:
    """The lines of a file without white space around them: a paragraph each, and empty ones between documents.

    Raises:
        UserError: The file is damaged or not UTF-8, which says the line; or it was read to its end and has no text.
    """
    empty = True
    for line in raw_lines(path):
        text = line.strip()
        empty = empty and not text
        yield text
    if empty:
        raise UserError("no text in this file", where=str(path), instead="a paragraph a line, or leave it out")


def _open_zstd(path: Path, mode: str, **settings: Any) -> Any:
    """pyarrow's reader: it says when a file was cut off, which others pass over."""
    import pyarrow as pa

    stream = io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    return stream if mode == "rb" else io.TextIOWrapper(stream, **settings)


_OPENERS: dict[str, Callable[..., Any]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".zst": _open_zstd,
}


_LONGEST_LINE = 1 << 20  # characters; a longer line is handed on in pieces, so that no file has to fit in memory


def fetch_file(spec: str) -> Path:
    """A file given by path, as `package:…`, or as `hub:…`, which is fetched once.

    Raises:
        UserError: It is not there, or cannot be fetched.
    """
    if is_hub(spec):
        return hub_split(spec).fetched()
    path = package_path(spec) if spec.startswith("package:") else Path(spec).expanduser()
    if not path.is_file():
        raise UserError("no such file", where=spec, instead="a path from the recipe's folder or from where you stand")
    return path


def cached_file(spec: str) -> Path | None:
    """As `local_file`; None for a split on the hub that was not fetched yet.

    Raises:
        UserError: A local file or package is not there.
    """
    if not is_hub(spec):
        return fetch_file(spec)
    file = hub_split(spec).file
    return file if file.is_file() else None


def is_compression(suffix: str) -> bool:
    """Whether a file of this suffix is compressed text."""
    return suffix in _OPENERS


def open_text(path: Path) -> TextIO:
    """Opens a text file, compressed (.xz, .gz, .bz2, .zst) or not, as UTF-8."""
    opener = _OPENERS.get(path.suffix)
    if opener is None:
        return path.open(encoding="utf-8-sig", newline="")
    return cast(TextIO, opener(path, "rt", encoding="utf-8-sig", newline=""))


def raw_lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their line ends, one by one.

    Raises:
        UserError: The file is not UTF-8, has zero bytes, or its compression is damaged.
    """
    try:
        with open_text(path) as stream:
            while line := stream.readline(_LONGEST_LINE):
                if (
                    "\0" in line
                ):  # UTF-16 without a mark at its beginning decodes as UTF-8, every other character a zero
                    raise _unreadable(path, ValueError("it has zero bytes, as UTF-16 has"), lambda raw: b"\0" in raw)
                yield line
    except (UnicodeDecodeError, EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise _unreadable(path, error, _undecodable if isinstance(error, UnicodeDecodeError) else None) from None
    except OSError as error:
        if error.errno is not None:  # bz2 and zstd say OSError without a number for damaged data
            raise
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception, bad: Callable[[bytes], bool] | None = None) -> UserError:
    """`bad` tells the line that the message names; None: the fault is no line's."""
    return UserError(
        f"cannot be read as text ({str(error) or type(error).__name__})",
        where=f"{path}:{_first_line(path, bad)}" if bad else str(path),
        instead="a whole UTF-8 file, plain or .xz, .gz, .bz2, .zst",
    )


def _first_line(path: Path, bad: Callable[[bytes], bool]) -> int:
    """Number of the first line that is bad; decoding goes by blocks and cannot tell."""
    with _OPENERS.get(path.suffix, open)(path, "rb") as stream:
        ends = (line for block in stream for line in block.splitlines())  # an old Mac's lines end in a lone CR
        return next(number for number, line in enumerate(ends, 1) if bad(line))


def _undecodable(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return True
    return False
