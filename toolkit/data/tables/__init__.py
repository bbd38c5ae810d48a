"""Readers for tables: TSV, CSV, JSON in its usual forms, and Parquet. Loads no torch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.data.tables.columns import Record as Record
from toolkit.data.tables.delimited import delimited_rows
from toolkit.data.tables.json_rows import json_rows
from toolkit.data.tables.parquet_rows import parquet_rows
from toolkit.recipe.references import TABLES, TableFormat, table_format

_READERS: dict[TableFormat, Callable[[Path, Sequence[str]], Iterator[tuple[str, Record]]]] = {
    "tsv": delimited_rows,
    "csv": delimited_rows,
    "json": json_rows,
    "parquet": parquet_rows,
}


def read_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, Record]]:
    """Yields the rows of a table as (location, column -> value).

    Values are texts; from JSON and Parquet also numbers, lists and None for null. The location is `file:line`, or the
    nearest equivalent: a row number in Parquet and JSON arrays, a question's id in SQuAD's JSON.

    Args:
        path: The file.
        columns: Names of the required columns.

    Raises:
        UserError: The format is unknown, a column is missing, or the file is empty or damaged; the message names the
            line.
    """
    kind = table_format(path.name)
    if kind is None:
        raise UserError("unknown table format", where=str(path), instead=f"a {', '.join(TABLES)} file")
    empty = True
    for where, row in _READERS[kind](path, columns):
        empty = False
        yield where, row
    if empty:
        raise UserError("the file is empty", where=str(path))


def text(value: Any) -> str:
    """Returns a value of a table as text; None is an empty text."""
    return "" if value is None else str(value)
