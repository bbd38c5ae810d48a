"""An exported IR folder as a function from texts to JSON values, of classifiers of single texts or embedding models."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

import pruneofa

InputType = Literal["query", "document"]


class Text(NamedTuple):
    """A text, and what it is to an embedding model; None: neither, so that it gets the model's default prompt."""

    text: str
    input_type: InputType | None = None


@dataclass(frozen=True)
class Predictor:
    """An opened model.

    Attributes:
        run: Function from texts to one value each: an embedding as a list of numbers; or the probability of each class.
        embeds: Whether it is an embedding model, which may distinguish queries from documents.
    """

    run: Callable[[list[Text]], list[Any]]
    embeds: bool


def predictor(folder: Path, max_tokens: int = 128) -> Predictor:
    """Opens an IR folder, with the sparse kernels if it needs them.

    Args:
        folder: Folder of an exported variant.
        max_tokens: Tokens after which a classifier's text is truncated; an embedding model has its own limit.

    Raises:
        UserError: The folder contains no IR, or one of another kind of task.
    """
    model = pruneofa.load(folder)
    if hasattr(model, "encode"):  # a SentenceTransformer
        return Predictor(lambda texts: _embeddings(model, texts), embeds=True)

    from transformers import AutoTokenizer

    tokenizer, config = AutoTokenizer.from_pretrained(folder), model.config
    if config.problem_type not in ("single_label_classification", "multi_label_classification"):
        what = "this service answers for classifiers and embedding models"
        raise pruneofa.UserError(what, where=str(folder / "config.json"))
    names = [config.id2label[i] for i in range(len(config.id2label))]

    def classify(texts: list[Text]) -> list[dict[str, float]]:
        encoded = tokenizer(
            [each.text for each in texts], truncation=True, max_length=max_tokens, padding=True, return_tensors="np"
        )
        logits = np.asarray(model(**encoded).logits, dtype=np.float64)
        if config.problem_type == "multi_label_classification":
            chances = 1 / (1 + np.exp(-logits))
        else:
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            chances = powers / powers.sum(axis=1, keepdims=True)
        return [dict(zip(names, row.tolist(), strict=True)) for row in chances]

    return Predictor(classify, embeds=False)


def _embeddings(model: Any, texts: list[Text]) -> list[list[float]]:
    """Embeds a batch, each text with the prompt of its type; models without prompts treat all alike."""
    encoders = {None: model.encode, "query": model.encode_query, "document": model.encode_document}
    found: dict[int, list[float]] = {}
    for input_type, encode in encoders.items():
        if rows := [i for i, each in enumerate(texts) if each.input_type == input_type]:
            vectors = encode([texts[i].text for i in rows], batch_size=len(rows), show_progress_bar=False)
            found |= zip(rows, vectors.tolist(), strict=True)
    return [found[i] for i in range(len(texts))]
