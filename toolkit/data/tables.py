"""Readers for tables: TSV, CSV, JSON lines, Parquet, and SQuAD's nested JSON. Loads no torch."""

import csv
import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from toolkit.core.errors import UserError
from toolkit.data.files import is_compression, raw_lines

Record = dict[str, Any]
_LONGEST_FIELD = 2**31 - 1  # characters; csv's default limit of 131,072 is less than a long document
_FORMATS: dict[str, Literal["tsv", "csv", "json", "parquet"]] = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}


def table_format(path: Path) -> Literal["tsv", "csv", "json", "parquet"]:
    """Returns the format of a table by its suffix, ignoring a compression suffix.

    Raises:
        UserError: The suffix is not that of a table.
    """
    suffix = next((s for s in reversed(path.suffixes) if not is_compression(s)), "")
    if suffix not in _FORMATS:
        raise UserError("unknown table format", where=str(path), instead=f"a {', '.join(_FORMATS)} file")
    return _FORMATS[suffix]


def read_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, Record]]:
    """Yields the rows of a table as (location, column -> value).

    Values are texts; from JSON and Parquet also numbers, lists and None for null. The location is `file:line`, or the
    nearest equivalent: a row number in Parquet, a question's id in SQuAD's JSON.

    Args:
        path: The file.
        columns: Names of the required columns.

    Raises:
        UserError: The format is unknown, a column is missing, or the file is empty or damaged; the message names the
            line.
    """
    empty = True
    for where, row in _READERS[table_format(path)](path, columns):
        empty = False
        yield where, row
    if empty:
        raise UserError("the file is empty", where=str(path))


def text(value: Any) -> str:
    """Returns a value of a table as text; None is an empty text."""
    return "" if value is None else str(value)


def _require_columns(columns: Sequence[str], names: Iterable[str], where: str) -> None:
    missing = next((c for c in columns if c not in names), None)
    if missing is not None:
        near = difflib.get_close_matches(missing, list(names), n=1)
        instead = near[0] if near else f"one of {', '.join(names)}"
        raise UserError(f"no column {missing!r}", where=where, instead=instead)


def _require_unique_names(names: Sequence[str], where: str) -> None:
    """Rejects columns of the same name, of which a row would silently keep the last."""
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        what = f"two columns have the name {twice!r}"
        raise UserError(what, where=where, instead="a unique name for each column")


def _text_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Reads TSV and CSV. GLUE's TSV files do not quote: a quotation mark in them is text.

    In CSV an unclosed quotation mark would swallow all following rows, hence `strict`.
    """
    quotes = table_format(path) == "csv"
    settings: dict[str, Any] = {"strict": True} if quotes else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(_lines(path), **settings)
    names: list[str] = []
    begun = 1  # first line of the current row
    try:
        for fields in reader:
            where, begun = f"{path}:{reader.line_num}", reader.line_num + 1
            if not fields:
                continue
            if not names:
                names = fields
                _require_unique_names(names, where)
                _require_delimiter(columns, names, where, "," if quotes else "\t")
                _require_columns(columns, names, where)
            elif len(fields) == len(names):
                yield where, dict(zip(names, fields, strict=True))
            else:
                raise UserError(f"{len(fields)} fields where the header has {len(names)}", where=where)
    except csv.Error as error:
        raise UserError(
            f"not a table ({error})",
            where=f"{path}:{begun}",
            instead='close each quoted field, and write a quotation mark in it as "": "he said ""no"""'
            if quotes
            else "",
        ) from None


def _require_delimiter(columns: Sequence[str], names: Sequence[str], where: str, mark: str) -> None:
    """Rejects a table with another delimiter, which would be read as a single column."""
    if len(names) != 1 or names[0] in columns:
        return
    others = {"\t": ("tab", "name it .tsv"), ",": ("comma", "name it .csv"), ";": ("semicolon", "use commas")}
    for other, (name, instead) in others.items():
        if other != mark and other in names[0]:
            what = f"the header is one field that contains {name}s: the file looks {name}-separated"
            raise UserError(what, where=where, instead=instead)


