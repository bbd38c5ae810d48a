"""Column names of tables, and the complete lines of a text file."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.data.files import raw_lines

Record = dict[str, Any]


class MissingColumnError(UserError):
    """An error about a column that a table does not have.

    Args:
        column: Name of the column.
        names: Names of the columns that the table has.
        where: The file, with the row if rows have names of their own.
        instead: The nearest name, or all of them.
    """

    def __init__(self, column: str, names: Sequence[str], *, where: str, instead: str) -> None:
        super().__init__(f"no column {column!r}", where=where, instead=instead)
        self.column, self.names = column, tuple(names)


def require_columns(columns: Sequence[str], names: Iterable[str], where: str) -> None:
    """Rejects a table without one of the columns; suggests the nearest name, with its blanks visible."""
    names = list(names)
    missing = next((c for c in columns if c not in names), None)
    if missing is None:
        return
    near = [n for n in names if n.strip() == missing.strip()] or difflib.get_close_matches(missing, names, n=1)
    instead = _shown(near[0]) if near else f"one of {', '.join(map(_shown, names))}"
    raise MissingColumnError(missing, names, where=where, instead=instead)


def _shown(name: str) -> str:
    """Returns a name, quoted if it would not be readable otherwise, e.g. because of a blank at its end."""
    plain = name and name == name.strip() and name.isprintable()
    return name if plain else f'"{name}"' if name.isprintable() else repr(name)


def require_unique_names(names: Sequence[str], where: str) -> None:
    """Rejects columns of the same name, of which a row would silently keep the last."""
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        what = f"two columns have the name {twice!r}"
        raise UserError(what, where=where, instead="a unique name for each column")


def complete_lines(path: Path) -> Iterator[str]:
    """Yields complete lines of any length: a row has to fit in memory anyway."""
    pieces: list[str] = []
    for piece in raw_lines(path):
        pieces.append(piece)
        if piece.endswith(("\n", "\r")):
            yield "".join(pieces)
            pieces.clear()
    if pieces:
        yield "".join(pieces)
