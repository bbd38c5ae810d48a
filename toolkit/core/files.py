"""Content hashes, atomic writes, and JSON files of unknown origin."""

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from toolkit.core.errors import UserError

_LARGEST_JSON = 1 << 28  # bytes; the index of a model with a million tensors has half of it
MANIFEST = "manifest.json"
CARD = "README.md"
PAPERS = frozenset({CARD, MANIFEST})  # describe the exported IR that they are beside; written after it, and again


def user_path(name: str) -> Path:
    """Returns the path that a user has written, with the home folder for `~`; a user that is not known stays."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 (Path.expanduser raises an error there)


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_hash(path: Path, without: Collection[str] = (MANIFEST,)) -> str:
    """Returns the hash of a file, or of a folder's relative paths and contents, hidden files left out.

    Args:
        path: The file or folder.
        without: Names of files in the folder that are left out.
    """
    if path.is_file():
        return file_hash(path)
    entries = [
        (str(p.relative_to(path)), file_hash(p))
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name not in without and not any(s.startswith(".") for s in p.relative_to(path).parts)
    ]
    return json_hash(entries)


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file that may come from anywhere.

    Raises:
        UserError: The file is missing, not a regular file, too large, or not JSON in UTF-8; or it is nested too deeply.
    """
    require_regular(path)
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"larger than {_LARGEST_JSON >> 20} MB")
        return from_json(path.read_bytes())  # unlike `json`, raises a ValueError for deep nesting and lone surrogates
    except (OSError, ValueError) as error:
        raise UserError(f"not a JSON file ({error})", where=str(path), instead="copy or download it again") from None


def require_regular(path: Path) -> None:
    """Checks that a path is a regular file or a link to one: opening a FIFO waits, and a device never ends.

    Raises:
        UserError: It is not.
    """
    if path.is_file():
        return
    what = "not a regular file" if path.exists() else "broken link" if path.is_symlink() else "no such file"
    raise UserError(what, where=str(path), instead="a regular file")


def require_regular_files(folder: Path) -> None:
    """Checks that a folder contains nothing but regular files, subfolders and links: libraries open files by name.

    Raises:
        UserError: It contains a FIFO, a device or a socket.
    """
    for path in folder.iterdir():
        if path.exists() and not path.is_dir():
            require_regular(path)


def json_hash(value: Any) -> str:
    """Returns the SHA-256 of a value's canonical JSON, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, atomically: if the process is killed, it has either the old or the new content."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
