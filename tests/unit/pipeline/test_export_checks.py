"""Limits of the comparisons of exported IRs."""

import numpy as np
import pytest

from toolkit.pipeline.stages.export_checks import ENGINE_INT8_TOLERANCE, LogitDifferences, engine_int8_limit


@pytest.mark.parametrize(("spread", "limit"), [(10.0, ENGINE_INT8_TOLERANCE), (0.1, 0.02)])
def test_the_engine_may_differ_by_twice_what_the_plain_int8_ir_does_where_logits_are_nearly_constant(spread, limit):
    reference = np.linspace(0, spread, 100)
    plain = LogitDifferences.between(reference, reference + 1e-3)
    assert engine_int8_limit(plain) == pytest.approx(limit)


def test_equal_logits_leave_the_fixed_limit():
    reference = np.zeros(4)
    assert engine_int8_limit(LogitDifferences.between(reference, reference)) == ENGINE_INT8_TOLERANCE
