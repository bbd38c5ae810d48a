"""Documents of the pre-training text: from plain text files, a column of tables, and data sets of the hub."""

import re
from collections.abc import Iterator
from pathlib import Path

from toolkit.core.errors import UserError
from toolkit.data.files import fetch_file, paragraphs
from toolkit.data.hub import hub_split
from toolkit.data.tables import read_rows
from toolkit.recipe.references import is_hub, table_format

LONGEST_DOCUMENT = 100  # paragraphs; a file without blank lines is split into documents of this length
# Beginnings of files that are not plain text -> what they are, and what to do about it.
_MARKUP = (
    (re.compile(r'\{\s*("|$)|\[\s*(\{|$)'), "JSON", "name it .jsonl or .json, and name its text column: corpus.column"),
    (re.compile(r"<(\?xml|!doctype|html|mediawiki|doc )", re.IGNORECASE), "markup", "its text without the tags"),
)


def documents(spec: str, column: str) -> Iterator[list[str]]:
    """Yields the documents of a file or hub data set as lists of paragraphs; a document can be empty.

    In plain text, blank lines separate documents. In a table or a hub data set, each row is a document.

    Args:
        spec: The file as written in the recipe.
        column: Text column of tables and hub data sets.

    Raises:
        UserError: The file is missing, damaged, not plain text or without any text, or the column does not exist or
            contains something other than text.
    """
    if is_hub(spec) or table_format(spec):
        texts = hub_split(spec).texts(column) if is_hub(spec) else _column(fetch_file(spec), column)
        for text in texts:
            yield [line.strip() for line in text.splitlines() if line.strip()]
        return
    path, document, checked = fetch_file(spec), list[str](), False
    for number, text in enumerate(paragraphs(path), 1):
        if document and (not text or len(document) == LONGEST_DOCUMENT):
            yield document
            document = []
        if text:
            checked = checked or _require_plain(text, f"{path}:{number}")
            document.append(text)
    yield document


def _require_plain(text: str, where: str) -> bool:
    """Rejects a file whose first line is that of another format: braces, keys and tags would be trained on."""
    for beginning, name, instead in _MARKUP:
        if beginning.match(text):
            raise UserError(f"this file contains {name}, not plain text", where=where, instead=instead)
    return True


def _column(path: Path, column: str) -> Iterator[str]:
    """Yields the texts of a column of a table."""
    empty = True
    try:
        for where, row in read_rows(path, (column,)):
            if not isinstance(row[column], str | None):
                texts = [name for name, value in row.items() if isinstance(value, str)]
                what = f"column {column!r} does not contain text, but e.g. {str(row[column])[:40]}"
                raise UserError(what, where=where, instead=f"corpus.column: {' or '.join(texts) or '<a text column>'}")
            empty = empty and not (row[column] or "").strip()
            yield row[column] or ""
    except UserError as error:
        if error.what != f"no column {column!r}":
            raise
        raise UserError(error.what, where=error.where, instead=f"corpus.column: {error.instead}") from None
    if empty:
        raise UserError(f"no text in column {column!r}", where=str(path), instead="corpus.column: <a text column>")


def as_read(spec: str, content: str) -> str:
    """Returns the identity of a file's text for cache keys: its content, and its format if it is read as a table."""
    kind = table_format(spec)
    return f"{content}:{kind}" if kind else content
