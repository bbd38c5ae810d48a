"""What a torch model answers and scores: on a task's splits, and on held-out pre-training text."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from toolkit.data.batches import Batch, model_inputs, pad, pad_masked
from toolkit.data.corpus import Sequences
from toolkit.data.masking import mask_tokens
from toolkit.data.metrics import in_order
from toolkit.data.segment_pairs import PairSequences
from toolkit.data.tasks import Split, TaskData
from toolkit.models.task_heads import task_logits
from toolkit.training.datasets import TrainingData
from toolkit.training.distillation import LossTerms, MlmLoss
from toolkit.training.hardware import device


@torch.inference_mode()
def iter_logits(
    model: Any, examples: Split, pad_id: int, batch_size: int, first: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batch after batch, those of like length together: numbers of the examples [b], and their logits, padded.

    Args:
        model: Knows the task; is put into eval mode and on the GPU where there is one.
        examples: What it is asked.
        pad_id: Of the tokenizer.
        batch_size: Examples in a batch.
        first: Batches that are left out at the beginning.
    """
    model.eval().to(device())
    order = np.argsort(examples.lengths, kind="stable")
    for start in range(first * batch_size, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = pad([examples[int(i)] for i in chosen], pad_id)
        inputs = model_inputs({name: tensor.to(device()) for name, tensor in batch.items()})
        yield chosen, task_logits(examples.kind, model, inputs).float().cpu().numpy()


def predict(model: Any, examples: Split, pad_id: int, batch_size: int = 32) -> Sequence[np.ndarray]:
    """Logits of every example, in the order of the examples, whatever the batch size.

    Returns:
        [n, C] of a classifier or regressor; [2, length] for each window of question answering.
    """
    order: list[int] = []
    logits: list[np.ndarray] = []
    for chosen, found in iter_logits(model, examples, pad_id, batch_size):
        order += chosen.tolist()
        logits += list(found)
    return in_order(logits, order, examples.lengths, examples.per_token)


@torch.inference_mode()
def mlm_metrics(
    model: Any, loss: MlmLoss, sequences: Sequences | PairSequences, tokenizer: Any, probability: float
) -> dict[str, float]:
    """Of held-out sequences, always the same ones, masked in the same way.

    Returns:
        `mlm_loss`, the label loss per masked token; of pairs also `next_sentence_accuracy`. What nothing was
        measured of is missing: no loss where no token can be guessed, since the vocabulary knows none of them.
    """
    model.eval().to(device())
    total = count = right = seen = 0.0
    for batch in _held_out(sequences, tokenizer, probability):
        words, following = loss.logits(model, batch)
        targets = batch["labels"][batch["labels"] != -100]
        total += float(torch.nn.functional.cross_entropy(words.float(), targets, reduction="sum"))
        count += len(targets)
        if following is not None:
            right += float((following.argmax(dim=-1) == batch["next_sentence_label"]).sum())
            seen += len(following)
    return ({"mlm_loss": total / count} if count else {}) | ({"next_sentence_accuracy": right / seen} if seen else {})


@torch.inference_mode()
def layers_metrics(
    model: Any,
    loss: Callable[[Any, Batch], LossTerms],
    sequences: Sequences | PairSequences,
    tokenizer: Any,
    probability: float,
) -> dict[str, float]:
    """`layers_loss`: distance from the teacher's hidden features per held-out sequence, the same ones always."""
    model.eval().to(device())
    total = seen = 0.0
    for batch in _held_out(sequences, tokenizer, probability):
        terms = loss(model, batch | {"items": 1.0, "examples": 1.0})
        assert terms.kd is not None
        total, seen = total + float(terms.kd), seen + len(batch["input_ids"])
    return {"layers_loss": total / seen}


def _held_out(sequences: Sequences | PairSequences, tokenizer: Any, probability: float) -> Iterator[Batch]:
    """At most 512 masked sequences, in batches."""
    count = min(512, len(sequences))
    for first in range(0, count, 32):
        items = []
        for index in range(first, min(first + 32, count)):
            example, rng = sequences.example(index), np.random.default_rng((0, index))
            masked = mask_tokens(example["input_ids"], rng, tokenizer, probability, specials=sequences.specials)
            items.append(example | masked)
        yield {k: v.to(device()) for k, v in pad_masked(items, tokenizer.pad_token_id).items()}


def task_metrics(model: Any, task: TaskData, tokenizer: Any, data: TrainingData | None = None) -> dict[str, Any]:
    """The scores on the whole dev split, and how many examples are behind them; which rows of the files are not."""
    return {
        "examples_seen": len(data.stream) if data else 0,
        "train_n": len(task.train.truth),
        "dev_n": task.dev_n,
        "counts": {m.name: m.n for m in task.measures},
        "rows_left_out": list(task.left_out),
        "dev": task.scores(predict(model, task.dev, tokenizer.pad_token_id)),
    }
