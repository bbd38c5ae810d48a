"""Task metrics of predictions against the correct answers, in [0, 1] (correlations in [-1, 1])."""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Answers = Sequence[Any] | np.ndarray

PROPORTIONS = frozenset({"accuracy", "exact_match", "cosine_accuracy"})  # metrics that are a fraction of the examples

_SHUFFLES = 30
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def in_order(logits: Sequence[np.ndarray], order: Answers, lengths: Answers, per_token: bool) -> Sequence[np.ndarray]:
    """Returns logits in the order of the examples, without padding.

    Args:
        logits: One array per prediction: [C] for a classifier, [2, padded length] for starts and ends.
        order: Index of the example that each array belongs to, [n].
        lengths: Number of tokens of each example, [n].
        per_token: Whether the logits of an example are [C, length].

    Returns:
        One array [n, C], or with `per_token` a list of n arrays [C, length].
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
    """Mean of the F1 scores of the classes (macro F1)."""
    return f1(truth, predicted, average="macro")


def micro_f1_of_sets(truth: Any, margins: Any) -> float:
    """F1 over all decisions, one per example and class; a class is predicted from a margin of 0 on."""
    return f1(np.asarray(truth) > 0, np.asarray(margins) >= 0, average="micro")


def macro_f1_of_sets(truth: Any, margins: Any) -> float:
    """Mean of the F1 scores of the classes, 0 for a class that neither occurs nor is predicted."""
    return f1(np.asarray(truth) > 0, np.asarray(margins) >= 0, average="macro")


def average_precision(truth: Any, margins: Any) -> float:
    """Mean over the classes that occur of the precision at each example of the class, examples ranked by margin.

    0 if no class occurs, as in a small split for tuning.
    """
    from sklearn.metrics import average_precision_score

    truth, margins = np.asarray(truth) > 0, np.asarray(margins)
    occurs = truth.any(axis=0)
    return (
        float(average_precision_score(truth[:, occurs], margins[:, occurs], average="macro")) if occurs.any() else 0.0
    )


def accuracy(truth: Any, predicted: Any) -> float:
    """Fraction of correct predictions."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(truth, predicted))


def matthews(truth: Any, predicted: Any) -> float:
    """Matthews correlation coefficient."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(truth, predicted))


def pearson(truth: Any, predicted: Any) -> float:
    """Pearson correlation; 0 where one side is constant, for which it is undefined."""
    if np.std(truth) == 0 or np.std(predicted) == 0:
        return 0.0
    return float(np.corrcoef(truth, predicted)[0, 1])


def spearman(truth: Any, predicted: Any) -> float:
    """Pearson correlation of the ranks."""
    from scipy.stats import rankdata

    return pearson(rankdata(truth), rankdata(predicted))


def plain_answer(text: str) -> str:
    """Returns an answer normalised as in SQuAD v1.1: lower case, no punctuation, no English articles, single spaces.

    Source: the definition that comes with the data set (Rajpurkar et al., 2016, section 6.1, and its script).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_matches(answers: Sequence[str], predicted: str) -> float:
    """Returns 1 if the prediction is one of the correct answers, up to `plain_answer`; an empty one never is."""
    return float(bool(predicted) and any(plain_answer(predicted) == plain_answer(a) for a in answers))


def answer_overlap(answers: Sequence[str], predicted: str) -> float:
    """Returns the largest F1 of words in common over the correct answers; repeated words count repeatedly."""
    return max((_overlap(plain_answer(a).split(), plain_answer(predicted).split()) for a in answers), default=0.0)


def _overlap(correct: list[str], predicted: list[str]) -> float:
    common = sum((Counter(correct) & Counter(predicted)).values())
    return 2 * common / (len(correct) + len(predicted)) if common else 0.0


def mean_over_examples(measure: Callable[[Sequence[str], str], float]) -> Callable[[Any, Any], float]:
    """Returns a metric: the mean of a per-example measure over all examples."""
    return lambda truth, predicted: math.fsum(map(measure, truth, predicted)) / len(predicted)


def shuffled_scores(score: Callable[[np.ndarray], float], count: int) -> list[float]:
    """Returns the scores that predictions have for examples in other orders, which no skill explains.

    Args:
        score: Returns the score of the predictions for the examples in an order, [count].
        count: Number of examples.
    """
    random = np.random.default_rng(0)
    return [score(random.permutation(count)) for _ in range(_SHUFFLES)]
