"""Choice of the encoder layers that a student keeps: those are removed first that the last hidden state needs least."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.data.batches import Batch, model_inputs, pad
from toolkit.data.corpus import Sequences
from toolkit.data.segment_pairs import PairSequences
from toolkit.models.architectures import architecture_of
from toolkit.training.distillation import feature_distance
from toolkit.training.hardware import device

_TOKENS = 16_384  # calibration text: 128 sequences of 128 tokens, or more shorter ones
_BATCH = 32


@torch.no_grad()
def choose_layers(
    model: Any,
    count: int,
    sequences: Sequences | PairSequences,
    pad_id: int,
    log: Callable[[str], None] = lambda _: None,
) -> tuple[int, ...]:
    """Returns the numbers of the layers to keep, from 0: a greedy search that removes one layer at a time.

    In each round that layer is removed without which the last hidden state is closest to the complete model's
    (SquareHead's distance, mean over the calibration sequences); of equal ones the first. No weight is changed.

    Args:
        model: A model with a head; it is set to eval mode and moved to the GPU if there is one.
        count: Number of layers to keep, at least 1.
        sequences: The pre-training text; sequences at equal distances are the calibration text.
        pad_id: The tokenizer's padding id.
        log: Receives a message for each layer that is removed.
    """
    model.eval().to(device())
    path, _, name = architecture_of(model.config.to_dict()).layer.removesuffix(".{}").rpartition(".")
    parent = model.base_model.get_submodule(path)
    stack = getattr(parent, name)
    batches = list(_calibration(sequences, pad_id))
    examples = sum(len(batch["input_ids"]) for batch in batches)
    complete = [_last_states(model, batch) for batch in batches]
    kept = list(range(len(stack)))
    try:
        while len(kept) > count:
            distances = {}
            for number in kept:
                setattr(parent, name, type(stack)([stack[other] for other in kept if other != number]))
                found = (
                    feature_distance("SquareHead", _last_states(model, batch), states, batch).sum()
                    for batch, states in zip(batches, complete, strict=True)
                )
                distances[number] = float(sum(found)) / examples
            least = min(kept, key=lambda number: distances[number])
            kept.remove(least)
            log(f"layer {least} removed: the last hidden state changes by {distances[least]:.3f} of its square")
    finally:
        setattr(parent, name, stack)
    return tuple(kept)


def _last_states(model: Any, batch: Batch) -> Tensor:
    """Returns the encoder's output [n, length, h]."""
    states: Tensor = model.base_model(**model_inputs(batch))[0]
    return states.float()


def _calibration(sequences: Sequences | PairSequences, pad_id: int) -> Iterator[Batch]:
    """Yields batches of unmasked sequences."""
    count = int(min(len(sequences), max(1, _TOKENS // max(1, sequences.lengths.max()))))
    chosen = np.linspace(0, len(sequences) - 1, count).astype(int)
    for first in range(0, count, _BATCH):
        items = [_inputs(sequences.example(int(index))) for index in chosen[first : first + _BATCH]]
        yield {name: values.to(device()) for name, values in pad(items, pad_id).items()}


def _inputs(example: dict[str, Any]) -> dict[str, Any]:
    """Returns the model inputs of a sequence, without the label of a pair."""
    kept = {name: example[name] for name in ("input_ids", "token_type_ids") if name in example}
    return kept | {"attention_mask": np.ones(len(example["input_ids"]), dtype=np.int64)}
