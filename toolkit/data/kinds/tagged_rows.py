"""Rows of a token-classification task: texts whose words have tags of IOB2, read from CoNLL files or tables. No torch.

Three forms: CoNLL files (a token and its tag a line), tables with a list of tokens and one of tags, and tables with a
text and the character spans of its entities. Tokens become a text with blanks between them, as it would be deployed.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.data.tables import Record, read_rows
from toolkit.data.tables.columns import complete_lines, require_columns
from toolkit.recipe import Task
from toolkit.recipe.kinds.token_classification import OUTSIDE, Scheme, split_tag
from toolkit.recipe.references import table_format

TOKENS, TAGS, DOCUMENT = "tokens", "tags", "document"  # names of a CoNLL file's first and last column, and of its parts
_DOCUMENT_START = "-DOCSTART-"
_BREAKS = re.compile(r"\s")
_SEPARATE = "PS"  # Unicode categories of punctuation and symbols: each such character is a word of its own
_INVISIBLE = "CZ"  # categories of control characters and spaces
# Chinese, Japanese and Korean ideographs, which tokenizers of BERT read as a word each.
_IDEOGRAPHS = (("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0002fa1f"))
_SPAN_FORM = '[[0, 5, "PER"]], or [{"start": 0, "end": 5, "label": "PER"}], with `end` exclusive'
_SPAN_LABELS = ("label", "type", "entity_group", "entity")
_FOLLOWED_BY = {"B": "IE", "I": "IE"}  # IOBES: what must come after a tag, of the same type


@dataclass(frozen=True)
class Tagged:
    """Words of a text, each with a tag.

    Attributes:
        spans: First and last (exclusive) character of each word.
        tags: Tag of each word, in the file's scheme, or as `tagged_rows` returns it in IOB2.
        where: Location of the row, for errors.
        line: For a CoNLL file: its path, and the line of the first word.
    """

    spans: tuple[tuple[int, int], ...]
    tags: tuple[str, ...]
    where: str
    line: tuple[Path, int] | None = None

    def place(self, word: int) -> str:
        """Returns the location of a word, for errors."""
        return f"{self.line[0]}:{self.line[1] + word}" if self.line else f"{self.where}, token {word + 1}"

    @property
    def types(self) -> set[str]:
        """The types of the entities."""
        return {kind for tag in self.tags if (found := split_tag(tag)) and (kind := found[1])}


def tagged_rows(path: Path, columns: Sequence[str], section: Task) -> Iterator[tuple[str, Record]]:
    """Yields the rows of a file as `read_rows`: the text column has a text, the label column its `Tagged` words.

    Args:
        path: The file: a table in JSON or Parquet, any other file is one in CoNLL's format.
        columns: Names of the required columns.
        section: The task's section.

    Raises:
        UserError: The file is damaged or lacks a column, tokens and tags differ in number, a token is empty, a tag is
            none, the tags break the rules of their scheme, or entities overlap or lie outside their text; the message
            names the row.
    """
    assert section.label is not None, "refused by the recipe"
    (text_column,), label_column = section.columns, section.label
    required = dict.fromkeys([*columns, text_column, label_column])
    is_table = table_format(path.name) in ("json", "parquet")
    found = _table_rows(path, [*required], section) if is_table else _conll_rows(path, [*required], section)
    rows = list(found)
    by_scheme = [tagged for _, _, _, tagged, in_scheme in rows if in_scheme]
    scheme = section.scheme or _scheme_of(by_scheme)
    for where, row, text, tagged, in_scheme in rows:
        own = _in_iob2(tagged, scheme, declared=section.scheme is not None) if in_scheme else tagged
        yield where, row | {text_column: text, label_column: own}


# Location, the row's columns, its text, its words, and whether their tags are still those of the file's scheme.
_Found = tuple[str, Record, str, Tagged, bool]


def _conll_rows(path: Path, columns: Sequence[str], section: Task) -> Iterator[_Found]:
    """Yields the sentences of a CoNLL file.

    Columns are separated by tabs, or by any white space in lines without a tab. They are called 1, 2, …; the first one
    also `tokens`, the last one `tags`. A line `-DOCSTART-` ends a sentence and begins a `document`.
    """
    width, document, first = 0, 0, 0
    lines: list[list[str]] = []

    def sentence() -> _Found:
        where = f"{path}:{first}"
        names = [str(number + 1) for number in range(width)]
        columns_of = [list(column) for column in zip(*lines, strict=True)]
        values: Record = dict(zip(names, columns_of, strict=True))
        values |= {TOKENS: columns_of[0], TAGS: columns_of[-1], DOCUMENT: str(document)}
        require_columns(columns, values, where)
        text, spans = _joined(values[section.columns[0]], where, (path, first))
        tags = tuple(values[str(section.label)])
        found = Tagged(spans, tags, where, (path, first))
        for word, tag in enumerate(tags):
            _require_tag(tag, found, word)
        return where, values, text, found, True

    empty = True
    for number, line in enumerate(complete_lines(path), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith(_DOCUMENT_START):
            if lines:
                yield sentence()
                lines.clear()
            document += bool(stripped)
            continue
        empty = False
        fields = [field.strip() for field in line.rstrip("\r\n").split("\t")] if "\t" in line else stripped.split()
        if len(fields) < 2:
            what = f"the token {stripped[:40]!r} has no tag"
            raise UserError(what, where=f"{path}:{number}", instead="a token, a tab or a blank, and its tag")
        if width and len(fields) != width:
            what = f"{len(fields)} fields, where the lines before have {width}"
            raise UserError(what, where=f"{path}:{number}", instead="the same columns in each line")
        width = len(fields)
        if not lines:
            first = number
        lines.append(fields)
    if lines:
        yield sentence()
    if empty:
        raise UserError("no sentence in this file", where=str(path), instead="a token and its tag in each line")


def _table_rows(path: Path, columns: Sequence[str], section: Task) -> Iterator[_Found]:
    """Yields the rows of a table with lists of tokens and tags, or texts and their entities."""
    text_column, label_column = section.columns[0], str(section.label)
    for where, row in read_rows(path, columns):
        tokens, labels = row[text_column], row[label_column]
        if tokens is None or tokens == [] or tokens == "":  # an empty text, which is refused or dropped as any other
            yield where, row, "", Tagged((), (), where), True
        elif isinstance(tokens, str):
            yield where, row, tokens, _of_entities(tokens, labels, where), False
        else:
            text, spans = _joined(tokens, where, None)
            yield where, row, text, _of_tags(spans, labels, where, section), True


def _joined(tokens: Any, where: str, line: tuple[Path, int] | None) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Returns the tokens as a text with blanks between them, and the characters of each."""
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        instead = '["EU", "rejects"] with a list of tags, or a text with a list of entities'
        raise UserError("the tokens are not a list of texts", where=where, instead=instead)
    spans, end = [], -1
    for word, token in enumerate(tokens):
        if all(unicodedata.category(c)[0] in _INVISIBLE for c in token):
            raise UserError("the token is empty", where=Tagged((), (), where, line).place(word), instead="a word")
        spans.append((end + 1, end := end + 1 + len(token)))
    return " ".join(tokens), tuple(spans)


