"""Tokenizers as their `tokenizer.json` defines them, and their comparison. Imports neither torch nor transformers."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BERT_SETTINGS = {  # key of a BertNormalizer -> key of tokenizer_config.json
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
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
    tokenizer = stored_tokenizer(folder)
    count = tokenizer.get_vocab_size() if tokenizer is not None else 0
    if isinstance(size, int) and count > size:
        what = f"the tokenizer has {count} tokens, the model only {size}"
        raise UserError(what, where=str(folder), instead="the tokenizer that belongs to the model")


def definition(tokenizer: "Tokenizer") -> dict[str, Any]:
    """Returns everything that the token ids of a text depend on, without truncation and padding."""
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found | {"truncation": None, "padding": None}


def stored_tokenizer(folder: Path) -> "Tokenizer | None":
    """Returns the tokenizer of a checkpoint as transformers would load it; None without a valid `tokenizer.json`."""
    from tokenizers import Tokenizer

    try:
        found = json.loads((folder / "tokenizer.json").read_text())
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        if (found.get("normalizer") or {}).get("type") == "BertNormalizer":
            # transformers builds this normalizer from the settings, whatever tokenizer.json has.
            found["normalizer"] |= {own: settings[key] for own, key in _BERT_SETTINGS.items() if key in settings}
        tokenizer = Tokenizer.from_str(json.dumps(found | {"truncation": None, "padding": None}))
    except Exception:  # a damaged tokenizer is reported when it is loaded
        return None
    return tokenizer


def require_same_tokens(student: Path, teacher: Path, texts: Iterable[str]) -> None:
    """Checks without transformers that two checkpoints tokenise texts equally; only if both have a `tokenizer.json`.

    Args:
        student: Folder of the checkpoint that is distilled.
        teacher: Folder of its teacher.
        texts: The texts to compare; not read if the definitions are equal.

    Raises:
        UserError: They give a text other token ids.
    """
    own, other = stored_tokenizer(student), stored_tokenizer(teacher)
    if own is None or other is None or definition(own) == definition(other):
        return
    for text in texts:
        ids, theirs = own.encode(text).ids, other.encode(text).ids
        if ids != theirs:
            raise different_tokens(text, ids, theirs, teacher)


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
