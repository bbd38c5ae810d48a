"""Prompts of an embedding model: texts that it expects before queries and documents. Imports no torch.

They are those of sentence-transformers (`config_sentence_transformers.json`): a query has the prompt `query`, a
document the first of `document`, `passage` and `corpus`, or none where the model has none of that name, and any other
text the default prompt.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import UserError
from toolkit.core.files import read_json
from toolkit.models.embedding.folder import pools_prompt

if TYPE_CHECKING:
    from toolkit.recipe import Task

LIBRARY = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Prompts:
    """The prompts of a model.

    Attributes:
        texts: Name of a prompt -> the text that is put before another one.
        default: Name of the prompt of texts that are neither queries nor documents; None: they have none.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None

    def __bool__(self) -> bool:
        return any(self.texts.values())

    @property
    def query(self) -> str:
        """The prompt of queries."""
        return self._first("query")

    @property
    def document(self) -> str:
        """The prompt of documents."""
        return self._first("document", "passage", "corpus")

    @property
    def other(self) -> str:
        """The prompt of texts that are neither queries nor documents."""
        return self.texts.get(self.default or "", "")

    @property
    def of_all(self) -> tuple[str, str, str]:
        """The prompts of queries, documents and other texts, which decide how every text is encoded."""
        return self.query, self.document, self.other

    def of_columns(self, task: "Task") -> tuple[str, ...]:
        """Returns the prompt of each text of a row.

        The texts of pairs without a score and of triplets are a query and documents; others have the default prompt.

        Args:
            task: The task's section, as the rows have it.
        """
        together = len(task.columns)
        if together == 1 or task.label is not None:
            return (self.other,) * together
        return (self.query, *[self.document] * (together - 1))

    def _first(self, *names: str) -> str:
        return next((self.texts[name] for name in names if name in self.texts), "")


def stored_prompts(folder: Path) -> Prompts:
    """Returns the prompts that a sentence-transformers folder states; none for another folder.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / LIBRARY
    if not path.is_file():
        return Prompts()
    config = read_json(path)
    found: Any = config.get("prompts") or {} if isinstance(config, dict) else None
    default = config.get("default_prompt_name") if isinstance(config, dict) else None
    if not isinstance(found, dict) or not isinstance(default, str | None):
        raise UserError("the prompts are not texts by name", where=str(path), instead='"prompts": {"query": "query: "}')
    texts = {name: text or "" for name, text in found.items()}  # null: none
    if not all(isinstance(text, str) for text in texts.values()) or (default is not None and default not in texts):
        what = "a prompt is not a text, or default_prompt_name is not the name of one"
        raise UserError(what, where=str(path), instead='"prompts": {"query": "query: "}')
    return Prompts(texts, default)


def prompts_of(folder: Path, task: "Task") -> Prompts:
    """Returns the prompts of an embedding task: those of the recipe, else those of the checkpoint's folder.

    Args:
        folder: The checkpoint folder.
        task: The task's section.

    Raises:
        UserError: The file is damaged, the default prompt is none of the prompts, or the model pools without them.
    """
    stored = stored_prompts(folder)
    texts = stored.texts if task.prompts is None else task.prompts
    default = task.default_prompt or (stored.default if task.prompts is None else None)
    if default is not None and default not in texts:
        what = f"the model has no prompt {default!r}"
        instead = f"default_prompt: {' or '.join(texts)}" if texts else "prompts, too: {query: 'query: '}"
        raise UserError(what, where=str(folder / LIBRARY), instead=instead)
    found = Prompts(texts, default)
    if found and not pools_prompt(folder):
        what = "the model leaves the prompt out of the mean (include_prompt), which is not supported"
        raise UserError(what, where=str(folder), instead="prompts: {}, or another model")
    return found


def prompts_of_tokenizer(tokenizer: Any, task: "Task") -> Prompts:
    """Returns the prompts of an embedding task for the model that a tokenizer was loaded with."""
    folder = getattr(tokenizer, "name_or_path", "")
    return prompts_of(Path(folder), task) if folder else Prompts(task.prompts or {}, task.default_prompt)


def write_prompts(folder: Path, prompts: Prompts) -> None:
    """Writes the prompts of a checkpoint or an IR folder of sentence-transformers; nothing if there are none.

    The library takes an empty `document` for a missing one, even if there is a `passage`: it is written, so that
    `encode_query` and `encode_document` give the embeddings that are measured.
    """
    if prompts:
        values = {
            "model_type": "SentenceTransformer",
            "prompts": {**prompts.texts, "query": prompts.query, "document": prompts.document},
            "default_prompt_name": prompts.default,
            "similarity_fn_name": "cosine",
        }
        (folder / LIBRARY).write_text(json.dumps(values, indent=2) + "\n")
