"""Sampling error of scores: intervals for fractions of examples, and tests of two models on the same examples."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.data.metrics import PROPORTIONS

if TYPE_CHECKING:
    from toolkit.data.tasks import Measure, TaskData

_Z = 1.959964  # 97.5 % quantile of the normal distribution: two-sided intervals of 95 %
_SWAPS = 499


def is_proportion(metric: str) -> bool:
    """Returns whether a metric is the fraction of right examples; the name may end in that of a further split."""
    return metric.split(" (")[0] in PROPORTIONS


def wilson_interval(fraction: float, n: int) -> tuple[float, float]:
    """Returns the 95 % score interval of a fraction of n independent examples.

    It is not empty for 0 and 1, and stays between them. Source: Wilson (1927), as in Brown, Cai and DasGupta, "Interval
    Estimation for a Binomial Proportion" (2001), section 3.1.
    """
    centre = fraction + _Z**2 / (2 * n)
    half = _Z * math.sqrt(fraction * (1 - fraction) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mcnemar(lost: int, gained: int) -> float:
    """Returns the two-sided p value of the exact McNemar test.

    Args:
        lost: Number of examples that only the first model has right.
        gained: Number of examples that only the second model has right.
    """
    n = lost + gained
    tail = sum(math.comb(n, k) for k in range(min(lost, gained) + 1))
    return min(1.0, 2 * tail / 2**n)  # of whole numbers, which do not overflow


def swap_test(before: Any, after: Any, score: Callable[[Any], float]) -> float:
    """Returns the p value of a paired permutation test: in each trial, half of the examples swap their predictions.

    Args:
        before: Predictions of the first model: an array, the examples in its first dimension, or a list.
        after: Predictions of the second model, alike.
        score: Returns the score of predictions.
    """
    found, random = abs(score(before) - score(after)), np.random.default_rng(0)
    as_large = 0
    for _ in range(_SWAPS):
        swap = random.random(len(before)) < 0.5
        as_large += abs(score(_mixed(before, after, swap)) - score(_mixed(after, before, swap))) >= found - 1e-12
    return (as_large + 1) / (_SWAPS + 1)


def _mixed(first: Any, second: Any, swap: np.ndarray) -> Any:
    if isinstance(first, np.ndarray):
        return np.where(swap.reshape(-1, *[1] * (first.ndim - 1)), second, first)
    return [b if other else a for a, b, other in zip(first, second, swap, strict=True)]


def change_by_chance(
    task: "TaskData", measure: "Measure", before: Sequence[np.ndarray], after: Sequence[np.ndarray]
) -> float:
    """Returns the p value of the change of a score between two models: how often chance alone changes it as much.

    Args:
        task: The task.
        measure: One of its metrics.
        before: Logits of the first model for each item of `dev`.
        after: Logits of the second model.
    """
    truth = task.dev.truth[measure.part]
    old, new = (task.dev.predicted(logits)[measure.part] for logits in (before, after))
    if not is_proportion(measure.metric):
        return swap_test(old, new, lambda predicted: task.score_of(measure.metric, truth, predicted))
    each = [slice(i, i + 1) for i in range(measure.n)]
    right = [[task.score_of(measure.metric, truth[i], found[i]) > 0.5 for i in each] for found in (old, new)]
    flips = [was - now for was, now in zip(*right, strict=True)]
    return mcnemar(flips.count(1), flips.count(-1))
