"""Intervals of fractions against published values, and paired tests of two models."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest

from toolkit.data import metrics
from toolkit.data.tasks import Measure
from toolkit.measure.significance import change_by_chance, mcnemar, swap_test, wilson_interval
from toolkit.pipeline.stages.export_checks import SIGNIFICANT, check_metrics


@pytest.mark.parametrize(("right", "n"), [(5, 10), (0, 10), (60, 60), (788, 1066), (1, 3)])
def test_the_interval_of_a_fraction_is_wilsons(right, n):
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_all_of_60_right_is_no_certainty():
    assert wilson_interval(1.0, 60) == pytest.approx((0.9398, 1.0), abs=1e-4)


@pytest.mark.parametrize(
    ("lost", "gained", "p"), [(0, 0, 1.0), (2, 0, 0.5), (6, 0, 0.03125), (3, 5, 0.7265625), (8, 1, 0.0390625)]
)
def test_the_exact_test_of_flips_is_the_binomial_one(lost, gained, p):
    assert mcnemar(lost, gained) == pytest.approx(p)
    assert mcnemar(gained, lost) == pytest.approx(p)
    assert 0 < mcnemar(3000, 2900) < 1, "whole numbers of any size"


def task_of(metric, truth, kind="classification"):
    """A task with one metric, whose logits are its predictions."""
    score = {"accuracy": metrics.accuracy, "spearman": metrics.spearman, "f1": metrics.f1}[metric]
    dev = SimpleNamespace(truth=truth, predicted=np.asarray)
    found = SimpleNamespace(
        kind=kind,
        dev=dev,
        measures=(Measure(metric, metric, slice(0, len(truth))),),
        score_of=lambda _, truth, predicted: score(truth, predicted),
    )
    found.scores = lambda logits: {metric: score(truth, logits)}
    return found


def flipped(truth, count, start=0):
    predicted = truth.copy()
    predicted[start : start + count] = 1 - predicted[start : start + count]
    return predicted


TRUTH = np.arange(150) % 2


def checked(task, before, after, logits=True):
    both = (before, after) if logits else None
    (check,) = check_metrics("x", "IR - torch", task.scores(before), task.scores(after), task, 0.01, both)
    return check


@pytest.mark.parametrize("logits", [True, False])
def test_two_flips_among_150_examples_pass_and_a_real_loss_fails(logits):
    task, before = task_of("accuracy", TRUTH), flipped(TRUTH, 20)
    two, many = (flipped(TRUTH, 20 + more) for more in (2, 12))
    passed = checked(task, before, two, logits)
    assert (passed.ok, passed.measured) == (True, "0.01333, p = 0.5")
    assert passed.limit == f"0.01, or p >= {SIGNIFICANT} (paired test)"
    failed = checked(task, before, many, logits)
    assert not failed.ok
    assert "`export.metric_tolerance`" in failed.instead


def test_a_change_within_the_tolerance_passes_whatever_the_test_says():
    truth = np.arange(10_000) % 2
    assert checked(task_of("accuracy", truth), truth, flipped(truth, 90)).measured == pytest.approx(0.009)
    assert checked(task_of("accuracy", truth), truth, flipped(truth, 90)).ok


def test_flips_in_both_directions_count_against_each_other():
    task = task_of("accuracy", TRUTH)
    before, after = flipped(TRUTH, 10), flipped(TRUTH, 13, 10)
    assert change_by_chance(task, task.measures[0], before, after) == pytest.approx(mcnemar(13, 10))


def test_metrics_that_are_no_fractions_are_tested_by_swapping_predictions():
    random = np.random.default_rng(1)
    truth = random.normal(size=80)
    good, other, bad = (truth + scale * random.normal(size=80) for scale in (0.5, 0.5, 3.0))
    task = task_of("spearman", truth)
    assert change_by_chance(task, task.measures[0], good, bad) < 0.01
    assert change_by_chance(task, task.measures[0], good, other) > 0.05
    assert not checked(task, good, bad).ok
    assert not checked(task, good, bad, logits=False).ok, "of scores alone nothing is known"


def test_lists_of_answers_can_be_swapped_too():
    def right(predicted):
        return float(sum(word == "yes" for word in predicted)) / len(predicted)

    assert swap_test(["yes"] * 40, ["no"] * 40, right) < 0.01
    assert swap_test(["yes", "no"] * 20, ["no", "yes"] * 20, right) == 1.0
