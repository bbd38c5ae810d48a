"""Locks of the builds of native extensions, which torch builds at their first use: NNCF's, and this package's own."""

import os
import time
from pathlib import Path
from typing import Any

import torch

from toolkit.core.errors import UserError


def await_builds(loader: Any = None) -> None:
    """Waits while another process builds an extension. NNCF and torch would wait for a lock without an owner, too.

    Args:
        loader: NNCF's class that loads the extension; None: the one of NNCF's own quantizers.

    Raises:
        UserError: A killed build has left its lock, or the other build takes longer than NNCF's time limit.
    """
    from nncf.torch import extensions
    from nncf.torch.quantization.extensions import QuantizedFunctionsCPULoader, QuantizedFunctionsCUDALoader

    of_nncf = QuantizedFunctionsCUDALoader if torch.cuda.is_available() else QuantizedFunctionsCPULoader
    chosen = loader or of_nncf
    try:
        lock = Path(chosen.get_build_dir()) / "lock"
        limit = extensions._get_extension_load_timeout()
    except OSError:  # a folder that cannot be written; NNCF then computes without the extension
        return
    except ValueError as error:  # NNCF_EXTENSION_LOAD_TIMEOUT is no number
        raise UserError(str(error), instead=f"{extensions.EXTENSION_LOAD_TIMEOUT_ENV_VAR}=600") from None
    end = None if limit is None else time.monotonic() + limit
    while lock.exists():
        if is_stale(lock):
            raise UserError(
                f"a killed build of {chosen.name()} has left this lock; no process on this machine holds it",
                where=str(lock),
                instead=f"rm {lock}",
            )
        if end is not None and time.monotonic() > end:
            raise UserError(
                f"another process holds the lock of {chosen.name()} for {limit} seconds",
                where=str(lock),
                instead="wait for its build, or delete the lock if nothing is built",
            )
        time.sleep(1)


def is_stale(lock: Path) -> bool:
    """Returns whether a lock file of torch's builds has no owner: a process that builds keeps its lock open.

    False where that cannot be seen: for files of other users, and without `/proc`.
    """
    if not Path("/proc/self/fd").is_dir():
        return False
    for pause in (1.0, 0.0):  # a finished build closes its lock just before it deletes it
        try:
            owned = lock.stat().st_uid == os.getuid()
        except OSError:
            return False
        if not owned or _is_open(lock):
            return False
        time.sleep(pause)
    return True


def _is_open(file: Path) -> bool:
    """Returns whether a process of this user has a file open."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = list((process / "fd").iterdir())
        except OSError:  # the process has ended, or is another user's
            continue
        for opened in files:
            try:
                if opened.samefile(file):
                    return True
            except OSError:  # closed in the meantime
                continue
    return False