def _lines(path: Path) -> Iterator[str]:
    """Yields complete lines of any length: a row has to fit in memory anyway."""
    pieces: list[str] = []
    for piece in raw_lines(path):
        pieces.append(piece)
        if piece.endswith(("\n", "\r")):
            yield "".join(pieces)
            pieces.clear()
    if pieces:
        yield "".join(pieces)


def _json_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Reads JSON lines, or a file that is one object with `data` as in SQuAD."""
    if (articles := _squad_articles(path)) is not None:
        for where, row in _squad_rows(path, articles):
            _require_columns(columns, row, where)
            yield where, row
        return
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                found = json.loads(line, object_pairs_hook=_without_repeats)
            except _RepeatedKey as error:
                raise UserError(str(error), where=where, instead="a unique name for each value") from None
            except (ValueError, RecursionError) as error:
                raise _not_an_object(where, error) from None
            if not isinstance(found, dict):
                raise _not_an_object(where)
            _require_columns(columns, found, where)
            yield where, found


class _RepeatedKey(Exception):
    """A name occurs twice in an object; Python would silently keep the last value."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> Record:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKey(f"two values have the name {next(n for n in names if names.count(n) > 1)!r}")
    return found


def _not_an_object(where: str, error: ValueError | RecursionError | None = None) -> UserError:
    why = ""
    if isinstance(error, json.JSONDecodeError):
        why = f" ({error.msg}, character {error.pos + 1} of the line)"
    elif isinstance(error, ValueError):  # Python's limit, a few thousand digits
        why = ", or it contains a number with too many digits"
    return UserError(f"not a JSON object{why}", where=where, instead='one {"column": value, …} per line')


def _squad_articles(path: Path) -> list[Any] | None:
    """Returns the articles of a file in SQuAD's form, or None for other files.

    JSON lines are recognised by their first line, which is a complete object without a list `data`.
    """
    first = next((line for line in _lines(path) if line.strip()), "")
    if not first.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(first)
    except (ValueError, RecursionError):
        found = _single_object(path)
    articles = found.get("data") if isinstance(found, dict) else None
    return articles if isinstance(articles, list) else None


def _single_object(path: Path) -> Any:
    """Parses a file as one JSON value; None: the file is not one, and its suffix is .jsonl."""
    try:
        return json.loads("".join(raw_lines(path)))
    except json.JSONDecodeError as error:
        if ".jsonl" in path.suffixes:
            return None
        raise UserError(
            f"damaged JSON ({error.msg}, character {error.colno} of the line)",
            where=f"{path}:{error.lineno}",
            instead='a complete {"data": […]} of SQuAD, or one {"column": value, …} per line',
        ) from None
    except (ValueError, RecursionError):  # numbers or nesting beyond Python's limits: reported by the reader of lines
        return None


def _squad_rows(path: Path, articles: list[Any]) -> Iterator[tuple[str, Record]]:
    """Yields questions as rows with the columns of SQuAD on the hub."""
    where = str(path)
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    where = f"{path}, question {question['id']}"
                    answers = question["answers"]
                    yield (
                        where,
                        {
                            "id": question["id"],
                            "title": article.get("title", ""),
                            "context": paragraph["context"],
                            "question": question["question"],
                            "answers": {
                                "text": [a["text"] for a in answers],
                                "answer_start": [a["answer_start"] for a in answers],
                            },
                        },
                    )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"not in SQuAD's form from here on ({type(error).__name__}: {error})",
            where=where,
            instead='{"data": [{"paragraphs": [{"context": …, "qas": [{"id", "question", "answers"}]}]}]}',
        ) from None


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(path)
        _require_unique_names(file.schema_arrow.names, str(path))
        _require_columns(columns, file.schema_arrow.names, str(path))
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except UnicodeDecodeError as error:
        where = f"{path}, row {number + 1} or later"
        raise UserError(f"not UTF-8 ({error})", where=where, instead="texts in UTF-8") from None
    except (pa.ArrowException, OSError) as error:  # a damaged page is a plain OSError
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"not a Parquet file ({str(error).splitlines()[0]})", where=str(path)) from None


_READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[tuple[str, Record]]]] = {
    "tsv": _text_rows,
    "csv": _text_rows,
    "json": _json_rows,
    "parquet": _parquet_rows,
}
