"""Values of another type, size or place than a key has: each is a mistake with its key, whatever it is."""

import pytest

from tests.helpers.recipes import SMALL
from toolkit.core.errors import UserError
from toolkit.recipe.inc import IncFlags, explain, read_inc
from toolkit.recipe.load import load_recipe, parse_recipe

LAYERS = "criterion: {IntermediateLayersKnowledgeDistillationLoss: {layer_mappings: %s}}"


def complaint(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_recipe(text, "small", overrides)
    return str(caught.value)


@pytest.mark.parametrize("value", ["1", "[a]", "text"])
@pytest.mark.parametrize("key", ["sst2", "tasks.sst2", "tasks", "student", "transfer.distillation", "corpus"])
def test_what_is_not_a_section_is_refused_where_one_belongs(key, value):
    assert f"{key} must be a section" in complaint(SMALL, f"{key}={value}")


def test_a_task_overridden_by_null_is_refused():
    assert "override 'sst2=null': tasks.sst2 must be a section" in complaint(SMALL, "sst2=null")


@pytest.mark.parametrize("first", ["tasks.sst2.rows", "tasks.sst2.transfer"])
def test_what_another_override_has_replaced_is_not_written_to(first):
    later = complaint(SMALL, f"{first}={{}}", "tasks=0")
    assert "override 'tasks=0': tasks must be a section" in later


def test_a_kind_that_is_a_section_is_refused_with_the_kinds():
    assert "kind must be one of classification" in complaint(SMALL, "kind={a: 1}")


@pytest.mark.parametrize("pair", ["a", "[]", "[a, x, b, 1]", "[{}, b]", "3"])
def test_a_pair_of_layers_in_another_form_is_one_mistake_with_the_forms(pair):
    text = SMALL.replace("      epoch: 3", f"      epoch: 3\n      {LAYERS % f'[[a, b], {pair}]'}")
    found = complaint(text)
    assert "errors in" not in found
    assert "layer_mappings[1] must be a list of a string and a string, or a list of a string and an integer" in found


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ("student.steps=1" + "0" * 22, "1,000,000,000"),
        ("seed=4294967296", "4,294,967,295"),
        ("threads=1" + "0" * 400, "1,"),
    ],
)
def test_a_number_that_no_library_can_hold_is_refused_with_the_limit(change, limit):
    assert f"must be at most {limit}" in complaint(SMALL, change)


def test_the_largest_seed_is_allowed():
    assert parse_recipe(SMALL, "small", ["seed=4294967295"]).seed == 2**32 - 1


@pytest.mark.parametrize("key", ["model.source", "tasks.sst2.train", "tasks.sst2.dev", "files", "ready.student"])
@pytest.mark.parametrize(
    ("value", "why"), [("A" * 5000, "5,000 bytes"), ("a/" * 2500, "5,000 bytes"), ('"a\\0b"', "zero byte")]
)
def test_a_text_that_cannot_be_a_path_is_refused_at_its_key(write, key, value, why):
    change = f"{key}=[{value}]" if key == "files" else f"{key}={value}"
    change = f"ready={{student: {value}}}" if key.startswith("ready") else change
    assert why in complaint(SMALL, change)
    path = write(SMALL.replace("some/model", value))
    with pytest.raises(UserError, match=r"recipe.yaml:2: model\.source"):
        load_recipe(path)


def test_the_home_folder_of_nobody_is_a_path_like_others(write):
    from toolkit.pipeline.preflight import check_recipe

    with pytest.raises(UserError, match="~nobody-here/model"):
        check_recipe(
            load_recipe(write(SMALL.replace("some/model", "~nobody-here/model")), ["transfer=null", "quantize=null"])
        )


@pytest.mark.parametrize("pattern", ["a{4294967296}", "(" * 3000 + ")" * 3000, "["])
def test_what_is_no_regular_expression_is_refused(pattern):
    assert "is not a regular expression" in complaint(SMALL, f'model.prunable=["{pattern}"]')


def test_a_key_that_looks_like_a_validation_mark_is_unknown():
    assert "unknown key `[key]`" in complaint(SMALL + '"[key]": 1\n')


def test_empty_keys_of_an_inc_file_are_as_if_they_were_not_there(tmp_path):
    text = "version:\ndevice:\nmodel: {name: x, framework: pytorch}\npruning:\n  approach:\n    weight_compression:\n"
    (tmp_path / "whole.yaml").write_text(text)
    (tmp_path / "empty.yaml").write_text(text + "      start_epoch:\n      pruners:\n")
    explained = [explain(read_inc([tmp_path / f"{name}.yaml"], IncFlags(), True)) for name in ("whole", "empty")]
    assert explained[0] == explained[1].replace("empty.yaml", "whole.yaml")
    assert "start_epoch: 0                       # INC's default" in explained[1]
