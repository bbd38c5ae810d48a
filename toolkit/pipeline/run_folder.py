"""Partial stage folders, their promotion to finished stages, and the lock of a run folder."""

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from toolkit.core.errors import UserError
from toolkit.core.files import write_atomic


def resume_or_reset(partial: Path, key: str) -> Path:
    """Returns the scratch folder of an interrupted attempt with this key, or a new one."""
    work = partial / ".work"
    marker = work / "key.json"
    if not (marker.is_file() and marker.read_text() == json.dumps(key)):
        shutil.rmtree(partial, ignore_errors=True)
        work.mkdir(parents=True)
        write_atomic(marker, json.dumps(key))
    return work


def promote(partial: Path, folder: Path) -> None:
    """Renames a complete partial folder to its final name; the previous stage is deleted only after that."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Locks a run folder: two processes in it would overwrite each other's files.

    Raises:
        UserError: Another process holds the lock, or the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:
        what = f"{platform.system()} has no file locks of POSIX, which keep two runs out of one folder"
        raise UserError(what, where=str(folder), instead="Linux, WSL or macOS") from None
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError("another process is running in this folder", where=str(folder)) from None
        stream.write(str(os.getpid()))
        yield
