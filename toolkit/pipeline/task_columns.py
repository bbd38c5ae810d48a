"""Names of the text and label columns of a table, found from its header where they are usual. Loads no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.data.files import fetch_file
from toolkit.data.tables import read_rows
from toolkit.recipe import KINDS, Kind
from toolkit.recipe.references import is_hub, matching_files, table_format

_SINGLE = ("text", "sentence", "review", "content", "comment", "document", "tweet", "tokens", "words")
_SEVERAL = (
    ("anchor", "positive", "negative"),
    ("query", "positive", "negative"),
    ("query", "pos", "neg"),
    ("anchor", "positive"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
    ("query", "passage"),
    ("query", "document"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
# Usual names of the label in the order in which they are preferred. The first is the recipe's default.
_CLASS = ("label", "labels", "class", "category", "target", "sentiment")
_SCORE = ("label", "score", "similarity", "relevance", "rating", "target")
_LABELS: Mapping[str, tuple[str, ...]] = {
    "regression": _SCORE,
    "embedding": _SCORE,
    "reranking": _SCORE,
    "question_answering": ("answers",),
    "token_classification": ("labels", "tags", "ner_tags", "label"),
    "multi_label": ("labels", "label", "classes", "tags", "categories"),
}
_WITHOUT_LABEL = ("embedding", "multi_label", "reranking")  # kinds whose rows may have no label column
_NUMBERS = ("id", "_id", "idx", "index", "guid", "uid", "qid", "unnamed: 0", "")


@dataclass(frozen=True)
class Columns:
    """Columns of a task's rows.

    Attributes:
        texts: Text columns; empty if they are the default of the task's kind.
        label: Label column; None: the rows have none.
    """

    texts: tuple[str, ...]
    label: str | None


def find_columns(kind: Kind, spec: str, texts: Sequence[str] = (), label: str | None = None) -> Columns | None:
    """Returns the columns of a data file: those that are given, and the others if their names are usual.

    Args:
        kind: Kind of the task.
        spec: File, or pattern of files, of which the first is read, or split on the hub.
        texts: Text columns, if they are known.
        label: Label column, if it is known.

    Returns:
        The columns; None for a file without columns, or whose columns its format defines.

    Raises:
        UserError: The file cannot be read, or its columns are ambiguous.
    """
    if not is_hub(spec) and (table_format(spec) is None or Path(spec).parent.name == "qrels"):
        return None  # lines of text, tokens with their tags, BEIR's layout
    path = fetch_file(matching_files(spec)[0])
    _, row = next(read_rows(path, [*texts, *([label] if label else [])]))
    found = label or _label(kind, row, path, required=kind not in _WITHOUT_LABEL)
    chosen = tuple(texts) or _texts(kind, row, found, path)
    if KINDS[kind].dense_teaches and label is None and len(chosen) != 2:
        found = None  # a class of single texts, say, which is no score of a pair
    return Columns(chosen, found)


def _label(kind: Kind, row: Mapping[str, Any], path: Path, *, required: bool) -> str | None:
    usual = _LABELS.get(kind, _CLASS)
    by_name = {name.strip().lower(): name for name in row}
    found = [by_name[name] for name in usual if name in by_name]
    if len(found) > 1 and found[0].lower() != usual[0]:
        what = f"{' and '.join(map(repr, found))} may both be the label"
        raise UserError(what, where=str(path), instead=f"label={found[0]!r}, or another column")
    if found or not required:
        return found[0] if found else None
    what = f"no column has a usual name of a label ({', '.join(usual)})"
    raise UserError(what, where=str(path), instead=f"label=<one of {', '.join(row)}>")


def _texts(kind: Kind, row: Mapping[str, Any], label: str | None, path: Path) -> tuple[str, ...]:
    by_name = {name.strip().lower(): name for name in row if name != label}
    rules = KINDS[kind]
    if rules.columns and set(rules.columns) <= by_name.keys():
        return tuple(by_name[name] for name in rules.columns)
    several = [names for names in _SEVERAL if set(names) <= by_name.keys() and len(names) <= rules.most_columns]
    single = [name for name in _SINGLE if name in by_name]
    if several and not single:
        return tuple(by_name[name] for name in several[0])
    if len(single) == 1 and not several:
        return (by_name[single[0]],)
    left = [
        name
        for low, name in by_name.items()
        if low not in _NUMBERS and low not in _LABELS.get(kind, _CLASS) and not isinstance(row[name], int | float)
    ]
    if not single and not several and 1 <= len(left) <= min(2, rules.most_columns):
        return tuple(left)
    what = "no column can be a text" if not left else f"more than one column may be the text: {', '.join(left)}"
    raise UserError(what, where=str(path), instead=f"columns=[<one, or two of a pair, of {', '.join(row)}>]")
