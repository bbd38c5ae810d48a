"""Inference and metrics of a torch model, on the splits of a task and on held-out pre-training text; similar texts."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.core.artifacts import Artifact
from toolkit.core.files import json_hash
from toolkit.data.batches import Batch, model_inputs, pad, pad_masked
from toolkit.data.corpus.sequences import AnySequences, in_proportion
from toolkit.data.kinds.embedding import Texts
from toolkit.data.masking import mask_tokens
from toolkit.data.metrics import in_order
from toolkit.data.tasks import Split, TaskData
from toolkit.models.load import load_task_model
from toolkit.models.task_heads import task_logits
from toolkit.training import distributed
from toolkit.training.datasets import TrainingData
from toolkit.training.distillation import LossTerms, MlmLoss
from toolkit.training.hardware import device

_TEXTS = 512  # texts that are compared with all others at once


def _to_device(model: Any) -> None:
    """Sets a model to eval mode and moves it to the GPU if there is one.

    Outside inference mode: parameters that are moved within it become inference tensors, which cannot be trained.
    """
    with torch.inference_mode(False):
        model.eval().to(device())


@torch.inference_mode()
def iter_logits(
    model: Any, examples: Split, pad_id: int, batch_size: int, first: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields for each batch the indices of its examples, [b], and their padded logits.

    Examples of similar length are batched together.

    Args:
        model: A model of the task; it is set to eval mode and moved to the GPU if there is one.
        examples: The split to run inference on.
        pad_id: The tokenizer's padding id.
        batch_size: Examples per batch.
        first: Number of batches to skip at the beginning.
    """
    _to_device(model)
    order = np.argsort(examples.lengths, kind="stable")
    for start in range(first * batch_size, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = pad([examples[int(i)] for i in chosen], pad_id)
        inputs = model_inputs({name: tensor.to(device()) for name, tensor in batch.items()})
        yield chosen, task_logits(examples.kind, model, inputs).float().cpu().numpy()


def predict(model: Any, examples: Split, pad_id: int, batch_size: int = 32) -> Sequence[np.ndarray]:
    """Computes the logits of every example, in the order of the examples, whatever the batch size.

    Returns:
        [n, C]; for kinds whose logits are per token, a list of [C, length], one per window.
    """
    order: list[int] = []
    logits: list[np.ndarray] = []
    for chosen, found in iter_logits(model, examples, pad_id, batch_size):
        order += chosen.tolist()
        logits += list(found)
    return in_order(logits, order, examples.lengths, examples.per_token)


@torch.inference_mode()
def mlm_metrics(
    model: Any, loss: MlmLoss, sequences: AnySequences, tokenizer: Any, probability: float
) -> dict[str, float]:
    """Computes metrics on held-out sequences: always the same ones, with the same masking.

    Returns:
        `mlm_loss`, the label loss per masked token; for pairs also `next_sentence_accuracy`. `mlm_loss` is absent if
        no token was masked, because the vocabulary contains none of them.
    """
    _to_device(model)
    total = count = correct = seen = 0.0
    for batch in _held_out(sequences, tokenizer, probability):
        logits, next_logits = loss.logits(model, batch)
        targets = batch["labels"][batch["labels"] != -100]
        total += float(torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum"))
        count += len(targets)
        if next_logits is not None:
            correct += float((next_logits.argmax(dim=-1) == batch["next_sentence_label"]).sum())
            seen += len(next_logits)
    return ({"mlm_loss": total / count} if count else {}) | ({"next_sentence_accuracy": correct / seen} if seen else {})


@torch.inference_mode()
def layers_metrics(
    model: Any,
    loss: Callable[[Any, Batch], LossTerms],
    sequences: AnySequences,
    tokenizer: Any,
    probability: float,
) -> dict[str, float]:
    """Computes `layers_loss`: distance from the teacher's hidden features per sequence, always on the same ones."""
    _to_device(model)
    total = seen = 0.0
    for batch in _held_out(sequences, tokenizer, probability):
        terms = loss(model, batch | {"items": 1.0, "examples": 1.0})
        assert terms.kd is not None
        total, seen = total + float(terms.kd), seen + len(batch["input_ids"])
    return {"layers_loss": total / seen}


def _held_out(sequences: AnySequences, tokenizer: Any, probability: float) -> Iterator[Batch]:
    """Yields at most 512 masked sequences, in batches of one source; the sources of a mix have their shares."""
    specials = np.broadcast_to(sequences.specials, len(sequences))
    for part in in_proportion(sequences, 512):
        for first in range(part.start, part.stop, 32):
            items = []
            for index in range(first, min(first + 32, part.stop)):
                example, rng = sequences.example(index), np.random.default_rng((0, index))
                special = int(specials[index])
                items.append(example | mask_tokens(example["input_ids"], rng, tokenizer, probability, specials=special))
            yield {k: v.to(device()) for k, v in pad_masked(items, tokenizer.pad_token_id).items()}


def task_metrics(model: Any, task: TaskData, tokenizer: Any, data: TrainingData | None = None) -> dict[str, Any]:
    """Returns the scores on the complete dev split, the numbers of examples, and which rows were left out."""
    return {
        "examples_seen": len(data.stream) if data else 0,
        "train_n": len(task.train.truth) or len(task.train),
        "dev_n": task.dev_n,
        "counts": {m.name: m.n for m in task.measures},
        "rows_left_out": list(task.left_out),
        "dev": task.scores(predict(model, task.dev, tokenizer.pad_token_id)),
    }


@dataclass(frozen=True)
class SimilarTexts:
    """Finds similar texts by the cosines of centred embeddings: means of the last hidden states of a model's encoder.

    Attributes:
        model: The model's checkpoint; one of a sentence-transformers model may state another pooling.
        tokenizer: Its tokenizer.
        longest: Number of tokens that longer texts are truncated to.
        cache: Folder of the results. Another number of threads may choose otherwise between equally similar texts, so
            a resumed run and other processes take the first result.
    """

    model: Artifact
    tokenizer: Any
    longest: int
    cache: Path

    def __call__(self, texts: Sequence[str], count: int) -> np.ndarray:
        """Returns the numbers of the most similar texts of each text, [n, count] int32, the most similar one first.

        A text is among its own.
        """
        key = {"model": self.model.sha256, "texts": list(texts), "count": count, "longest": self.longest}
        file = self.cache / f"similar-{json_hash(key)[:16]}.npy"
        with distributed.main_process_first():
            if not file.is_file():
                self.cache.mkdir(parents=True, exist_ok=True)
                partial = file.with_name(f".{file.stem}-{os.getpid()}.npy")
                np.save(partial, _nearest(self._embeddings(texts), count))
                partial.replace(file)
        found = np.load(file)
        distributed.broadcast([torch.from_numpy(found)])  # other machines have caches of their own
        return found

    def _embeddings(self, texts: Sequence[str]) -> np.ndarray:
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.longest)
        inputs = {name: encoded[name] for name in self.tokenizer.model_input_names}
        model = load_task_model(self.model.path, "embedding", (), fitted=False)
        split = Texts([(text,) for text in texts], inputs, None, 1)
        return np.asarray(predict(model, split, self.tokenizer.pad_token_id))


def _nearest(embeddings: np.ndarray, count: int) -> np.ndarray:
    centred = embeddings - embeddings.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True).clip(min=1e-9)
    parts = []
    for first in range(0, len(centred), _TEXTS):
        cosines = centred[first : first + _TEXTS] @ centred.T
        chosen = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(cosines, chosen, axis=1), axis=1, kind="stable")
        parts.append(np.take_along_axis(chosen, order, axis=1).astype(np.int32))
    return np.concatenate(parts)
