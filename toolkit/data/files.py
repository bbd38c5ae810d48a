"""Access to text files: download, decompression and reading by line. Loads no torch."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from toolkit.core.errors import UserError
from toolkit.core.files import user_path
from toolkit.data.hub import hub_split
from toolkit.recipe.references import is_hub, package_path


def paragraphs(path: Path) -> Iterator[str]:
    """Yields the stripped lines of a file: one paragraph each, and empty lines between documents.

    Raises:
        UserError: The file is damaged or not UTF-8 (the message names the line), or has no text at all.
    """
    empty = True
    for line in raw_lines(path):
        text = line.strip()
        empty = empty and not text
        yield text
    if empty:
        raise UserError("no text in this file", where=str(path), instead="add text, or leave the file out")


def _open_zstd(path: Path, mode: str, **settings: Any) -> Any:
    """Opens a .zst file with pyarrow, which reports truncated files; other readers ignore the truncation."""
    import pyarrow as pa

    stream = io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    return stream if mode == "rb" else io.TextIOWrapper(stream, **settings)


# One for each suffix of `COMPRESSED`.
_OPENERS: dict[str, Callable[..., Any]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".zst": _open_zstd,
}


_LONGEST_LINE = 1 << 20  # characters; longer lines are read in pieces, so that no file has to fit in memory


def fetch_file(spec: str) -> Path:
    """Returns the local path of a file given as a path, `package:…` or `hub:…`; the latter is downloaded once.

    Raises:
        UserError: The file does not exist or cannot be downloaded.
    """
    if is_hub(spec):
        return hub_split(spec).fetched()
    path = package_path(spec) if spec.startswith("package:") else user_path(spec)
    if not path.is_file():
        if path.is_absolute():
            raise UserError("no such file", where=spec)
        instead = f"a path relative to the recipe file or, as in key=value on the command line, to {Path.cwd()}"
        raise UserError("no such file", where=spec, instead=instead)
    return path


def cached_file(spec: str) -> Path | None:
    """Like `fetch_file`, without downloading: None for a split on the hub that is not cached.

    Raises:
        UserError: A local file or package does not exist.
    """
    if not is_hub(spec):
        return fetch_file(spec)
    file = hub_split(spec).file
    return file if file.is_file() else None


def open_text(path: Path) -> TextIO:
    """Opens a text file, compressed (.xz, .gz, .bz2, .zst) or not, as UTF-8."""
    opener = _OPENERS.get(path.suffix.lower())
    if opener is None:
        return path.open(encoding="utf-8-sig", newline="")
    return cast(TextIO, opener(path, "rt", encoding="utf-8-sig", newline=""))


def raw_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text file, line ends included.

    Raises:
        UserError: The file is not UTF-8, contains zero bytes, or its compressed data is damaged.
    """
    try:
        with open_text(path) as stream:
            while line := stream.readline(_LONGEST_LINE):
                # UTF-16 without a byte-order mark decodes as UTF-8, with a zero for every other character.
                if "\0" in line:
                    raise _unreadable(path, ValueError("it contains zero bytes, like UTF-16"), lambda raw: b"\0" in raw)
                yield line
    except (UnicodeDecodeError, EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise _unreadable(path, error, _undecodable if isinstance(error, UnicodeDecodeError) else None) from None
    except OSError as error:
        if error.errno is not None:  # bz2 and zstd raise OSError without an errno for damaged data
            raise
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception, bad: Callable[[bytes], bool] | None = None) -> UserError:
    """Error for an unreadable file. `bad` recognises the line to name; None: the error is not in a single line."""
    return UserError(
        f"cannot be read as text ({str(error) or type(error).__name__})",
        where=f"{path}:{_first_line(path, bad)}" if bad else str(path),
        instead="a complete UTF-8 file, plain or .xz, .gz, .bz2, .zst",
    )


def _first_line(path: Path, bad: Callable[[bytes], bool]) -> int:
    """Number of the first bad line; decoding works on blocks, so its errors have no line number."""
    with _OPENERS.get(path.suffix.lower(), open)(path, "rb") as stream:
        ends = (line for block in stream for line in block.splitlines())  # classic Mac OS ends lines with a lone CR
        return next(number for number, line in enumerate(ends, 1) if bad(line))


def _undecodable(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return True
    return False
