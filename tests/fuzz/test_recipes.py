"""Damaged recipes and overrides: they load, or they are a UserError; so for everything that `check` and `plan` read."""

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.damage import NUMBERS, TEXTS, VALUES, damaged, damaged_bytes, refused_or
from tests.fuzz.folders import RECIPE
from toolkit.core.paths import RECIPES
from toolkit.core.yaml_document import dump_flow, dump_yaml, parse_yaml
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.pipeline.graph import plan
from toolkit.pipeline.preflight import check_recipe
from toolkit.recipe.json_schema import RECIPE as SCHEMA
from toolkit.recipe.load import dump_recipe, load_recipe, parse_recipe

FILES = [path for path in sorted(RECIPES.glob("*/*.yaml")) if path.parent.name != "inc"]
OWN = parse_yaml(RECIPE, "recipe").data
BASES = [OWN, *(parse_yaml(path.read_text(), path.name).data for path in FILES)]


def every_check(folder: Path, content: bytes, overrides: list[str]) -> None:
    """Does with a recipe what every command does before its first stage."""
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    recipe = load_recipe(path, overrides)
    assert parse_recipe(dump_recipe(recipe), "again") == recipe
    inputs = ResolvedInputs()
    check_recipe(recipe, inputs)
    plan(recipe, path.parent / "run", inputs)


def test_the_recipe_that_is_damaged_is_valid(folder):
    every_check(folder, RECIPE.encode(), [])


def shown(value: Any) -> str:
    try:
        return dump_flow(value)
    except ValueError:  # an integer of more digits than Python prints
        return "1" * 5000


def as_yaml(data: Any) -> bytes:
    try:
        return dump_yaml(data).encode("utf-8", "surrogatepass")
    except ValueError:
        return b"seed: " + b"1" * 5000


def fitting(path: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Values of a key's type, with those at its limits."""
    node = SCHEMA.resolved(SCHEMA.node_at(path) or {})
    listed = node.get("type") == "array"
    node = SCHEMA.resolved(node.get("items") or {}) if listed else node
    one: st.SearchStrategy[Any] = st.sampled_from(TEXTS)
    if "enum" in node:
        one = st.sampled_from(node["enum"])
    elif node.get("type") in ("integer", "number"):
        one = st.one_of(st.integers(0, 200), st.sampled_from(NUMBERS), st.floats(0, 1))
    elif node.get("type") == "boolean":
        one = st.booleans()
    return st.lists(one, max_size=3) if listed else one


@st.composite
def overridden(draw: st.DrawFn) -> tuple[Any, list[str]]:
    """A recipe, and changes of its keys to values that fit and others."""
    data, changes = draw(st.sampled_from((*[OWN] * len(BASES), *BASES))), []
    for _ in range(draw(st.sampled_from((1, 1, 1, 3)))):
        path = draw(st.sampled_from(list(SCHEMA.candidates(data))))
        key = ".".join(path[-1:] if draw(st.integers(0, 4)) == 0 else path)
        fits = fitting(path).map(shown)
        others = st.one_of(VALUES.map(shown), st.sampled_from(("null", "{}", "[]", "{a: 1}", *TEXTS)))
        equals = draw(st.sampled_from(("=", "=", "=", "=", " = ", "==", "")))
        changes.append(key + equals + draw(st.one_of(fits, fits, fits, others)))
    return data, changes


@given(data=st.one_of(damaged(OWN), st.sampled_from(BASES).flatmap(damaged)))
def test_a_damaged_recipe_is_refused_or_checked(folder, data):
    refused_or(lambda: every_check(folder, as_yaml(data), []))


@given(case=overridden())
def test_overrides_are_refused_or_applied(folder, case):
    refused_or(lambda: every_check(folder, as_yaml(case[0]), case[1]))


@given(content=damaged_bytes(RECIPE.encode()))
def test_a_damaged_file_is_refused_or_checked(folder, content):
    refused_or(lambda: every_check(folder, content, []))
