"""Choice of the encoder layers that a student keeps: those are removed first that the last hidden state needs least."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.data.batches import Batch
from toolkit.data.corpus.sequences import AnySequences, draw
from toolkit.models.depth import layer_stack, removable_layers
from toolkit.training.datasets import on_device, unmasked_batches
from toolkit.training.distillation import feature_distance
from toolkit.training.hardware import device

_TOKENS = 16_384  # calibration text: 128 sequences of 128 tokens, or more shorter ones


def choose_layers(
    model: Any,
    count: int,
    sequences: AnySequences,
    pad_id: int,
    log: Callable[[str], None] = lambda _: None,
) -> tuple[int, ...]:
    """Returns the numbers of the layers to keep, from 0: all but the first ones of `removal_order`.

    Args:
        model: A model with a head; it is set to eval mode and moved to the GPU if there is one.
        count: Number of layers to keep, at least 1.
        sequences: The pre-training text, of which some sequences are the calibration text, always the same ones.
        pad_id: The tokenizer's padding id.
        log: Receives a message for each layer that is removed.
    """
    texts = draw(sequences, max(1, _TOKENS // int(sequences.lengths.max())), seed=0)
    removed = removal_order(model, count, unmasked_batches(texts, pad_id), log)
    parent, name = layer_stack(model)
    return tuple(number for number in range(len(getattr(parent, name))) if number not in removed)


@torch.no_grad()
def removal_order(
    model: Any, count: int, texts: Sequence[Batch], log: Callable[[str], None] = lambda _: None
) -> list[int]:
    """Returns the numbers of all layers but `count`, from 0, in the order of a greedy search.

    In each round that layer is removed without which the last hidden state is closest to the complete model's
    (SquareHead's distance, mean over the calibration sequences); of equal ones the first. No weight is changed.

    Args:
        model: A model with a head; it is set to eval mode and moved to the GPU if there is one.
        count: Number of layers to keep, at least 1.
        texts: The calibration text: model inputs, each with its `attention_mask`.
        log: Receives a message for each layer that is removed.
    """
    model.eval().to(device())
    parent, name = layer_stack(model)
    stack = getattr(parent, name)
    batches = on_device(texts)
    examples = sum(len(batch["input_ids"]) for batch in batches)
    complete = [_last_states(model, batch) for batch in batches]
    kept, removed, config = list(range(len(stack))), list[int](), model.config.to_dict()
    try:
        while len(kept) > count:
            distances = {}
            for number in removable_layers(config, kept):
                setattr(parent, name, type(stack)([stack[other] for other in kept if other != number]))
                found = (
                    feature_distance("SquareHead", _last_states(model, batch), states, batch).sum()
                    for batch, states in zip(batches, complete, strict=True)
                )
                distances[number] = float(sum(found)) / examples
            least = min(distances, key=lambda number: distances[number])
            kept.remove(least)
            removed.append(least)
            log(f"layer {least} removed: the last hidden state changes by {distances[least]:.3f} of its square")
    finally:
        setattr(parent, name, stack)
    return removed


def _last_states(model: Any, batch: Batch) -> Tensor:
    """Returns the encoder's output [n, length, h]."""
    states: Tensor = model.base_model(**batch)[0]
    return states.float()
