"""Metrics in [0, 1] (correlations in [-1, 1]) of predictions against the correct answers."""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Answers = Sequence[Any] | np.ndarray

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def in_order(logits: Sequence[np.ndarray], order: Answers, lengths: Answers, per_token: bool) -> Sequence[np.ndarray]:
    """Logits of examples that were answered in another order, without their padding.

    Args:
        logits: One array per answer: [C] of a classifier, [2, padded length] of starts and ends.
        order: Number of the example that each answer is to.
        lengths: Tokens of each example.

    Returns:
        By example: one array [n, C]; or a list of [2, length].
    """
    found: list[Any] = [None] * len(order)
    for row, index in zip(logits, order, strict=True):
        found[index] = row[:, : lengths[index]] if per_token else row
    return found if per_token else np.stack(found)


def f1(truth: Any, predicted: Any, average: str = "binary") -> float:
    """F1 of class 1, as in GLUE."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predicted, average=average, zero_division=0.0))


def mean_f1(truth: Any, predicted: Any) -> float:
    """Mean over the classes of their F1."""
    return f1(truth, predicted, average="macro")


def accuracy(truth: Any, predicted: Any) -> float:
    """Fraction of correct predictions."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(truth, predicted))


def matthews(truth: Any, predicted: Any) -> float:
    """Matthews correlation coefficient."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(truth, predicted))


def pearson(truth: Any, predicted: Any) -> float:
    """0 where one side does not vary: there is no correlation then."""
    if np.std(truth) == 0 or np.std(predicted) == 0:
        return 0.0
    return float(np.corrcoef(truth, predicted)[0, 1])


def spearman(truth: Any, predicted: Any) -> float:
    """Pearson correlation of the ranks."""
    from scipy.stats import rankdata

    return pearson(rankdata(truth), rankdata(predicted))


def plain_answer(text: str) -> str:
    """An answer as SQuAD v1.1 compares it: lower case, no punctuation, no English articles, single spaces.

    Source: the definition that comes with the data set (Rajpurkar et al., 2016, section 6.1, and its script).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_matches(answers: Sequence[str], predicted: str) -> float:
    """1 when the prediction is one of the right answers, up to `plain_answer`; nothing predicted is never right."""
    return float(bool(predicted) and any(plain_answer(predicted) == plain_answer(a) for a in answers))


def answer_overlap(answers: Sequence[str], predicted: str) -> float:
    """Largest F1 of the words in common, each counted as often as it stands on both sides, over the right answers."""
    return max((_overlap(plain_answer(a).split(), plain_answer(predicted).split()) for a in answers), default=0.0)


def _overlap(right: list[str], predicted: list[str]) -> float:
    common = sum((Counter(right) & Counter(predicted)).values())
    return 2 * common / (len(right) + len(predicted)) if common else 0.0


def mean_over_examples(measure: Callable[[Sequence[str], str], float]) -> Callable[[Any, Any], float]:
    """A metric: the mean over all examples of a measure of single ones."""
    return lambda truth, predicted: math.fsum(map(measure, truth, predicted)) / len(predicted)