def _of_tags(spans: tuple[tuple[int, int], ...], labels: Any, where: str, section: Task) -> Tagged:
    """Returns the words of a list of tokens with their tags, which may be numbers if the recipe names them."""
    if not isinstance(labels, list):
        raise UserError("the tags are not a list", where=where, instead='["B-ORG", "O"], one for each token')
    if len(labels) != len(spans):
        what = f"{len(spans):,} tokens, but {len(labels):,} tags"
        raise UserError(what, where=where, instead="one tag for each token")
    found = Tagged(spans, (), where)
    tags = []
    for word, label in enumerate(labels):
        if type(label) is int:
            if OUTSIDE not in section.labels:
                instead = "labels: [O, B-PER, I-PER], all tags in the order of their numbers"
                raise UserError("the tags are numbers, which the recipe does not name", where=where, instead=instead)
            if not 0 <= label < len(section.labels):
                what = f"there is no tag number {label}"
                raise UserError(what, where=found.place(word), instead=f"0 to {len(section.labels) - 1}")
            label = section.labels[label]
        _require_tag(label, found, word)
        tags.append(label)
    return Tagged(spans, tuple(tags), where)


def _require_tag(tag: Any, row: Tagged, word: int) -> None:
    if not isinstance(tag, str) or split_tag(tag) is None:
        raise UserError(f"{tag!r} is not a tag", where=row.place(word), instead="O, or B-PER, I-PER and the like")


def _of_entities(text: str, entities: Any, where: str) -> Tagged:
    """Returns the words of a text with the tags of IOB2 that its entities give them."""
    found: list[tuple[int, int, str]] = []
    if not isinstance(entities, list):
        raise UserError("the entities are not a list", where=where, instead=f"{_SPAN_FORM}; or [] for none")
    for number, entity in enumerate(entities, start=1):
        try:
            start, end, label = _entity(entity)
        except (TypeError, KeyError, ValueError):
            what = f"entity {number} is not a span with a label"
            raise UserError(what, where=where, instead=_SPAN_FORM) from None
        if not 0 <= start < end <= len(text):
            what = f"entity {number} ({start} to {end}) is not in the text, which has {len(text)} characters"
            raise UserError(what, where=where, instead=_SPAN_FORM)
        if not _words(text, start, end):
            what = f"entity {number} ({start} to {end}) has no visible character"
            raise UserError(what, where=where, instead=_SPAN_FORM)
        found.append((start, end, label))
    found.sort()
    for (start, end, label), (later, last, other) in itertools.pairwise(found):
        if later < end:
            what = f"the entities {text[start:end]!r} ({label}) and {text[later:last]!r} ({other}) overlap"
            raise UserError(what, where=where, instead="at most one entity for each character")
    spans: list[tuple[int, int]] = []
    tags: list[str] = []
    done = 0
    for start, end, label in [*found, (len(text), len(text), "")]:
        before, inside = _words(text, done, start), _words(text, start, end)
        spans += before + inside
        tags += [OUTSIDE] * len(before) + [f"{'I' if n else 'B'}-{label}" for n in range(len(inside))]
        done = end
    return Tagged(tuple(spans), tuple(tags), where)


