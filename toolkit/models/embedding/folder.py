"""The parts of a sentence-transformers folder beside the encoder: pooling and normalisation. Imports no torch.

A folder with them opens as `SentenceTransformer(folder)`, and an IR folder with `backend="openvino"`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.core.files import read_json
from toolkit.recipe.kinds.embedding import Pooling

PoolingKeys = tuple[Pooling | None, bool | None]  # a task's `pooling` and `normalize`; None: as the model has it

MODULES = "modules.json"
_POOLING = "1_Pooling"
_LENGTH = "sentence_bert_config.json"
_OF_LIBRARY = "sentence_transformers.models."
_MODES: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclass(frozen=True)
class SentencePooling:
    """How the states of the tokens become an embedding.

    Attributes:
        mode: Mean over the attended tokens, or state of the first token.
        normalize: Whether the embedding is divided by its length.
    """

    mode: Pooling = "mean"
    normalize: bool = True


def pooling_of(folder: Path, keys: PoolingKeys = (None, None)) -> SentencePooling:
    """Returns the pooling of a checkpoint: its own, else that of a task's keys, else mean and normalised.

    Args:
        folder: The checkpoint folder.
        keys: The task's `pooling` and `normalize`.

    Raises:
        UserError: The folder's modules are damaged or not supported, or a key contradicts them.
    """
    mode, normalize = keys
    stored = stored_pooling(folder)
    if stored is None:
        return SentencePooling(mode or "mean", normalize is not False)
    for key, wanted, found in (("pooling", mode, stored.mode), ("normalize", normalize, stored.normalize)):
        if wanted not in (None, found):
            text = str(found).lower()
            what = f"the task's {key} is {str(wanted).lower()}, but this model's is {text}"
            raise UserError(what, where=str(folder / MODULES), instead=f"{key}: {text}, or remove the key")
    return stored


def stored_pooling(folder: Path) -> SentencePooling | None:
    """Returns the pooling that a sentence-transformers folder states; None for another folder.

    Raises:
        UserError: A file is damaged, or a module or a way of pooling is not supported.
    """
    if not (folder / MODULES).is_file():
        return None
    modules = read_json(folder / MODULES)
    entries = modules if isinstance(modules, list) and all(isinstance(m, dict) for m in modules) else []
    names = [str(m.get("type")).rpartition(".")[2] for m in entries]
    if names[:2] != ["Transformer", "Pooling"] or names[2:] not in ([], ["Normalize"]):
        raise UserError(
            f"its modules are {', '.join(names) or 'missing'}",
            where=str(folder / MODULES),
            instead="Transformer, Pooling, and Normalize or nothing: no other modules are supported",
        )
    path = _pooling_file(folder, entries)
    if not path.is_file():  # a copy of the files beside the weights alone, as in an included model
        return None
    config = read_json(path)
    mode = _mode(config) if isinstance(config, dict) else None
    if mode is None:
        raise UserError("this way of pooling is not supported", where=str(path), instead="the mean, or the first token")
    return SentencePooling(mode, len(names) == 3)


def pools_prompt(folder: Path) -> bool:
    """Returns whether the tokens of a prompt are pooled, too; a folder with another way says so in its pooling."""
    modules = read_json(folder / MODULES) if (folder / MODULES).is_file() else None
    entries = modules if isinstance(modules, list) and all(isinstance(m, dict) for m in modules) else []
    path = _pooling_file(folder, entries) if len(entries) > 1 else None
    config = read_json(path) if path is not None and path.is_file() else {}
    return not isinstance(config, dict) or config.get("include_prompt") is not False


def _pooling_file(folder: Path, entries: list[dict[str, Any]]) -> Path:
    return folder / str(entries[1].get("path")) / "config.json"


def write_pooling(folder: Path, pooling: SentencePooling, size: int, longest: int) -> None:
    """Writes what makes a checkpoint or an IR folder one of sentence-transformers.

    Args:
        folder: Folder of the encoder, with its config and tokenizer.
        pooling: Pooling and normalisation.
        size: Number of values of an embedding.
        longest: Tokens after which a text is truncated.
    """
    types = ["Transformer", "Pooling", *(["Normalize"] if pooling.normalize else [])]
    paths = ["", _POOLING, "2_Normalize"]
    modules = [{"idx": i, "name": str(i), "path": paths[i], "type": _OF_LIBRARY + name} for i, name in enumerate(types)]
    modes = {key: mode == pooling.mode for key, mode in _MODES.items()}
    (folder / _POOLING).mkdir(exist_ok=True)
    for path, values in (
        (folder / MODULES, modules),
        (folder / _POOLING / "config.json", {"word_embedding_dimension": size} | modes),
        (folder / _LENGTH, {"max_seq_length": longest, "do_lower_case": False}),
    ):
        path.write_text(json.dumps(values, indent=2) + "\n")


def _mode(config: dict[str, Any]) -> Pooling | None:
    """Returns the only way of pooling of a pooling module's config, in the old form or the new; None if unsupported."""
    named = config.get("pooling_mode")
    on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if named is not None:
        named = named[0] if isinstance(named, list) and len(named) == 1 else named
        return next((mode for mode in _MODES.values() if mode == named), None)
    return _MODES.get(on[0]) if len(on) == 1 else None
