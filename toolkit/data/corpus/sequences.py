"""Tokenised sequences in memory-mapped files: of one source, and of a mix of several."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from toolkit.data.corpus.segment_pairs import PairSequences

SPECIALS = 2  # [CLS] and [SEP]


@dataclass(frozen=True)
class Sequences:
    """Memory-mapped token sequences of different lengths. Item i: [length] int64, with [CLS] and [SEP].

    Attributes:
        ids: Token ids of all sequences, concatenated.
        ends: End of each sequence in `ids`, exclusive, [n].
        seconds: First token of each sequence with token type 1; its length if there is none, [n]. None: the examples
            have no `token_type_ids`.
        specials: Number of special tokens of each sequence, [n], or the same one for all.
    """

    ids: np.ndarray
    ends: np.ndarray
    seconds: np.ndarray | None = None
    specials: np.ndarray | int = SPECIALS

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(len(self))[index]
        start = self.ends[index - 1] if index else 0
        return self.ids[start : self.ends[index]].astype(np.int64)

    def example(self, index: int) -> dict[str, np.ndarray]:
        """Returns the model inputs of a sequence, before masking."""
        ids = self[index]
        if self.seconds is None:
            return {"input_ids": ids}
        return {"input_ids": ids, "token_type_ids": (np.arange(len(ids)) >= self.seconds[index]).astype(np.int64)}

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each sequence, [n] int64."""
        return np.diff(self.ends, prepend=0)

    @property
    def tokens(self) -> int:
        """Number of tokens of all sequences."""
        return int(self.ids.size)


@dataclass(frozen=True)
class MixedSequences:
    """Sequences of several sources, numbered through: first all of the first source, then all of the second.

    Attributes:
        parts: The sequences of each source.
        names: Name of each source, for messages and the manifest.
        shares: Share of the training tokens of each source, [sources], of sum 1.
        longest: Maximum number of tokens of a sequence.
    """

    parts: tuple[Sequences, ...]
    names: tuple[str, ...]
    shares: np.ndarray
    longest: int

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> np.ndarray:
        """Number of the first sequence of each source, and the number of all sequences, [sources + 1]."""
        return np.cumsum([0, *map(len, self.parts)])

    def example(self, index: int) -> dict[str, np.ndarray]:
        """Returns the model inputs of a sequence, before masking."""
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part].example(index - int(self.starts[part]))

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each sequence, [n] int64."""
        return np.concatenate([part.lengths for part in self.parts])

    @cached_property
    def specials(self) -> np.ndarray:
        """Number of special tokens of each sequence, [n]."""
        return np.concatenate([np.broadcast_to(part.specials, len(part)) for part in self.parts])

    @property
    def tokens(self) -> int:
        """Number of tokens of all sequences."""
        return sum(part.tokens for part in self.parts)


AnySequences = Sequences | PairSequences | MixedSequences


def epoch_items(sequences: AnySequences) -> int:
    """Returns the number of items of an epoch, where a batch has `batch_size` items.

    An item is a sequence; of a mix, it is a group of sequences with about as many tokens as the longest one, and an
    epoch has as many tokens as all sources together.
    """
    if isinstance(sequences, MixedSequences):
        return math.ceil(sequences.tokens / sequences.longest)
    return len(sequences)


def in_proportion(sequences: AnySequences, count: int) -> list[range]:
    """Returns at most `count` sequences, the first ones of each source, whose tokens have the shares of the sources.

    A mix gives fewer if a source is too short for its share. Each range is of one source.
    """
    if not isinstance(sequences, MixedSequences):
        return [range(min(count, len(sequences)))]
    sizes = np.array([len(part) for part in sequences.parts])
    rates = sequences.shares * sizes / [part.tokens for part in sequences.parts]  # sequences per token of the mix
    wanted = rates / rates.sum() * min(count, (sizes / rates).min() * rates.sum())
    return [
        range(int(start), int(start) + max(1, int(n + 1e-9)))
        for start, n in zip(sequences.starts[:-1], wanted, strict=True)
    ]


def draw(sequences: AnySequences, count: int, seed: int) -> list[dict[str, Any]]:
    """Draws at most `count` different examples at random, before masking, always the same ones for a seed.

    Those of a mix have the shares of its sources in tokens, source by source; examples of two sources can differ in
    their keys (`token_type_ids`), so a batch should not have examples of both.
    """
    rng, found = np.random.default_rng(seed), list[dict[str, Any]]()
    bounds = sequences.starts if isinstance(sequences, MixedSequences) else np.array([0, len(sequences)])
    for number, chosen in enumerate(in_proportion(sequences, count)):
        places = rng.choice(int(bounds[number + 1] - bounds[number]), size=len(chosen), replace=False)
        found += [sequences.example(int(bounds[number] + place)) for place in places]
    return found
