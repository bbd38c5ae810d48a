"""Metrics against hand-made cases and against definitions written out here."""

import string
from itertools import groupby

import numpy as np
import pytest

from toolkit.data import metrics
from toolkit.data.tables import read_rows
from toolkit.data.task_kinds import score


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


def official_words(text: str) -> list[str]:
    """SQuAD v1.1's own reading of an answer, told step by step: nothing of the toolkit's is used."""
    letters = [c for c in text.lower() if c not in string.punctuation]
    runs = ["".join(run) for _, run in groupby(letters, key=str.isalnum)]  # words, and what lies between them
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def official_exact(answers: list[str], predicted: str) -> float:
    if predicted == "":
        return 0.0
    return max(float(official_words(answer) == official_words(predicted)) for answer in answers)


def official_f1(answers: list[str], predicted: str) -> float:
    best = 0.0
    for answer in answers:
        left, given = official_words(answer), official_words(predicted)
        right, common = len(left), 0
        for word in given:  # each word of the answer is found once at most
            if word in left:
                left.remove(word)
                common += 1
        if common:
            precision, recall = common / len(given), common / right
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


# What is said to question n, of all right answers to each question.
PREDICTIONS = {
    "verbatim": lambda answers, n: answers[n][n % len(answers[n])],
    "article and punctuation": lambda answers, n: f"the {answers[n][0]}.",
    "case and spaces": lambda answers, n: f"  {answers[n][-1].swapcase().replace(' ', '  ')} ",
    "punctuation inside": lambda answers, n: "-".join(answers[n][0].split()),
    "half of it": lambda answers, n: " ".join(answers[n][0].split()[: 1 + len(answers[n][0].split()) // 2]),
    "and more": lambda answers, n: f"an answer: {answers[n][0]}, {answers[n][0]} of {answers[(n + 1) % 7][0]}",
    "that to another question": lambda answers, n: answers[(n + 100) % len(answers)][0],
    "nothing": lambda answers, n: "",
}
KINDS = list(PREDICTIONS)
PREDICTIONS["each in turn"] = lambda answers, n: PREDICTIONS[KINDS[n % len(KINDS)]](answers, n)


@pytest.fixture(scope="module")
def squad_answers(shared_data):
    """The right answers to each question of SQuAD v1.1's dev split."""
    return [row["answers"]["text"] for _, row in read_rows(shared_data / "squad" / "dev-v1.1.json", ("answers",))]


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_exact_match_and_f1_of_all_real_questions_are_those_of_the_official_definition(squad_answers, kind):
    assert len(squad_answers) == 10_570
    predicted = [PREDICTIONS[kind](squad_answers, n) for n in range(len(squad_answers))]
    exact = [official_exact(answers, text) for answers, text in zip(squad_answers, predicted, strict=True)]
    f1 = [official_f1(answers, text) for answers, text in zip(squad_answers, predicted, strict=True)]
    assert [metrics.answer_matches(a, p) for a, p in zip(squad_answers, predicted, strict=True)] == exact
    assert [metrics.answer_overlap(a, p) for a, p in zip(squad_answers, predicted, strict=True)] == pytest.approx(f1)
    found = score("question_answering", ["exact_match", "f1"], squad_answers, predicted)
    assert found == {"exact_match": pytest.approx(np.mean(exact)), "f1": pytest.approx(np.mean(f1))}
    # The kinds are what they say they are: else equal numbers would show little. (A few real answers are mere articles:
    # repeated word by word they match exactly, and have no word in common.)
    never, always = (0.0, 0.0), (0.999, 1.0)
    low, high = {
        "verbatim": always,
        "article and punctuation": always,
        "case and spaces": always,
        "and more": never,
        "that to another question": (0.0, 0.1),
        "nothing": never,
    }.get(kind, (0.2, 0.9))
    assert low <= found["exact_match"] <= high
    assert kind not in ("half of it", "and more") or found["f1"] > found["exact_match"] + 0.1


def test_question_answering_scores_are_means_over_questions():
    truth, predicted = [("a cat",), ("dog", "hound"), ("bird",)], ["cat", "old hound", ""]
    assert score("question_answering", ["f1", "exact_match"], truth, predicted) == {
        "f1": pytest.approx((1 + 2 / 3 + 0) / 3),
        "exact_match": pytest.approx(1 / 3),
    }


def test_correlations_equal_their_definitions():
    rng = np.random.default_rng(0)
    truth = np.round(rng.uniform(0, 5, 50) * 4) / 4  # with ties
    predicted = truth + rng.normal(size=50)
    x, y = truth - truth.mean(), predicted - predicted.mean()
    found = score("regression", ["pearson", "spearman"], truth, predicted)
    assert found["pearson"] == pytest.approx((x @ y) / np.sqrt((x @ x) * (y @ y)))

    def ranks(values):  # ties share their mean rank
        return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])

    a, b = ranks(truth) - 25.5, ranks(predicted) - 25.5
    assert found["spearman"] == pytest.approx((a @ b) / np.sqrt((a @ a) * (b @ b)))


def test_matthews_correlation_by_hand():
    truth, predicted = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 0, 0, 1])
    expected = (2 * 2 - 1 * 1) / np.sqrt(3 * 3 * 3 * 3)
    assert score("classification", ["matthews_correlation"], truth, predicted) == {
        "matthews_correlation": pytest.approx(expected)
    }


@pytest.mark.parametrize(("kind", "metric"), [("regression", "pearson"), ("classification", "matthews_correlation")])
def test_predictions_that_do_not_vary_correlate_with_nothing(kind, metric):
    assert score(kind, [metric], np.array([0, 1, 0, 1]), np.array([1, 1, 1, 1])) == {metric: 0.0}


def test_logits_come_back_in_the_order_of_the_examples_and_without_padding():
    order, lengths = [2, 0, 1], [3, 4, 2]
    answers = [np.full((2, 4), float(index)) for index in order]
    found = metrics.in_order(answers, order, lengths, per_token=True)
    assert [(row.shape, row[0, 0]) for row in found] == [((2, 3), 0.0), ((2, 4), 1.0), ((2, 2), 2.0)]
    assert metrics.in_order([np.array([float(i), 0]) for i in order], order, lengths, per_token=False)[
        :, 0
    ].tolist() == [0, 1, 2]


@pytest.mark.parametrize("predicted", [[0, 1, 1, 0], [0, 1, 2, 0], [2, 1, 2, 1]])
def test_f1_of_three_classes_is_their_mean_whether_or_not_the_third_occurs(predicted):
    truth = np.array([0, 1, 0, 0])
    found = score("classification", ["f1"], truth, np.array(predicted), classes=3)["f1"]
    of_each = []
    for number in sorted({*truth.tolist(), *predicted}):
        hits = sum(t == p == number for t, p in zip(truth, predicted, strict=True))
        of_each.append(2 * hits / (int((truth == number).sum()) + predicted.count(number)))
    assert found == pytest.approx(np.mean(of_each))
