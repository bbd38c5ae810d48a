"""The learning-rate multipliers against their definitions, walked through step by step."""

import contextlib

import pytest

from toolkit.core.errors import UserError
from toolkit.training.lr_schedule import CYCLE_FLOOR, cyclic, linear, require_bounded_rewinding, rewinding


def walked(total: int, warmup: int, start: int, end: int, frequency: int) -> list[float]:
    """Rewinding by its definition: the rate falls by the same amount at each step, along a line that reaches 0 after
    as many steps as there are outside of the pruning phase; at each pruning step, and once more when the phase is
    over, it goes back to what it was at the start of the phase. During warm-up it rises instead.
    """
    fall = 1 / (total - (end - start) - warmup)
    rate = at_start = 1 + warmup * fall  # where the line would begin, so that it is 1 at the end of the warm-up
    rates = []
    for step in range(total + 1):
        if step == start:
            at_start = rate
        if step == end or (start <= step < end and (step - start) % frequency == 0):
            rate = at_start
        rates.append(step / warmup if step < warmup else rate)
        rate -= fall
    return rates


@pytest.mark.parametrize(
    ("total", "warmup", "start", "end", "frequency"),
    [
        (100, 10, 20, 60, 10),
        (100, 0, 0, 50, 5),
        (100, 1, 0, 50, 10),  # the published recipe in small: the ramp starts before the warm-up is over
        (200, 7, 33, 95, 9),  # the frequency does not divide the phase
        (50, 5, 10, 40, 1),
    ],
)
def test_rewinding_equals_the_definition_at_every_step(total, warmup, start, end, frequency):
    expected = walked(total, warmup, start, end, frequency)
    found = [rewinding(step, total, warmup, start, end, frequency) for step in range(total + 1)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_rewinding_has_the_values_worked_out_by_hand():
    # 60 steps outside the phase, 10 of them warm-up: the rate falls by 1/50 a step.
    by_hand = {0: 0.0, 5: 0.5, 10: 1.0, 19: 0.82, 20: 0.8, 29: 0.62, 30: 0.8, 59: 0.62, 60: 0.8, 61: 0.78, 99: 0.02}
    found = {step: rewinding(step, 100, 10, 20, 60, 10) for step in by_hand}
    assert found == pytest.approx(by_hand)


def test_rewinding_ends_at_zero_and_never_goes_below():
    assert rewinding(100, 100, 10, 20, 60, 10) == pytest.approx(0.0)
    assert rewinding(150, 100, 10, 20, 60, 10) == 0.0
    # A phase longer than the rest of the run: the line reaches 0 inside an interval and waits there.
    assert min(rewinding(step, 100, 0, 0, 90, 30) for step in range(101)) == 0.0


def test_rewinding_without_a_pruning_phase_is_plain_linear_decay():
    assert [rewinding(s, 80, 8, 20, 20, 5) for s in range(81)] == [linear(s, 80, 8) for s in range(81)]


@pytest.mark.parametrize(
    ("start", "end", "peaks"), [(0, 500, 1.25), (0, 800, 2), (0, 820, 2.25), (0, 900, 100), (100, 900, 1)]
)
def test_schedules_that_rewind_beyond_twice_the_peak_are_refused_and_no_others(start, end, peaks):
    highest = max(rewinding(step, 1000, 100, start, end, 50) for step in range(1000))
    assert highest == pytest.approx(peaks)
    with pytest.raises(UserError, match="twice its peak") if peaks > 2 else contextlib.nullcontext():
        require_bounded_rewinding(1000, 100, start, end, "student.pruning")


def test_linear_rises_over_the_warm_up_and_falls_to_zero():
    found = [linear(step, 10, 2) for step in range(13)]
    assert found == pytest.approx([0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0, 0, 0])


def test_linear_without_warm_up_starts_at_the_peak():
    assert linear(0, 10, 0) == 1.0


def test_cycles_fall_from_the_peak_to_the_floor_between_updates_and_to_zero_after_the_last():
    # Updates at 4, 8, 12 and 14: the last interval of the ramp is shorter. Warm-up delays the peak of the first cycle.
    found = [cyclic(step, 20, 2, 4, 14, 4) for step in range(21)]
    cycle = [1 - (1 - CYCLE_FLOOR) * part / 4 for part in range(4)]
    half = [1, 1 - (1 - CYCLE_FLOOR) / 2]
    last = [1 - part / 6 for part in range(7)]
    assert found == pytest.approx([0, 0.5, *half, *cycle, *cycle, *half, *last])


@pytest.mark.parametrize("warmup", [0, 5, 30])
def test_cycles_never_exceed_the_peak_and_reach_it_at_every_update_after_the_warm_up(warmup):
    updates = [*range(0, 50, 7), 50]
    found = [cyclic(step, 100, warmup, 0, 50, 7) for step in range(101)]
    assert max(found) == 1.0
    assert [found[step] for step in updates if step >= warmup] == [1.0] * sum(step >= warmup for step in updates)
    assert found[100] == 0.0
