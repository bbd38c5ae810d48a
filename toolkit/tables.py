"""Rows of data files: TSV, CSV, JSON lines, Parquet, and SQuAD's nested JSON. Loads no torch."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from toolkit import sources
from toolkit.errors import UserError

Row = dict[str, Any]
_FORMATS: dict[str, Literal["tsv", "csv", "json", "parquet"]] = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}


def table_format(path: Path) -> Literal["tsv", "csv", "json", "parquet"]:
    """By the suffix, the one before any compression suffix.

    Raises:
        UserError: It is none of these.
    """
    suffix = next((s for s in reversed(path.suffixes) if not sources.is_compression(s)), "")
    if suffix not in _FORMATS:
        raise UserError("unknown table format", where=str(path), instead=f"a {', '.join(_FORMATS)} file")
    return _FORMATS[suffix]


def column_names(path: Path) -> list[str]:
    """Column names of a table; those of the first row where the rows are JSON.

    Raises:
        UserError: The format is unknown, or the file is empty or damaged.
    """
    return list(next(iter(read_rows(path)))[1])


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a table as (where it stands, column -> value): texts, from JSON and Parquet numbers and lists too.

    `where` is `file:line`, or what comes nearest: a row number in Parquet, a question's id in SQuAD's JSON.

    Raises:
        UserError: The format is unknown, or the file is empty or damaged; says the line.
    """
    read = {"tsv": _text_rows, "csv": _text_rows, "json": _json_rows, "parquet": _parquet_rows}[table_format(path)]
    empty = True
    for where, row in read(path):
        empty = False
        yield where, row
    if empty:
        raise UserError("the file is empty", where=str(path))


def _text_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """GLUE's TSV files quote nothing: a quotation mark in them is text."""
    quoting: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if table_format(path) == "tsv" else {}
    reader = csv.reader(sources.lines(path), **quoting)
    names: list[str] = []
    try:
        for fields in reader:
            if not fields:
                continue
            if not names:
                names = fields
            elif len(fields) == len(names):
                yield f"{path}:{reader.line_num}", dict(zip(names, fields, strict=True))
            else:
                what = f"{len(fields)} fields where the header has {len(names)}"
                raise UserError(what, where=f"{path}:{reader.line_num}")
    except csv.Error as error:
        raise UserError(f"not a table ({error})", where=f"{path}:{reader.line_num}") from None


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """One object per line; or the whole file as one object with `data`, as SQuAD has it."""
    if _first_character(path) == "{" and (articles := _squad_articles(path)) is not None:
        yield from _squad_rows(path, articles)
        return
    for number, line in enumerate(sources.lines(path), 1):
        if line.strip():
            row = _object(line)
            if row is None:
                raise UserError(
                    "not a JSON object", where=f"{path}:{number}", instead='one {"column": value, …} per line'
                )
            yield f"{path}:{number}", {k: v for k, v in row.items() if v is not None}


def _first_character(path: Path) -> str:
    return next((line.strip()[0] for line in sources.lines(path) if line.strip()), "")


def _object(text: str) -> Row | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _squad_articles(path: Path) -> list[Any] | None:
    """The articles of a file in SQuAD's form; None where the file is something else.

    JSON lines are told from it by their first line: it is a whole object, and without a list `data`.
    """
    first = next(line for line in sources.lines(path) if line.strip())
    row = _object(first)
    if row is None:
        row = _object("".join(sources.lines(path)))
    articles = row.get("data") if row else None
    return articles if isinstance(articles, list) else None


def _squad_rows(path: Path, articles: list[Any]) -> Iterator[tuple[str, Row]]:
    """Questions as rows of the columns that the hub's SQuAD has."""
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
            f"not in SQuAD's form behind this place ({type(error).__name__}: {error})",
            where=where,
            instead='{"data": [{"paragraphs": [{"context": …, "qas": [{"id", "question", "answers"}]}]}]}',
        ) from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", {k: v for k, v in row.items() if v is not None}
    except pa.ArrowException as error:
        raise UserError(f"not a Parquet file ({str(error).splitlines()[0]})", where=str(path)) from None
