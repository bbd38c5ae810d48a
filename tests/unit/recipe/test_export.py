"""The table of export variants."""

from typing import get_args

import pytest

from toolkit.recipe import DENSE, SHIPPED, SHIPPED_FP32, VARIANTS, engine_variant
from toolkit.recipe.export import Export, VariantName


def test_the_table_has_every_variant_that_a_recipe_may_name():
    assert tuple(VARIANTS) == get_args(VariantName) == Export().variants


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda v: v.name)
def test_a_variant_on_the_engine_differs_from_its_plain_one_in_nothing_else(variant):
    plain = VARIANTS[variant.plain]
    assert not plain.engine
    assert (plain.sparse, plain.int8, plain.source_stage) == (variant.sparse, variant.int8, variant.source_stage)
    if variant.engine:
        assert engine_variant(plain.name) == variant.name


def test_the_variants_that_the_report_is_about_are_what_it_takes_them_for():
    dense, shipped, before = (VARIANTS[name] for name in (DENSE, SHIPPED, SHIPPED_FP32))
    assert (dense.sparse, dense.int8, dense.engine) == (False, False, False)
    assert (shipped.sparse, shipped.int8, shipped.engine) == (True, True, False)
    assert (before.sparse, before.int8, before.engine) == (True, False, False)
    assert len({variant.colour for variant in VARIANTS.values()}) == len(VARIANTS)
