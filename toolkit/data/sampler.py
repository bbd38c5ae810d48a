"""Deterministic order of training examples: a pure function of (seed, position), so that resuming is exact."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from torch.utils.data import Dataset

# Batches whose examples are sorted by length, so that each batch has examples of similar length. Fewer where they would
# be more than a quarter of the examples: a window of two passes has the same example twice, in the same batch.
_WINDOW = 16


class LengthGroupedDataset(Dataset):
    """Map-style dataset as long as the training run; item k is the k-th training example.

    Every epoch is a new permutation. Within windows of a few batches, examples are grouped by length (little padding)
    and the batches are shuffled. A window ends with the steps of an epoch, so that n epochs have every example n times.

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
        self._size = batch_size * max(1, min(_WINDOW, len(lengths) // (4 * batch_size)))  # examples of a window
        self._epoch_size = -(-len(lengths) // self._per_step) * self._per_step  # with those that fill the last step
        self._window = lru_cache(maxsize=2)(self._make_window)
        self._epoch = lru_cache(maxsize=2)(lambda e: np.random.default_rng((seed, 0, e)).permutation(len(lengths)))

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, k: int) -> dict[str, Any]:
        item = self._item(int(self.index(k)), np.random.default_rng((self._seed, 2, k)))
        return item | {"step": k // self._per_step}

    def index(self, k: int) -> int:
        """Returns the index of the k-th training example."""
        epoch, place = divmod(k, self._epoch_size)
        window, within = divmod(place, self._size)
        return int(self._window(epoch * -(-self._epoch_size // self._size) + window)[within])

    def step_indices(self, step: int) -> np.ndarray:
        """Returns the indices of all examples of an optimizer step, over which its losses are averaged."""
        first = step * self._per_step
        return np.array([self.index(k) for k in range(first, first + self._per_step)])

    def step_lengths(self, step: int) -> np.ndarray:
        """Returns the lengths of all examples of an optimizer step."""
        return self._lengths[self.step_indices(step)]

    def shard(self, rank: int, processes: int) -> "RankShard":
        """Returns the part of every batch that one of several processes trains on."""
        return RankShard(self, rank, processes)

    def _make_window(self, window: int) -> np.ndarray:
        n = len(self._lengths)
        epoch, number = divmod(window, -(-self._epoch_size // self._size))
        begin, end = number * self._size, min((number + 1) * self._size, self._epoch_size)
        positions = epoch * self._epoch_size + np.arange(begin, end)
        examples = np.concatenate(
            [self._epoch(int(e))[positions[positions // n == e] % n] for e in np.unique(positions // n)]
        )
        by_length = examples[np.argsort(self._lengths[examples], kind="stable")].reshape(-1, self._batch)
        order = np.random.default_rng((self._seed, 1, window)).permutation(len(by_length))
        return by_length[order].reshape(-1)


class MixedDataset(Dataset):
    """Map-style dataset of several sources: every batch is of one source, and item k is a group of its examples.

    The groups of a source have as many examples as hold about the tokens of one of the longest sequences, so that a
    step takes about the same time and has about the same influence for every source. Sources take turns such that
    their tokens have the given shares at every point of the run; a source that is shorter than its share is repeated,
    each time in a new order. Within a source, examples are grouped by length as in `LengthGroupedDataset`.

    Args:
        lengths: Number of tokens of each example of each source. Examples are numbered through over all sources.
        item: (index of an example, random generator for this item) -> example.
        shares: Share of the tokens of each source, [sources].
        longest: Number of tokens of the longest possible sequence.
        batch_size: Groups per forward pass.
        steps: Number of optimizer steps.
        accumulation: Forward passes per optimizer step.
        seed: Seed of the sampling order and of masking.
    """

    def __init__(
        self,
        lengths: Sequence[np.ndarray],
        item: Callable[[int, np.random.Generator], dict[str, Any]],
        *,
        shares: np.ndarray,
        longest: int,
        batch_size: int,
        steps: int,
        accumulation: int,
        seed: int,
    ) -> None:
        self._batch, self._accumulation, self._total = batch_size, accumulation, steps * accumulation * batch_size
        self._lengths, self._starts = np.concatenate(lengths), np.cumsum([0, *map(len, lengths)])
        means = np.array([np.mean(of_source) for of_source in lengths])
        self._groups = np.maximum(1, np.rint(longest / means)).astype(int)
        self._source, self._turn = turns(shares / (means * self._groups), steps * accumulation)
        self._streams = [
            LengthGroupedDataset(
                of_source,
                partial(_numbered_from, int(start), item),
                batch_size=batch_size * int(group),
                steps=int((self._source == number).sum()),
                accumulation=1,
                seed=seed + (number << 32),  # larger than any seed of a recipe
            )
            for number, (of_source, start, group) in enumerate(
                zip(lengths, self._starts[:-1], self._groups, strict=True)
            )
        ]

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, k: int) -> dict[str, Any]:
        batch, place = divmod(k, self._batch)
        source, turn = int(self._source[batch]), int(self._turn[batch])
        group = int(self._groups[source])
        first = (turn * self._batch + place) * group
        examples = [self._streams[source][number] for number in range(first, first + group)]
        return {"examples": examples, "step": batch // self._accumulation}

    def step_indices(self, step: int) -> np.ndarray:
        """Returns the indices of all examples of an optimizer step, over which its losses are averaged."""
        batches = range(step * self._accumulation, (step + 1) * self._accumulation)
        turns_taken = [(int(self._source[batch]), int(self._turn[batch])) for batch in batches]
        return np.concatenate([self._starts[s] + self._streams[s].step_indices(turn) for s, turn in turns_taken])

    def step_lengths(self, step: int) -> np.ndarray:
        """Returns the lengths of all examples of an optimizer step."""
        return self._lengths[self.step_indices(step)]

    def shard(self, rank: int, processes: int) -> "RankShard":
        """Returns the part of every batch that one of several processes trains on."""
        return RankShard(self, rank, processes)

    def passes(self) -> list[float]:
        """Returns how often the run passes through each source."""
        return [len(stream) / int(n) for stream, n in zip(self._streams, np.diff(self._starts), strict=True)]

    def tokens(self) -> list[int]:
        """Returns the number of tokens of each source in the run."""
        turns_taken = np.bincount(self._source, minlength=len(self._streams))
        return [
            int(sum(stream.step_lengths(turn).sum() for turn in range(int(count))))
            for stream, count in zip(self._streams, turns_taken, strict=True)
        ]


def _numbered_from(start: int, item: Any, index: int, rng: np.random.Generator) -> dict[str, Any]:
    found: dict[str, Any] = item(start + index, rng)
    return found


def turns(rates: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides batches among sources: at every point, each source has had its part of them, to less than a batch or so.

    Turn n of a source is at time (n + 1/2) / rate; batches are the turns of all sources in the order of time. Hence
    batch k does not depend on `count`.

    Args:
        rates: Relative number of batches of each source, [sources].
        count: Number of batches.

    Returns:
        Number of the source of each batch, and the number of earlier batches of that source, both [count].
    """
    parts = [np.arange(int(np.ceil(count * rate)) + 2) for rate in rates / rates.sum()]
    times = np.concatenate([(part + 0.5) / rate for part, rate in zip(parts, rates, strict=True)])
    order = np.argsort(times, kind="stable")[:count]
    sources = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return sources[order], np.concatenate(parts)[order]


class RankShard(Dataset):
    """Every n-th example: n processes split each batch, and each gets examples of all of its lengths."""

    def __init__(self, stream: "LengthGroupedDataset | MixedDataset", rank: int, processes: int) -> None:
        self._stream, self._rank, self._processes = stream, rank, processes

    def __len__(self) -> int:
        return len(self._stream) // self._processes

    def __getitem__(self, k: int) -> dict[str, Any]:
        return self._stream[k * self._processes + self._rank]
