"""Sparsity and learning rate as functions of the step, against their definitions written out."""

import pytest

from toolkit import learning_rate
from toolkit.recipe import WeightCompression
from toolkit.sparsity.schedule import PruningSchedule


def zhu_gupta(step, start, end, initial, final):
    """To prune, or not to prune (2017), equation 1, at an update step."""
    return final + (initial - final) * (1 - (step - start) / (end - start)) ** 3


def test_cubic_is_zhu_and_gupta_at_every_update_and_holds_in_between():
    schedule = PruningSchedule(start=10, end=60, frequency=5, initial=0.2, final=0.9)
    for step in range(10, 60):
        update = step - (step - 10) % 5
        assert schedule.sparsity(step) == pytest.approx(zhu_gupta(update, 10, 60, 0.2, 0.9))
    assert schedule.sparsity(9) == 0.0
    assert schedule.sparsity(60) == schedule.sparsity(1000) == 0.9


def test_the_mask_changes_every_frequency_steps_and_at_the_end_even_when_it_does_not_divide():
    schedule = PruningSchedule(start=3, end=14, frequency=4, initial=0, final=0.5)
    assert [s for s in range(20) if schedule.updates_at(s)] == [3, 7, 11, 14]


@pytest.mark.parametrize("shape", ["cubic", "linear", "cos", "exp", "cube"])
def test_every_shape_rises_from_initial_to_final(shape):
    schedule = PruningSchedule(start=0, end=100, frequency=1, initial=0.1, final=0.9, shape=shape)
    values = [schedule.sparsity(s) for s in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert values[-1] == pytest.approx(0.9)
    assert all(a <= b + 1e-12 for a, b in zip(values, values[1:], strict=False))


def test_cube_starts_slowly_as_incs_does_and_cubic_fast():
    quarter = {s: PruningSchedule(0, 4, 1, 0.0, 0.9, s).sparsity(1) for s in ("cube", "cubic", "exp")}
    assert quarter["cube"] == pytest.approx(0.9 / 64)
    assert quarter["cubic"] == pytest.approx(0.9 * (1 - 0.75**3))
    assert quarter["exp"] == pytest.approx(1 - 0.1**0.25)  # 0.438: what INC 3.7.1 gives


def test_a_pruners_own_values_replace_the_sections():
    section = WeightCompression.model_validate(
        {"target_sparsity": 0.9, "end_step": 10, "pruners": [{"target_sparsity": 0.5}]}
    )
    assert PruningSchedule.from_section(section).final == 0.5
    assert PruningSchedule.from_section(section).end == 10


def rewound_by_simulation(total, warmup, start, end, frequency):
    """The rewound rate told as a story, step by step, instead of by formula.

    One falling line is walked down by a cursor. The pruning phase is no part of the line: the cursor is set back to
    where the phase began at every pruning step, and once more when it is over.
    """
    line = total - (end - start)  # steps of the line, with its warm-up
    rates, cursor = [], 0
    for step in range(total):
        if start <= step < end and (step - start) % frequency == 0:
            cursor = start
        if step == end:
            cursor = start
        rates.append(step / warmup if step < warmup else max(0.0, (line - cursor) / (line - warmup)))
        cursor += 1
    return rates


@pytest.mark.parametrize(
    ("total", "warmup", "start", "end", "frequency"),
    [(100, 5, 0, 50, 10), (100, 5, 20, 70, 7), (60, 1, 10, 50, 10), (40, 4, 4, 20, 1)],
)
def test_rewinding_follows_its_definition_at_every_step(total, warmup, start, end, frequency):
    expected = rewound_by_simulation(total, warmup, start, end, frequency)
    found = [learning_rate.rewinding(s, total, warmup, start, end, frequency) for s in range(total)]
    assert found == pytest.approx(expected)


def test_rewinding_goes_back_up_at_each_pruning_step_and_ends_at_zero():
    rates = [learning_rate.rewinding(s, 200, 2, 20, 120, 20) for s in range(201)]
    for step in (40, 60, 80, 100, 120):
        assert rates[step] == rates[20]
        assert rates[step - 1] < rates[step]
    assert rates[200] == 0.0


def test_linear_rises_and_falls():
    assert [learning_rate.linear(s, 10, 2) for s in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1.0, 0.5, 0.0])