def _entity(entity: Any) -> tuple[int, int, str]:
    """Returns start, end and label of an entity in one of its forms."""
    if isinstance(entity, dict):
        key = next(name for name in (*_SPAN_LABELS, "") if name in entity or not name)
        entity = [entity["start"], entity["end"], entity[key]]
    start, end, label = entity
    if type(start) is not int or type(end) is not int or not isinstance(label, str):
        raise TypeError
    if split_tag(f"B-{label}") is None:
        raise ValueError
    return start, end, label


def _words(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Returns the words between two characters: runs without blanks; punctuation and ideographs one by one.

    These are the words of BERT's tokenizer, so that a tag is that of what a model reads as one word.
    """
    found: list[tuple[int, int]] = []
    first = start

    def close(at: int) -> None:
        if any(unicodedata.category(c)[0] not in _INVISIBLE for c in text[first:at]):
            found.append((first, at))

    for at in range(start, end):
        character = text[at]
        alone = unicodedata.category(character)[0] in _SEPARATE or any(a <= character <= b for a, b in _IDEOGRAPHS)
        if alone or _BREAKS.match(character):
            close(at)
            if alone:
                found.append((at, at + 1))
            first = at + 1
    close(end)
    return found


def _scheme_of(rows: Sequence[Tagged]) -> Scheme:
    """Returns the scheme of a file's tags.

    E, S, L and U occur in IOBES and BILOU alone. In IOB1 a B follows an entity of its type, in IOB2 it begins each.
    """
    prefixes = {tag[0] for row in rows for tag in row.tags}
    if prefixes & set("LU"):
        return "BILOU"
    if prefixes & set("ES"):
        return "IOBES"
    inside_first = False
    for row in rows:
        before = OUTSIDE
        for tag in row.tags:
            begins = tag != OUTSIDE and before[2:] != tag[2:]
            if begins and tag[0] == "B":
                return "IOB2"
            inside_first |= begins
            before = tag
    return "IOB1" if inside_first else "IOB2"


def _in_iob2(row: Tagged, scheme: Scheme, *, declared: bool) -> Tagged:
    """Returns a row with its tags in IOB2.

    Raises:
        UserError: The tags break the rules of the scheme.
    """
    tags = []
    before, kind_before = OUTSIDE, ""
    for word, tag in enumerate(row.tags):
        prefix, kind = split_tag(tag) or (OUTSIDE, "")
        prefix = {"L": "E", "U": "S"}.get(prefix, prefix) if scheme in ("IOBES", "BILOU") else prefix
        same = kind == kind_before and before != OUTSIDE
        if problem := _problem(scheme, prefix, before, same):
            previous = row.tags[word - 1] if word else "the beginning of a sentence"
            known = "as declared" if declared else "as detected from this file"
            raise UserError(
                f"{tag} after {previous} cannot be in {scheme} ({known}): {problem}",
                where=row.place(word),
                instead="other tags, or another `scheme` (IOB1, IOB2, IOBES, BILOU)",
            )
        continues = {"IOB1": same and prefix == "I", "IOB2": prefix == "I"}.get(scheme, prefix in "IE")
        tags.append(OUTSIDE if prefix == OUTSIDE else f"{'I' if continues else 'B'}-{kind}")
        before, kind_before = prefix, kind
    if scheme in ("IOBES", "BILOU") and before in _FOLLOWED_BY:
        what = f"the sentence ends in {row.tags[-1]}, within an entity of {scheme}"
        raise UserError(what, where=row.place(len(tags) - 1), instead="the tag of an entity's last word")
    return Tagged(row.spans, tuple(tags), row.where, row.line)


def _problem(scheme: Scheme, prefix: str, before: str, same: bool) -> str:
    """Returns what is wrong about a tag after another one; empty if nothing is.

    Args:
        scheme: The scheme.
        prefix: The tag's prefix, with those of IOBES for BILOU.
        before: Prefix of the previous tag; O at the beginning.
        same: Whether the previous tag is one of an entity of the same type.
    """
    if scheme == "IOB1":
        if prefix == "B" and not same:
            return "B is for an entity right after another of its type"
    elif scheme == "IOB2":
        if prefix == "I" and not same:
            return "an entity begins with B"
    elif before in _FOLLOWED_BY and not (same and prefix in _FOLLOWED_BY[before]):
        return "the entity before has no last word"
    elif prefix in ("I", "E") and not (same and before in _FOLLOWED_BY):
        return "the entity has no first word"
    if scheme in ("IOB1", "IOB2") and prefix in "ESLU":
        return f"it has no {prefix}"
    return ""
