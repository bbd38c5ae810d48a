"""Segment pairs for next-sentence prediction: spans over a tokenised corpus, five integers per pair."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.recipe import Corpus

SPECIALS = 3  # [CLS] A [SEP] B [SEP]

# A sentence ends at . ! or ? before a capital letter or a digit, but not after an initial or a common title. Nine of
# ten ends agree with BlingFire, which takes four times as long; Punkt and pysbd take 15 and 300 times as long.
# Segments are many sentences long, so an occasional wrong end only shifts the boundary of a segment.
_SENTENCE_END = re.compile(r"(?:[!?]|(?<![A-Z])(?<!\b(?:Mr|Dr|St|vs))(?<!\bMrs)\.)[\"')\]]*(?=\s+[\"'(\[]*[A-Z0-9])")


@dataclass(frozen=True)
class PairSequences:
    """Memory-mapped pairs of different lengths. An example: input_ids, token_type_ids [length], next_sentence_label.

    Attributes:
        ids: Token ids of all sentences of all documents, concatenated.
        spans: Start and end (exclusive) of A and of B, and 1 where B is from another document, [n, 5] int64.
        cls: Id of [CLS].
        sep: Id of [SEP].
    """

    ids: np.ndarray
    spans: np.ndarray
    cls: int
    sep: int
    specials = SPECIALS

    def __len__(self) -> int:
        return len(self.spans)

    def example(self, index: int) -> dict[str, np.ndarray]:
        """Returns the model inputs of a pair and its label, before masking."""
        a0, a1, b0, b1, random = self.spans[index]
        cls, sep = np.array([self.cls]), np.array([self.sep])
        parts = [cls, self.ids[a0:a1], sep, self.ids[b0:b1], sep]
        second = np.arange(a1 - a0 + b1 - b0 + SPECIALS) >= a1 - a0 + 2
        return {
            "input_ids": np.concatenate(parts).astype(np.int64),
            "token_type_ids": second.astype(np.int64),
            "next_sentence_label": np.asarray(random),
        }

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each pair, [n] int64."""
        a0, a1, b0, b1, _ = self.spans.T
        lengths: np.ndarray = a1 - a0 + b1 - b0 + SPECIALS
        return lengths

    @property
    def tokens(self) -> int:
        """Number of tokens of all pairs."""
        return int(self.lengths.sum())


def sentences(paragraph: str) -> list[str]:
    """Splits a paragraph into sentences; only the white space between them is dropped."""
    cuts = [0, *(match.end() for match in _SENTENCE_END.finditer(paragraph)), len(paragraph)]
    return [text for start, end in itertools.pairwise(cuts) if (text := paragraph[start:end].strip())]


def write_pairs(path: Path, sentence_ends: np.ndarray, document_ends: np.ndarray, section: Corpus, seed: int) -> int:
    """Writes the pairs of one split, document by document; returns their number.

    Args:
        path: File to write: int64 [n, 5], as `PairSequences.spans`.
        sentence_ends: End of each sentence, exclusive, counted in tokens, [sentences].
        document_ends: End of each document, exclusive, counted in sentences, [documents].
        section: The corpus section: `pairs`, `max_seq_length` and `limit` are read.
        seed: Seed of all random choices.
    """
    written = 0
    with path.open("wb") as stream:
        for pair in itertools.islice(pairs_of(sentence_ends, document_ends, section, seed), section.limit):
            stream.write(np.array(pair, dtype=np.int64).tobytes())
            written += 1
    return written


def pairs_of(
    sentence_ends: np.ndarray, document_ends: np.ndarray, section: Corpus, seed: int
) -> Iterator[tuple[int, ...]]:
    """Yields all pairs of one split, as rows of `PairSequences.spans`; the arguments are those of `write_pairs`."""
    rng = np.random.default_rng(seed)
    for document in rng.permutation(len(document_ends)) if len(document_ends) > 1 else ():
        yield from _pairs_of(int(document), sentence_ends, document_ends, section, rng)


def _pairs_of(
    document: int, ends: np.ndarray, documents: np.ndarray, section: Corpus, rng: np.random.Generator
) -> Iterator[tuple[int, ...]]:
    """Yields the pairs of a document as BERT does: the sentences that fill a sequence are split into A and B. Where B
    is from another document, the sentences after A are not lost but begin the next pair.
    """
    assert section.pairs is not None
    most = section.max_seq_length - SPECIALS
    first, stop = _range(documents, document)

    def token(sentence: int) -> int:
        return int(ends[sentence - 1]) if sentence else 0

    while first < stop:
        short = rng.random() < section.pairs.short_sequence_probability
        target = int(rng.integers(2, most + 1)) if short else most
        last = int(np.searchsorted(ends[first:stop], token(first) + target)) + first + 1  # sentences first..last-1
        last = min(last, stop)
        cut = first + 1 if last - first < 2 else int(rng.integers(first + 1, last))
        a = (token(first), token(cut))
        random = last - first == 1 or rng.random() < section.pairs.random_next_probability
        if random:
            b = _random_segment(document, target - (a[1] - a[0]), ends, documents, rng)
            first = cut
        else:
            b = (token(cut), token(last))
            first = last
        a, b = _trimmed(a, b, most, rng)
        if a[1] > a[0] and b[1] > b[0]:
            yield (*a, *b, int(random))


def _range(ends: np.ndarray, index: int) -> tuple[int, int]:
    return (int(ends[index - 1]) if index else 0), int(ends[index])


def _random_segment(
    document: int, wanted: int, ends: np.ndarray, documents: np.ndarray, rng: np.random.Generator
) -> tuple[int, int]:
    """Token span of consecutive sentences of a random other document, from a random sentence on."""
    other = int(rng.integers(len(documents) - 1))
    other += other >= document
    low, high = _range(documents, other)
    start = int(rng.integers(low, high))
    begin = int(ends[start - 1]) if start else 0
    stop = min(int(np.searchsorted(ends[start:high], begin + max(wanted, 1))) + start, high - 1)
    return begin, int(ends[stop])


def _trimmed(
    a: tuple[int, int], b: tuple[int, int], most: int, rng: np.random.Generator
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Trims both segments to `most` tokens together: each token from the longer one, at a random end."""
    lengths = [a[1] - a[0], b[1] - b[0]]
    excess = sum(lengths) - most
    if excess <= 0:
        return a, b
    longer = int(lengths[1] > lengths[0])
    alone = min(excess, abs(lengths[0] - lengths[1]))
    rest = excess - alone
    cuts = [rest // 2, rest // 2]
    cuts[1] += rest % 2  # at equal length B is trimmed first
    cuts[longer] += alone
    fronts = [int(rng.binomial(cut, 0.5)) for cut in cuts]
    ends = [(x + f, y - (c - f)) for (x, y), c, f in zip((a, b), cuts, fronts, strict=True)]
    return ends[0], ends[1]
