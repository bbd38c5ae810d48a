"""The packed format: what earlier releases wrote, columns far apart, and what is damaged."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.packed import in_version, with_checksum
from tests.unit.ir.test_kernels import sparse
from toolkit.core.errors import UserError
from toolkit.ir import kernels


@pytest.fixture(scope="module", autouse=True)
def built() -> Path:
    return kernels.build()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_weights_of_previous_formats_give_the_same_results(kind: str, pattern: kernels.Pattern, version: int) -> None:
    rng = np.random.default_rng(0)
    values = (100 * sparse(rng, 70, 300, 0.6, int(pattern[0]))).clip(-127, 127).astype(kind)
    blob = kernels.pack(values, rng.random(70).astype(np.float32), None, pattern, block_columns=256)
    old = in_version(blob, version)
    if kind == "int8" and (version, pattern) != (3, "4x1"):
        assert kernels.describe(old)["entries"] < kernels.describe(blob)["entries"]  # rows end anywhere in a quad
    np.testing.assert_array_equal(kernels.unpack(old)[0], values)
    x = rng.normal(size=(33, 300)).astype(np.float32)
    for isa in kernels.instruction_sets():
        for ranges in (None, [(-3.0, 3.0)]):
            got, wanted = (kernels.Layer([b], ranges=ranges, isa=isa)(x)[0] for b in (old, blob))
            np.testing.assert_array_equal(got, wanted, err_msg=isa)


@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_blocks_of_columns_may_be_wider_than_a_step(kind: str, pattern: kernels.Pattern) -> None:
    values = np.zeros((9, 1000), kind)
    values[:4, [0, 255, 511, 999]], values[4, 999], values[8, 300] = 3, -2, 5
    x = np.random.default_rng(1).integers(-3, 4, (21, 1000)).astype(np.float32)
    for width in (1000, 1024, 256, 700):
        blob = kernels.pack(values, pattern=pattern, block_columns=width)
        np.testing.assert_array_equal(kernels.unpack(blob)[0], values)
        for isa in kernels.instruction_sets():
            for ranges in (None, [(-128.0, 127.0)]):
                np.testing.assert_array_equal(kernels.Layer([blob], ranges=ranges, isa=isa)(x)[0], x @ values.T)
    with pytest.raises(UserError, match="out of range"):
        kernels.pack(values, pattern=pattern, block_columns=1025)


def test_matrices_of_floats_have_the_blocks_that_products_with_floats_want() -> None:
    columns = [int(kernels.pack(np.ones((4, 8), kind))[32:36].view(np.uint32)[0]) for kind in ("float32", "int8")]
    assert columns[0] == kernels.COLUMNS_OF_FLOATS < columns[1]


@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_steps_past_the_last_column_are_refused(kind: str, pattern: kernels.Pattern) -> None:
    blob = kernels.pack(np.ones((4, 8), kind), pattern=pattern)
    at = int(blob[88:96].view(np.uint64)[0])
    assert blob[at : at + 8].sum() == 6 + (pattern == "4x1")  # two rows to their fourth columns, or one way to the last
    for step in range(8):
        damaged = blob.copy()
        damaged[at + step] += 1
        with pytest.raises(UserError, match="index out of range"):
            kernels.Layer([with_checksum(damaged)])


def test_damaged_weights_are_refused_with_the_reason() -> None:
    blob = kernels.pack(sparse(np.random.default_rng(8), 20, 30, 0.5))
    cases = {
        "truncated": blob[:-1].copy(),
        "not in the packed format": blob.copy(),
        "newer PruneOFA": blob.copy(),
        "older PruneOFA": blob.copy(),
        "damaged": blob.copy(),
    }
    cases["not in the packed format"][0] ^= 1
    cases["newer PruneOFA"][8] += 1
    cases["older PruneOFA"][8] = 1
    cases["damaged"][-100] ^= 4
    for reason, bad in cases.items():
        with pytest.raises(UserError, match=reason):
            kernels.Layer([bad])
