"""The pruning schedule against its formulas, and which steps are updates."""

import math

import pytest

from toolkit.recipe import WeightCompression
from toolkit.sparsity.schedule import PruningSchedule

# Sparsity at 0, 1/4, 1/2, 3/4 and the whole of a ramp from 0 to 0.9. `cubic` by Zhu and Gupta's equation 1; the others
# are what INC 3.7's scheduler gives for these names.
AT_QUARTERS = {
    "cubic": [0.0, 0.5203125, 0.7875, 0.8859375, 0.9],
    "linear": [0.0, 0.225, 0.45, 0.675, 0.9],
    "cos": [0.0, 0.068508, 0.263604, 0.555585, 0.9],
    "exp": [0.0, 0.437659, 0.683772, 0.822172, 0.9],
    "cube": [0.0, 0.0140625, 0.1125, 0.3796875, 0.9],
}


def test_cubic_equals_the_formula_at_every_update():
    initial, final, start, end, frequency = 0.1, 0.85, 40, 240, 8
    schedule = PruningSchedule(start, end, frequency, initial, final)
    for step in range(start, end + 1, frequency):
        formula = final + (initial - final) * (1 - (step - start) / (end - start)) ** 3
        assert schedule.sparsity(step) == pytest.approx(formula, abs=1e-12)


@pytest.mark.parametrize("shape", AT_QUARTERS)
def test_each_shape_has_its_values_at_the_quarters_of_the_ramp(shape):
    schedule = PruningSchedule(100, 500, 100, 0.0, 0.9, shape)
    found = [schedule.sparsity(step) for step in range(100, 501, 100)]
    assert found == pytest.approx(AT_QUARTERS[shape], abs=1e-6)


@pytest.mark.parametrize("shape", AT_QUARTERS)
def test_each_shape_starts_at_the_initial_sparsity_ends_at_the_final_one_and_never_falls(shape):
    schedule = PruningSchedule(3, 50, 4, 0.2, 0.8, shape)
    values = [schedule.sparsity(step) for step in range(70)]
    assert values[:3] == [0.0, 0.0, 0.0]
    assert values[3] == pytest.approx(0.2)
    assert values[50:] == [0.8] * 20
    assert values == sorted(values)


def test_sparsity_stays_the_same_between_two_updates():
    schedule = PruningSchedule(10, 50, 10, 0.0, 0.9)
    for step in range(80):
        if not schedule.updates_at(step) and step > 0:
            assert schedule.sparsity(step) == schedule.sparsity(step - 1)


def test_updates_are_every_frequency_steps_from_the_start_and_at_the_end():
    assert [s for s in range(100) if PruningSchedule(10, 50, 10, 0.0, 0.9).updates_at(s)] == [10, 20, 30, 40, 50]


def test_the_end_is_an_update_when_the_frequency_does_not_lead_to_it():
    schedule = PruningSchedule(0, 25, 10, 0.0, 0.9)
    assert [s for s in range(100) if schedule.updates_at(s)] == [0, 10, 20, 25]
    assert schedule.sparsity(24) == schedule.sparsity(20) < schedule.sparsity(25) == 0.9


def test_start_equal_to_end_prunes_once():
    schedule = PruningSchedule(5, 5, 1, 0.0, 0.5)
    assert [s for s in range(20) if schedule.updates_at(s)] == [5]
    assert (schedule.sparsity(4), schedule.sparsity(5)) == (0.0, 0.5)


def test_from_pruner_takes_the_pruner_s_own_values_over_the_section_s():
    section = WeightCompression.model_validate(
        {
            "target_sparsity": 0.9,
            "end_step": 100,
            "update_frequency_on_step": 10,
            "pruners": [{"target_sparsity": 0.75, "start_step": 20, "sparsity_decay_type": "cos"}],
        }
    )
    assert PruningSchedule.from_pruner(section.resolve()[0]) == PruningSchedule(20, 100, 10, 0.0, 0.75, "cos")


def test_the_mean_density_of_the_cubic_ramp_is_that_of_the_integral():
    # A figure that depends on the whole curve: the mean of 1 - s over a fine ramp is 1 - s_f * 3/4.
    schedule = PruningSchedule(0, 10_000, 1, 0.0, 0.9)
    mean = math.fsum(1 - schedule.sparsity(step) for step in range(10_000)) / 10_000
    assert mean == pytest.approx(1 - 0.9 * 0.75, abs=1e-3)
