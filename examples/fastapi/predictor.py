"""An exported IR folder as a function from texts to JSON values, of classifiers of single texts or embedding models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import pruneofa

Predict = Callable[[list[str]], list[Any]]


def predictor(folder: Path, max_tokens: int = 128) -> Predict:
    """Opens an IR folder, with the sparse kernels if it needs them.

    Args:
        folder: Folder of an exported variant.
        max_tokens: Tokens after which a classifier's text is truncated; an embedding model has its own limit.

    Returns:
        Function from texts to one value each: an embedding as a list of numbers; or the probability of each class.

    Raises:
        UserError: The folder contains no IR, or one of another kind of task.
    """
    model = pruneofa.load(folder)
    if hasattr(model, "encode"):  # a SentenceTransformer
        return lambda texts: model.encode(texts, batch_size=len(texts), show_progress_bar=False).tolist()

    from transformers import AutoTokenizer

    tokenizer, config = AutoTokenizer.from_pretrained(folder), model.config
    if config.problem_type not in ("single_label_classification", "multi_label_classification"):
        what = "this service answers for classifiers and embedding models"
        raise pruneofa.UserError(what, where=str(folder / "config.json"))
    names = [config.id2label[i] for i in range(len(config.id2label))]

    def classify(texts: list[str]) -> list[dict[str, float]]:
        encoded = tokenizer(texts, truncation=True, max_length=max_tokens, padding=True, return_tensors="np")
        logits = np.asarray(model(**encoded).logits, dtype=np.float64)
        if config.problem_type == "multi_label_classification":
            chances = 1 / (1 + np.exp(-logits))
        else:
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            chances = powers / powers.sum(axis=1, keepdims=True)
        return [dict(zip(names, row.tolist(), strict=True)) for row in chances]

    return classify
