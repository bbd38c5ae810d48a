"""What a command prints and where: for people, or one JSON document for scripts. Loads rich when it is used."""

import functools
import inspect
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from toolkit.core.errors import UserError

if TYPE_CHECKING:
    import rich.console

_PANEL = "output"


@dataclass
class Outcome:
    """Result of a command.

    Attributes:
        document: What `--json` prints: numbers, texts, lists and dicts; paths and dataclasses are converted.
        shown: What is printed for people; None: the command has printed it.
        wrap: Whether lines of `shown` are wrapped; commands to be copied are not.
        error: Exception with which the command ends after both.
    """

    document: dict[str, Any]
    shown: "rich.console.RenderableType | None" = None
    wrap: bool = True
    error: Exception | None = None


@dataclass
class _Settings:
    """Output settings of this process.

    Attributes:
        document: The stdout of a command with `--json`; None: it prints for people.
        quiet: Whether nothing but errors and the document is printed.
        verbose: Whether log messages of libraries and tracebacks are printed.
        found: Document of a command that ends with an error, which is printed together with it.
    """

    document: TextIO | None = None
    quiet: bool = False
    verbose: bool = False
    found: dict[str, Any] = field(default_factory=dict)


SETTINGS = _Settings()


def Console() -> "rich.console.Console":
    """Returns a console that prints text as it is: a name of a file or tensor may look like markup or an emoji code."""
    import rich.console

    return rich.console.Console(markup=False, emoji=False, quiet=SETTINGS.quiet)


def reserve_stdout() -> None:
    """Keeps stdout for the document: what libraries and subprocesses print there from now on goes to stderr."""
    sys.stdout.flush()
    SETTINGS.document = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)


def print_document(document: Mapping[str, Any]) -> None:
    """Prints a document as JSON; a number that is not finite becomes null."""
    stream = SETTINGS.document or sys.stdout
    print(json.dumps(_plain(document), indent=2, allow_nan=False), file=stream, flush=True)


def _plain(value: Any) -> Any:
    """Returns nested values as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


_OPTIONS = {
    "as_json": typer.Option("--json", help="print one JSON document; messages go to stderr", rich_help_panel=_PANEL),
    "quiet": typer.Option("--quiet", help="print nothing but errors", rich_help_panel=_PANEL),
    "verbose": typer.Option(
        "--verbose", help="also print log messages of libraries, and tracebacks", rich_help_panel=_PANEL
    ),
}


def with_output(command: Callable[..., Outcome]) -> Callable[..., None]:
    """Decorator that adds --json, --quiet and --verbose to a command and prints its outcome as they say."""

    @functools.wraps(command)
    def printing(*given: Any, as_json: bool = False, quiet: bool = False, verbose: bool = False, **named: Any) -> None:
        if quiet and verbose:
            raise UserError("--quiet and --verbose cannot be used together", instead="one of them")
        SETTINGS.quiet, SETTINGS.verbose = quiet, verbose
        if verbose:
            os.environ["TRANSFORMERS_VERBOSITY"] = "info"
            logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        outcome = command(*given, **named)
        if not as_json and outcome.shown is not None:
            Console().print(outcome.shown, highlight=False, soft_wrap=not outcome.wrap)
        if outcome.error is not None:
            SETTINGS.found = outcome.document
            raise outcome.error
        if as_json:
            print_document(outcome.document)

    own = list(inspect.signature(command).parameters.values())
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])
        for name, option in _OPTIONS.items()
    ]
    printing.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    printing.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
    return printing
