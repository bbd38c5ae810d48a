"""Rows of JSON files: one object per line, an array, columns, and the forms that pandas, SQuAD and run_qa.py write."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.data.files import raw_lines
from toolkit.data.tables.columns import Record, complete_lines, require_columns

_LINES = 'one {"column": value, …} per line'
_FORMS = f'{_LINES}, an array of such objects, or {{"data": […]}}'


def json_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Yields the rows of a JSON file.

    Files of one object per line are streamed; others are read as one value.
    """
    value = _single_value(path)
    rows = _lines(path) if value is None else _rows_of(value, path, columns)
    for where, row in rows:
        require_columns(columns, row, where)
        yield where, row


class _RepeatedKey(Exception):
    """A name occurs twice in an object; Python would silently keep the last value."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> Record:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKey(f"two values have the name {next(n for n in names if names.count(n) > 1)!r}")
    return found


def _lines(path: Path) -> Iterator[tuple[str, Record]]:
    """Yields the objects of a file that has one per line."""
    for number, line in enumerate(complete_lines(path), 1):
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
            yield where, found


def _not_an_object(where: str, error: ValueError | RecursionError | None = None) -> UserError:
    why = ""
    if isinstance(error, json.JSONDecodeError):
        why = f" ({error.msg}, character {error.pos + 1} of the line)"
    elif isinstance(error, ValueError):  # Python's limit, a few thousand digits
        why = ", or it contains a number with too many digits"
    return UserError(f"not a JSON object{why}", where=where, instead=_LINES)


def _single_value(path: Path) -> Any:
    """Returns the value of a file that is one array or object; None: the file has one object per line.

    A first line that is a complete object begins a file of lines, unless it is the only line and contains a table.
    """
    lines = (line for line in complete_lines(path) if line.strip())
    first, is_only = next(lines, ""), next(lines, None) is None
    if not first.lstrip().startswith(("{", "[")):
        return None
    try:
        found = json.loads(first, object_pairs_hook=_without_repeats)
    except _RepeatedKey:  # reported by the reader of lines
        return None
    except (ValueError, RecursionError):
        return _complete_value(path)
    is_table = isinstance(found, list) or isinstance(found.get("data"), list) or _is_column_table(found)
    return found if is_only and is_table else None


def _complete_value(path: Path) -> Any:
    """Parses a file as one JSON value; None: the file is not one, and its suffix is that of JSON lines."""
    try:
        return json.loads("".join(raw_lines(path)), object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        if not {".jsonl", ".ndjson"}.intersection(map(str.lower, path.suffixes)):
            raise UserError(
                f"damaged JSON ({error.msg}, character {error.colno} of the line)",
                where=f"{path}:{error.lineno}",
                instead=f"a complete array or object; or {_LINES}",
            ) from None
        return None
    except _RepeatedKey as error:
        raise UserError(str(error), where=str(path), instead="a unique name for each value") from None
    except (ValueError, RecursionError):  # numbers or nesting beyond Python's limits: reported by the reader of lines
        return None


def _is_column_table(found: Record) -> bool:
    """Whether each value is a column (a list, or an object as pandas writes it) or each is a row (an object)."""
    values = list(found.values())
    return bool(values) and (all(isinstance(v, dict) for v in values) or all(isinstance(v, list) for v in values))


def _rows_of(value: Any, path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Yields the rows of a file that is one value."""
    if isinstance(value, list):
        return _objects(value, path)
    data = value.get("data")
    if isinstance(data, list) and isinstance(value.get("columns"), list):  # pandas, orient="split"
        return _objects((_row(value["columns"], row, path) for row in data), path)
    if isinstance(data, list):
        nested = any(isinstance(article, dict) and "paragraphs" in article for article in data)
        return _squad_rows(path, data) if nested else _objects(data, path)
    if not _is_column_table(value):
        raise UserError("one JSON object is not a table", where=str(path), instead=_FORMS)
    return _column_rows(value, path, columns)


def _objects(rows: Any, path: Path) -> Iterator[tuple[str, Record]]:
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise UserError("not a JSON object", where=where, instead=_FORMS)
        yield where, row


def _row(names: list[Any], values: Any, path: Path) -> Record:
    if not isinstance(values, list) or len(values) != len(names) or not all(isinstance(n, str) for n in names):
        raise UserError(
            f"a row of `data` does not have one value for each of the {len(names)} columns",
            where=str(path),
            instead='{"columns": ["text", "label"], "data": [["a text", 1]]}',
        )
    return dict(zip(names, values, strict=True))


def _column_rows(value: Record, path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Yields the rows of {column: [values]}, {column: {row: value}} or {row: {column: value}}.

    The names of the required columns distinguish the last two; without them, numbered keys are those of rows.
    """
    named = {name for column in value.values() if isinstance(column, dict) for name in column}
    inside = bool(named) and (
        named.issuperset(columns) and not value.keys() >= set(columns)
        if columns
        else all(name.isdecimal() for name in value)
    )
    if inside:
        yield from ((f"{path}, row {name!r}", row) for name, row in value.items())
        return
    require_columns(columns, value, str(path))
    keys = {name: list(column) if isinstance(column, dict) else range(len(column)) for name, column in value.items()}
    first, rows = next(iter(keys.items()))
    for name, other in keys.items():
        if list(other) != list(rows):
            what = f"the columns {first!r} and {name!r} do not have the same rows"
            raise UserError(what, where=str(path), instead="one value for each row in each column")
    for number, key in enumerate(rows, 1):
        yield f"{path}, row {number}", {name: column[key] for name, column in value.items()}


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
