"""BM25: ranking of documents by the words that they share with a query. Loads no torch."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"\w+")
_SATURATION, _LENGTH = 1.2, 0.75  # k1 and b, Lucene's defaults


class BM25:
    """Index of documents. A document's score is the sum over the query's words of

    log(1 + (N - n + 0.5) / (n + 0.5)) * f * (k1 + 1) / (f + k1 * (1 - b + b * length / mean length)),

    for N documents, of which n have the word, f times in this one. Source: Robertson and Zaragoza, The Probabilistic
    Relevance Framework, 2009, section 3; the logarithm is Lucene's, which is never negative. Words are
    lower-cased; there is no stemming and no list of stop words.

    Args:
        documents: The texts.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        counts = [Counter(_words(text)) for text in documents]
        lengths = np.array([sum(found.values()) for found in counts], dtype=np.float64)
        self._norm = _SATURATION * (1 - _LENGTH + _LENGTH * lengths / max(1e-9, lengths.mean()))
        places: dict[str, list[tuple[int, int]]] = {}
        for number, found in enumerate(counts):
            for word, count in found.items():
                places.setdefault(word, []).append((number, count))
        self._places = {word: np.array(found, dtype=np.int64).T for word, found in places.items()}

    def scores(self, query: str) -> np.ndarray:
        """Returns the score of every document, [documents]; a word that the query repeats counts repeatedly."""
        found = np.zeros(len(self._norm))
        for word, repeats in Counter(_words(query)).items():
            if word in self._places:
                where, count = self._places[word]
                rarity = math.log(1 + (len(found) - len(where) + 0.5) / (len(where) + 0.5))
                found[where] += repeats * rarity * count * (_SATURATION + 1) / (count + self._norm[where])
        return found

    def best(self, query: str, count: int) -> list[int]:
        """Returns the numbers of the best documents that share a word with a query, the best first."""
        scores = self.scores(query)
        return [int(place) for place in np.argsort(-scores, kind="stable")[:count] if scores[place] > 0]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
