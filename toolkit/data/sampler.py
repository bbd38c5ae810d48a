"""Deterministic order of training examples: a pure function of (seed, position), so that resuming is exact."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import Dataset

_WINDOW = 16  # batches; their examples are sorted by length, so that each batch has examples of similar length


class LengthGroupedDataset(Dataset):
    """Map-style dataset as long as the training run; item k is the k-th training example.

    Every epoch is a new permutation. Within windows of a few batches, examples are grouped by length (little padding)
    and the batches are shuffled.

    Args:
        lengths: Number of tokens of each example, [n].
        item: (index of an example, random generator for this item) -> input of the collator.
        batch_size: Examples per forward pass.
        steps: Number of optimizer steps.
        accumulation: Forward passes per optimizer step.
        seed: Seed of the sampling order and of masking.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        item: Callable[[int, np.random.Generator], dict[str, Any]],
        *,
        batch_size: int,
        steps: int,
        accumulation: int,
        seed: int,
    ) -> None:
        self._lengths, self._item, self._seed = lengths, item, seed
        self._batch, self._per_step = batch_size, batch_size * accumulation
        self._total = steps * self._per_step
        self._window = lru_cache(maxsize=2)(self._make_window)
        self._epoch = lru_cache(maxsize=2)(lambda e: np.random.default_rng((seed, 0, e)).permutation(len(lengths)))

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, k: int) -> dict[str, Any]:
        item = self._item(int(self.index(k)), np.random.default_rng((self._seed, 2, k)))
        return item | {"step": k // self._per_step}

    def index(self, k: int) -> int:
        """Returns the index of the k-th training example."""
        size = _WINDOW * self._batch
        return int(self._window(k // size)[k % size])

    def step_lengths(self, step: int) -> np.ndarray:
        """Returns the lengths of all examples of an optimizer step, over which its losses are averaged."""
        first = step * self._per_step
        return self._lengths[[self.index(k) for k in range(first, first + self._per_step)]]

    def shard(self, rank: int, processes: int) -> "RankShard":
        """Returns the part of every batch that one of several processes trains on."""
        return RankShard(self, rank, processes)

    def _make_window(self, window: int) -> np.ndarray:
        n = len(self._lengths)
        positions = np.arange(window * _WINDOW * self._batch, (window + 1) * _WINDOW * self._batch)
        examples = np.concatenate(
            [self._epoch(int(e))[positions[positions // n == e] % n] for e in np.unique(positions // n)]
        )
        by_length = examples[np.argsort(self._lengths[examples], kind="stable")].reshape(_WINDOW, self._batch)
        order = np.random.default_rng((self._seed, 1, window)).permutation(_WINDOW)
        return by_length[order].reshape(-1)


class RankShard(Dataset):
    """Every n-th example: n processes split each batch, and each gets examples of all of its lengths."""

    def __init__(self, stream: LengthGroupedDataset, rank: int, processes: int) -> None:
        self._stream, self._rank, self._processes = stream, rank, processes

    def __len__(self) -> int:
        return len(self._stream) // self._processes

    def __getitem__(self, k: int) -> dict[str, Any]:
        return self._stream[k * self._processes + self._rank]
