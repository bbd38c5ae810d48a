"""The search for the matrices to keep in FP32: number of trials, subsets tried and selection."""

import pytest

from toolkit.quantization.tuning import Trial, search, select
from toolkit.recipe import AccuracyCriterion, Tuning

RANKED = [f"layer{i}" for i in range(40)]


def tuning(**values) -> Tuning:
    return Tuning.model_validate(values)


class Model:
    """Meets the criterion when these operations are returned; each trial takes a second."""

    def __init__(self, needed: set[str]) -> None:
        self.needed, self.ranked = needed, 0

    def attempt(self, number: int, returned: tuple[str, ...]) -> Trial:
        met = self.needed <= set(returned)
        return Trial(number, returned, 0.9 + 0.001 * len(returned) if met else 0.5, 0.0 if met else 0.4, met, 1.0)

    def rank(self) -> list[str]:
        self.ranked += 1
        return RANKED


def test_a_model_that_meets_the_criterion_at_once_is_tried_once_and_nothing_is_ranked():
    model = Model(set())
    trials = search(model.attempt, model.rank, tuning())
    assert [t.returned for t in trials] == [()]
    assert model.ranked == 0


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 21, 40])
def test_the_shortest_head_of_the_ranking_that_does_it_is_found_in_few_trials(count):
    model = Model(set(RANKED[:count]))
    trials = search(model.attempt, model.rank, tuning())
    kept = select(trials, "performance", {t.number: float(len(t.returned)) for t in trials})
    assert kept.returned == tuple(RANKED[:count])
    assert len(trials) <= 14
    assert len({t.returned for t in trials}) == len(trials)


def test_a_model_that_nothing_helps_ends_with_all_returned_and_the_best_score_is_kept():
    model = Model({"no such layer"})
    trials = search(model.attempt, model.rank, tuning())
    assert trials[-1].returned == tuple(RANKED)
    assert select(trials, "performance", {}).met is False


def test_max_trials_ends_the_search():
    model = Model(set(RANKED[:21]))
    assert len(search(model.attempt, model.rank, tuning(exit_policy={"max_trials": 3}))) == 3


def test_a_single_trial_ranks_nothing():
    model = Model(set(RANKED[:21]))
    assert len(search(model.attempt, model.rank, tuning(exit_policy={"max_trials": 1}))) == 1
    assert model.ranked == 0


def test_a_timeout_ends_the_search():
    model = Model({"no such layer"})
    assert len(search(model.attempt, model.rank, tuning(exit_policy={"timeout": 4}))) == 4


def test_time_left_is_used_to_drop_matrices_that_are_not_needed():
    model = Model({RANKED[0], RANKED[4]})
    trials = search(model.attempt, model.rank, tuning(exit_policy={"timeout": 1000}))
    kept = select(trials, "modelsize", {t.number: float(len(t.returned)) for t in trials})
    assert set(kept.returned) == {RANKED[0], RANKED[4]}


def test_time_left_is_used_to_return_more_when_accuracy_is_the_objective():
    model = Model({RANKED[0]})
    trials = search(model.attempt, model.rank, tuning(objective="accuracy", exit_policy={"timeout": 5}))
    kept = select(trials, "accuracy", {})
    assert len(kept.returned) == max(len(t.returned) for t in trials) > 1


def test_the_objective_chooses_by_what_was_measured_among_those_that_meet_the_criterion():
    cheap_miss = Trial(0, (), 0.5, 0.4, False, 1.0)
    slow, fast = Trial(1, ("a", "b"), 0.9, 0.0, True, 1.0), Trial(2, ("a",), 0.89, 0.01, True, 1.0)
    assert select([cheap_miss, slow, fast], "performance", {1: 2.0, 2: 1.0}) == fast
    assert select([cheap_miss, slow, fast], "performance", {1: 1.0, 2: 2.0}) == slow
    assert select([cheap_miss, slow, fast], "accuracy", {}) == slow


def test_a_loss_of_one_tuning_example_meets_a_criterion_that_is_finer():
    finer, coarser = AccuracyCriterion(relative=0.01), AccuracyCriterion(relative=0.1)
    assert finer.met(0.75, 0.725, 1 / 40)
    assert not finer.met(0.75, 0.7, 1 / 40)
    assert not finer.met(0.75, 0.725)
    assert coarser.met(0.75, 0.68, 1 / 40)
