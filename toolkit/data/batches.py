"""Layout of a batch: its keys, its padding, and which of its tensors are model inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Keys of the labels in an example; they are never model inputs.
LABEL_KEYS = ("labels", "tags", "scores", "start_positions", "end_positions", "next_sentence_label")
KD_POSITIONS = "kd_positions"  # key of the positions at which student and teacher are compared, bool
TEACHER_LOGITS = "teacher_logits"  # key of the cached logits of the teacher
TOGETHER = "together"  # key of the number of neighbouring examples that belong together, such as the texts of a pair
Batch = dict[str, Any]
# Keys that only the losses read: where the teacher is compared, and the divisors of the sums.
_LOSS_KEYS = (KD_POSITIONS, TOGETHER, "items", "kd_items", "examples")


def model_inputs(batch: Batch) -> Batch:
    """Returns the tensors that go into a model's forward pass: no labels, teacher logits or counts."""
    return {k: v for k, v in batch.items() if k not in (*LABEL_KEYS, TEACHER_LOGITS, *_LOSS_KEYS)}


_FILLERS = {"attention_mask": 0, "labels": -100, "token_type_ids": 0, KD_POSITIONS: False}


def pad_masked(items: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Collates masked sequences into a batch, padded on the right to the longest one.

    Args:
        items: Examples, each with `input_ids` and `labels`.
        pad_id: The tokenizer's padding id.

    Returns:
        `input_ids`, `labels`, `attention_mask` (and `token_type_ids`), [n, longest] int64; sampled `kd_positions`,
        [n, longest] bool; for pairs `next_sentence_label`, [n] int64.
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


_PAD_VALUES = {"attention_mask": 0, "token_type_ids": 0, "tags": -100}


def pad(features: Sequence[Mapping[str, Any]], pad_id: int, to: int | None = None) -> dict[str, Tensor]:
    """Collates examples into a batch: inputs and tags [n, length] int64, padded on the right, and labels [n].

    Args:
        features: Examples: name of an input -> ids, name of a label -> number.
        pad_id: The tokenizer's padding id.
        to: Length of the padded inputs; None: that of the longest example.
    """
    length = max(len(f["input_ids"]) for f in features)
    if to is not None:
        assert length <= to, f"an example of {length} tokens is longer than {to}"
        length = to
    batch = {}
    for name in features[0]:
        if name in LABEL_KEYS and name not in _PAD_VALUES:
            batch[name] = torch.tensor([f[name] for f in features])
            continue
        padded = torch.full((len(features), length), _PAD_VALUES.get(name, pad_id))
        for row, feature in zip(padded, features, strict=True):
            row[: len(feature[name])] = torch.as_tensor(feature[name])
        batch[name] = padded
    return batch
