"""Exit codes and messages of commands that do not succeed.

1: a check failed; 2: a mistake of the user, or a full disk; 4: the run is complete, but compression failed; 70: a
fault of this program; 75: the time limit of `run` was reached; 130 and 143: interrupted by Ctrl-C and by SIGTERM. 70
and 75 are those of sysexits.h: 75 (EX_TEMPFAIL) invites the caller to repeat the command, and differs from the 124 of
`timeout`, which kills.
"""

import errno
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from click import ClickException

from toolkit.cli import terminal
from toolkit.core.errors import CheckFailed, CompressionFailed, TimeLimitReached, UserError

_LARGEST_INPUT = 100_000  # bytes of a YAML file that a crash file includes


class Interrupted(BaseException):
    """The process was told to stop. Not a KeyboardInterrupt, which Typer turns into `Aborted!` and exit code 1."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def stop_on_signals() -> None:
    """Lets Ctrl-C and SIGTERM end a command with a message; a second signal ends it at once."""
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is default:  # not where a parent process has set it to be ignored
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    raise Interrupted(number)


def exit_code(error: BaseException) -> int:
    """Prints the message of an exception to stderr, or as the JSON document, and returns the command's exit code."""
    code, described = _described(error)
    if terminal.SETTINGS.verbose:
        print("".join(traceback.format_exception(error)), file=sys.stderr)
    if terminal.SETTINGS.document is not None:
        terminal.print_document(terminal.SETTINGS.found | {"error": _fields(described)})
    else:
        print(f"pruneofa: {described}", file=sys.stderr)
    return code


def _fields(error: UserError) -> dict[str, Any]:
    fields: dict[str, Any] = {"what": error.what, "where": error.where, "instead": error.instead}
    return fields | ({"errors": [_fields(part) for part in error.parts]} if error.parts else {})


def _described(error: BaseException) -> tuple[int, UserError]:
    if isinstance(error, Interrupted | KeyboardInterrupt):
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        what = "interrupted" if number == signal.SIGINT else "terminated"
        return 128 + number, UserError(f"{what}; run the same command again to resume")
    if isinstance(error, CompressionFailed):
        return 4, UserError(str(error))
    if isinstance(error, CheckFailed):
        return 1, UserError(str(error))
    if isinstance(error, TimeLimitReached):
        return 75, UserError(f"time limit reached {error}; the same command resumes from there")
    if isinstance(error, UserError):
        return 2, error
    if isinstance(error, ClickException):
        return error.exit_code, UserError(error.format_message(), instead="the command with --help lists its options")
    if isinstance(error, ModuleNotFoundError):
        from toolkit.pipeline.requirements import extra_of, install_command

        library = (error.name or "").split(".")[0]
        if extra := extra_of(library):
            return 2, UserError(f"{library} is not installed", instead=install_command(extra))
    if (tool := type(error).__module__.split(".")[0]) in ("mlflow", "wandb"):  # --track
        what = f"{tool}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
        return 2, UserError(what, where="--track", instead=f"the settings of {tool}, or no --track; the run resumes")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        what = "the disk is full; free some space and run the same command again to resume (finished stages are kept)"
        return 2, UserError(what)
    if _is_out_of_memory(error):
        return 2, UserError(
            "out of memory; finished stages are kept",
            instead="a smaller batch_size with more gradient_accumulation_steps, recompute: true, or a shorter "
            "max_seq_length; then run the same command again to resume",
        )
    if isinstance(error, OSError) and error.filename is not None:  # a path that cannot be read or written
        return 2, UserError((error.strerror or "").lower(), where=str(error.filename2 or error.filename))
    what = (traceback.format_exception_only(error)[-1].strip().splitlines() or [""])[0]
    return 70, UserError(
        f"a fault of this program, not yours: {what[:500]}\n  Details: {_crash_file(error)}",
        instead="report it with that file; finished stages are kept",
    )


def _is_out_of_memory(error: BaseException) -> bool:
    """Python and numpy raise MemoryError; torch OutOfMemoryError on a GPU, a RuntimeError with this text on a CPU."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _crash_file(error: BaseException) -> str:
    """Writes the command, its YAML files, the versions and the traceback to a new file, and returns its path."""
    from toolkit.core import machine

    details = "".join(traceback.format_exception(error))
    parts = {
        "command": " ".join(["pruneofa", *sys.argv[1:]]),
        "versions": "\n".join(f"{name} {version}" for name, version in machine.versions().items()),
        "commit": machine.commit(),
        **{path: _text(Path(path)) for path in sys.argv[1:] if path.endswith((".yaml", ".yml"))},
        "traceback": details,
    }
    try:
        number, path = tempfile.mkstemp(prefix="pruneofa-crash-", suffix=".txt")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("\n".join(f"## {name}\n{text.rstrip()}\n" for name, text in parts.items()))
    except OSError:  # no folder can be written to; the terminal remains
        return f"\n{details}"
    return path


def _text(path: Path) -> str:
    try:
        return path.read_bytes()[:_LARGEST_INPUT].decode("utf-8", "backslashreplace") if path.is_file() else ""
    except (OSError, ValueError):
        return ""
