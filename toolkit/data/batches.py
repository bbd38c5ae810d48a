"""The one place that knows a batch: its keys, its padding, and which of its tensors a model takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The names under which examples carry what a model should answer: never a model's input.
LABEL_KEYS = ("labels", "start_positions", "end_positions", "next_sentence_label")
KD_POSITIONS = "kd_positions"  # the name under which a batch says where student and teacher are compared, bool
TEACHER_LOGITS = "teacher_logits"  # the name under which a batch carries what the teacher answers
Batch = dict[str, Any]
# What a batch tells the losses: where the teacher is compared, and what sums are divided by.
_LOSS_KEYS = (KD_POSITIONS, "items", "kd_items", "examples")


def model_inputs(batch: Batch) -> Batch:
    """The tensors that go into a model's forward pass: no labels, no teacher's logits, no counts."""
    return {k: v for k, v in batch.items() if k not in (*LABEL_KEYS, TEACHER_LOGITS, *_LOSS_KEYS)}


_FILLERS = {"attention_mask": 0, "labels": -100, "token_type_ids": 0, KD_POSITIONS: False}


def pad_masked(items: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """One batch of masked sequences, int64: input_ids, labels, attention_mask (and token_type_ids), [n, longest].

    So are positions that are drawn by chance, bool.

    `next_sentence_label` of pairs is [n].
    """
    lengths = np.array([len(item["input_ids"]) for item in items])
    batch = {"attention_mask": (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)}
    for name in items[0]:
        if name == "next_sentence_label":
            batch[name] = np.array([item[name] for item in items])
        elif name in ("input_ids", "labels", "token_type_ids", KD_POSITIONS):
            kind = bool if name == KD_POSITIONS else np.int64
            batch[name] = np.full((len(items), lengths.max()), _FILLERS.get(name, pad_id), dtype=kind)
            for row, item in zip(batch[name], items, strict=True):
                row[: len(item[name])] = item[name]
    return {name: torch.from_numpy(array) for name, array in batch.items()}


_PAD_VALUES = {"attention_mask": 0, "token_type_ids": 0}


def pad(features: Sequence[Mapping[str, Any]], pad_id: int, to: int | None = None) -> dict[str, Tensor]:
    """One batch, int64: inputs [n, length] padded on the right to the longest example (or to `to`), labels [n]."""
    length = max(len(f["input_ids"]) for f in features)
    if to is not None:
        assert length <= to, f"an example of {length} tokens does not fit into {to}"
        length = to
    batch = {}
    for name in features[0]:
        if name in LABEL_KEYS:
            batch[name] = torch.tensor([f[name] for f in features])
            continue
        padded = torch.full((len(features), length), _PAD_VALUES.get(name, pad_id))
        for row, feature in zip(padded, features, strict=True):
            row[: len(feature[name])] = torch.as_tensor(feature[name])
        batch[name] = padded
    return batch
