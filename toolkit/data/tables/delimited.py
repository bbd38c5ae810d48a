"""Rows of TSV and CSV files."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.data.tables.columns import Record, complete_lines, require_columns, require_unique_names
from toolkit.recipe.references import table_format

_LONGEST_FIELD = 2**31 - 1  # characters; csv's default limit of 131,072 is less than a long document
_RAW: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
_QUOTED = 'close each quoted field, and write a quotation mark in it as "": "he said ""no"""'


def delimited_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Yields the rows of a TSV or CSV file.

    GLUE's TSV files do not quote: a quotation mark in them is text. Those of other programs may, see `_is_quoted`. In
    CSV an unclosed quotation mark would swallow all following rows, hence `strict`.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    mark = "," if table_format(path.name) == "csv" else "\t"
    quotes = mark == "," or _is_quoted(path, mark)
    reader = csv.reader(complete_lines(path), **({"delimiter": mark, "strict": True} if quotes else _RAW))
    names: list[str] = []
    begun = 1  # first line of the current row
    try:
        for fields in reader:
            where, begun = f"{path}:{reader.line_num}", reader.line_num + 1
            if not fields:
                continue
            if not names:
                names = fields
                require_unique_names(names, where)
                _require_delimiter(columns, names, where, mark)
                require_columns(columns, names, where)
            elif len(fields) == len(names):
                yield where, dict(zip(names, fields, strict=True))
            else:
                hint = (
                    "" if quotes or not any('"' in field for field in fields) else f"if the file is quoted: {_QUOTED}"
                )
                raise UserError(f"{len(fields)} fields where the header has {len(names)}", where=where, instead=hint)
    except csv.Error as error:
        where = f"{path}:{begun}"
        raise UserError(f"not a table ({error})", where=where, instead=_QUOTED if quotes else "") from None


def _is_quoted(path: Path, mark: str) -> bool:
    """Whether the quotation marks of a file enclose fields, as pandas, R and spreadsheets write them.

    Every mark of such a file encloses a field or is doubled inside one; and the header is quoted, or some field needs
    it, for a quotation mark, a delimiter or a line break. In any other file quotation marks are text; so they are if
    the lines between two of them are complete rows, which would be read as one.
    """
    field = rf'(?:"[^"]*(?:""[^"]*)*"|[^"{mark}]*)'
    enclosed = re.compile(rf"{field}(?:{mark}{field})*")
    record: list[str] = []

    def lines() -> Iterator[str]:
        for line in complete_lines(path):
            record.append(line)
            yield line

    names: list[str] = []
    needed = False
    try:
        for fields in csv.reader(lines(), delimiter=mark, strict=True):
            written = "".join(record).rstrip("\r\n")
            complete = len(record) > 1 and all(line.count(mark) + 1 == len(names) for line in record)
            record.clear()
            if '"' in written:
                needed |= not names or any(c in field for field in fields for c in ('"', mark, "\n", "\r"))
                if complete or not enclosed.fullmatch(written) or len(fields) != len(names or fields):
                    return False
            names = names or fields
    except csv.Error:
        return False
    return needed


def _require_delimiter(columns: Sequence[str], names: Sequence[str], where: str, mark: str) -> None:
    """Rejects a table with another delimiter, which would be read as a single column."""
    if len(names) != 1 or names[0] in columns:
        return
    others = {"\t": ("tab", "name it .tsv"), ",": ("comma", "name it .csv"), ";": ("semicolon", "use commas")}
    for other, (name, instead) in others.items():
        if other != mark and other in names[0]:
            what = f"the header is one field that contains {name}s: the file looks {name}-separated"
            raise UserError(what, where=where, instead=instead)
