"""Metrics against hand-made cases and against definitions written out here."""

import numpy as np
import pytest

from toolkit import metrics


@pytest.mark.parametrize(
    ("answers", "predicted", "exact", "f1"),
    [
        (["Denver Broncos"], "the Denver Broncos", 1.0, 1.0),  # articles do not count
        (["Denver Broncos"], "denver broncos.", 1.0, 1.0),  # nor do case and punctuation
        (["a theory"], "THE  theory", 1.0, 1.0),
        (["theory"], "theoretical", 0.0, 0.0),  # `the` inside a word is no article
        (["U.S."], "US", 1.0, 1.0),  # punctuation goes without leaving a space
        (["well-known"], "well known", 0.0, 0.0),
        (["Saint Bernadette Soubirous"], "Bernadette", 0.0, 0.5),  # precision 1, recall 1/3
        (["red red blue"], "red green", 0.0, 0.4),  # a word counts as often as on both sides: 1 of 2, 1 of 3
        (["five", "5", "5 km"], "5 km away", 0.0, 0.8),  # the best of several answers
        (["five", "5"], "5", 1.0, 1.0),
        (["Denver"], "", 0.0, 0.0),  # nothing predicted is never right
        (["the"], "", 0.0, 0.0),
        (["the"], "a", 1.0, 0.0),  # both are nothing but articles: equal, and no word in common
        (["£5"], "5", 0.0, 0.0),  # only ASCII punctuation goes
        (["Beyoncé"], "beyonce", 0.0, 0.0),
        (["“quoted”"], '"quoted"', 0.0, 0.0),
    ],
)
def test_answers_are_compared_as_squad_defines_it(answers, predicted, exact, f1):
    assert metrics.answer_matches(answers, predicted) == exact
    assert metrics.answer_overlap(answers, predicted) == pytest.approx(f1)


def test_question_answering_scores_are_means_over_questions():
    truth, predicted = [("a cat",), ("dog", "hound"), ("bird",)], ["cat", "old hound", ""]
    assert metrics.score("question_answering", ["f1", "exact_match"], truth, predicted) == {
        "f1": pytest.approx((1 + 2 / 3 + 0) / 3),
        "exact_match": pytest.approx(1 / 3),
    }


def test_correlations_equal_their_definitions():
    rng = np.random.default_rng(0)
    truth = np.round(rng.uniform(0, 5, 50) * 4) / 4  # with ties
    predicted = truth + rng.normal(size=50)
    x, y = truth - truth.mean(), predicted - predicted.mean()
    found = metrics.score("regression", ["pearson", "spearman"], truth, predicted)
    assert found["pearson"] == pytest.approx((x @ y) / np.sqrt((x @ x) * (y @ y)))

    def ranks(values):  # ties share their mean rank
        return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])

    a, b = ranks(truth) - 25.5, ranks(predicted) - 25.5
    assert found["spearman"] == pytest.approx((a @ b) / np.sqrt((a @ a) * (b @ b)))


def test_matthews_correlation_by_hand():
    truth, predicted = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 0, 0, 1])
    expected = (2 * 2 - 1 * 1) / np.sqrt(3 * 3 * 3 * 3)
    assert metrics.score("classification", ["matthews_correlation"], truth, predicted) == {
        "matthews_correlation": pytest.approx(expected)
    }


@pytest.mark.parametrize(("kind", "metric"), [("regression", "pearson"), ("classification", "matthews_correlation")])
def test_predictions_that_do_not_vary_correlate_with_nothing(kind, metric):
    assert metrics.score(kind, [metric], np.array([0, 1, 0, 1]), np.array([1, 1, 1, 1])) == {metric: 0.0}


def test_logits_come_back_in_the_order_of_the_examples_and_without_padding():
    order, lengths = [2, 0, 1], [3, 4, 2]
    answers = [np.full((2, 4), float(index)) for index in order]
    found = metrics.in_order(answers, order, lengths)
    assert [(row.shape, row[0, 0]) for row in found] == [((2, 3), 0.0), ((2, 4), 1.0), ((2, 2), 2.0)]
    assert metrics.in_order([np.array([float(i), 0]) for i in order], order, lengths)[:, 0].tolist() == [0, 1, 2]
