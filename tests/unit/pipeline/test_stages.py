"""The stage graph's declarations against the inputs that the stages take."""

import dataclasses
import importlib

import pytest

from toolkit.pipeline.graph import STAGES


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_reads_the_sections_and_artifacts_that_its_cache_key_is_made_of(stage):
    inputs = importlib.import_module(f"toolkit.pipeline.stages.{stage.name}").Inputs
    needed = [need.partition("|")[0] for need in stage.needs]
    optional = [*stage.optional, *([stage.teacher] if stage.teacher else [])]
    fields = {field.name: field for field in dataclasses.fields(inputs)}
    assert list(fields) == [*stage.sections, *(f"{name}_artifact" for name in (*needed, *optional))]
    may_be_missing = {name for name, field in fields.items() if field.default is None}
    assert may_be_missing == {f"{name}_artifact" for name in optional}
    assert inputs.__dataclass_params__.frozen
