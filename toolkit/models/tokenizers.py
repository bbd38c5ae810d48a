"""Tokenizers as their `tokenizer.json` defines them, and their comparison. Imports neither torch nor transformers."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Key of a BertNormalizer -> key of tokenizer_config.json, and what transformers takes without it.
_BERT_SETTINGS = {
    "lowercase": ("do_lower_case", True),
    "strip_accents": ("strip_accents", None),
    "handle_chinese_chars": ("tokenize_chinese_chars", True),
}
_VOCABULARIES = {"tokenizer.json", "vocab.txt", "vocab.json"}
_SHOWN = 60  # characters of a text that a message quotes


def require_tokenizer(folder: Path) -> None:
    """Checks that a checkpoint has a tokenizer: transformers would make one of special tokens only.

    Raises:
        UserError: It has none.
    """
    if not any(p.name in _VOCABULARIES or p.suffix == ".model" for p in folder.glob("*")):
        raise UserError("no tokenizer in this folder", where=str(folder), instead="a folder with tokenizer.json")


def require_tokens_within(folder: Path, size: object) -> None:
    """Checks that a model has an embedding for each token of a `tokenizer.json`, if there is one.

    Args:
        folder: The checkpoint folder.
        size: `vocab_size` of its `config.json`.

    Raises:
        UserError: The tokenizer has more tokens than the model.
    """
    count = max((tokenizer.get_vocab_size() for tokenizer in stored_tokenizers(folder)), default=0)
    if isinstance(size, int) and count > size:
        what = f"the tokenizer has {count} tokens, the model only {size}"
        raise UserError(what, where=str(folder), instead="the tokenizer that belongs to the model")


def definition(tokenizer: "Tokenizer") -> dict[str, Any]:
    """Returns everything that the token ids of a text depend on, without truncation and padding."""
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found | {"truncation": None, "padding": None}


def stored_tokenizers(folder: Path) -> "list[Tokenizer]":
    """Returns the tokenizers that transformers may load from a checkpoint; none without a valid `tokenizer.json`.

    There are two where `tokenizer_config.json` contradicts `tokenizer.json`: which one counts depends on the class of
    the tokenizer, on the type of the model and on the version of transformers.
    """
    from tokenizers import Tokenizer

    try:
        stored = json.loads((folder / "tokenizer.json").read_text()) | {"truncation": None, "padding": None}
        possible = [stored]
        if (stored.get("normalizer") or {}).get("type") == "BertNormalizer":
            file = folder / "tokenizer_config.json"
            settings = json.loads(file.read_text()) if file.is_file() else {}
            own = {name: settings.get(key, default) for name, (key, default) in _BERT_SETTINGS.items()}
            possible.append(stored | {"normalizer": stored["normalizer"] | own})
        return [Tokenizer.from_str(json.dumps(one)) for one in possible]
    except Exception:  # a damaged tokenizer is reported when it is loaded
        return []


def require_same_tokens(student: Path, teacher: Path, texts: Iterable[str]) -> None:
    """Checks without transformers that two checkpoints can tokenise texts equally; if both have a `tokenizer.json`.

    Args:
        student: Folder of the checkpoint that is distilled.
        teacher: Folder of its teacher.
        texts: The texts to compare; not read if the definitions are equal.

    Raises:
        UserError: They give a text other token ids.
    """
    own, other = stored_tokenizers(student), stored_tokenizers(teacher)
    if not own or not other or any(definition(a) == definition(b) for a in own for b in other):
        return
    for text in texts:
        ids, theirs = ([tokenizer.encode(text).ids for tokenizer in both] for both in (own, other))
        if not any(one in theirs for one in ids):
            raise different_tokens(text, ids[0], theirs[0], teacher)


def different_tokens(text: str, ids: list[int], teacher_ids: list[int], teacher: Path) -> UserError:
    """Returns the error for a teacher that reads other token ids than its student."""
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return UserError(
        f"the teacher's tokenizer is not the student's: {shown!r} is {_listed(ids)} to the student and "
        f"{_listed(teacher_ids)} to the teacher, which would read other words",
        where=str(teacher),
        instead="a teacher with the student's vocabulary and casing, or a student with the teacher's",
    )


def _listed(ids: list[int]) -> str:
    return f"{' '.join(map(str, ids[:8]))}{' …' if len(ids) > 8 else ''}"
