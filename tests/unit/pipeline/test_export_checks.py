"""Differences of an exported IR's logits, and their unit."""

import numpy as np
import pytest

from toolkit.pipeline.stages.export_checks import ENGINE_TOLERANCE, LogitDifferences


def test_the_unit_of_differences_is_the_range_of_the_logits():
    found = LogitDifferences.between(np.array([[-2.0, 3.0], [1.0, 0.0]]), np.array([[-2.0, 3.5], [1.0, 0.0]]))
    assert found.shares() == pytest.approx((0.1, 0.025))


def test_the_last_bits_of_logits_that_hardly_differ_are_no_error():
    """A number for every example, as a model gives that has learnt little: its range is thousandths of its value."""
    logits = np.linspace(2.58, 2.583, 30, dtype=np.float32)[:, None]
    rounded = logits + 4 * np.spacing(logits)
    assert LogitDifferences.between(logits, rounded).shares()[0] < ENGINE_TOLERANCE
    assert LogitDifferences.between(logits, logits + 1e-4).shares()[0] > ENGINE_TOLERANCE


@pytest.mark.parametrize("constant", [0.0, 2.58])
def test_constant_logits_have_a_unit(constant):
    logits = np.full((4, 1), constant)
    assert LogitDifferences.between(logits, logits).shares() == (0.0, 0.0)
    assert np.isfinite(LogitDifferences.between(logits, logits + 0.1).shares()).all()
