"""Damaged INC files and flags: they are translated to a recipe that loads, or they are a UserError."""

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.damage import TEXTS, damaged, refused_or
from tests.fuzz.test_recipes import as_yaml
from toolkit.core.paths import RECIPES
from toolkit.core.yaml_document import parse_yaml
from toolkit.recipe.inc import IncFlags, explain, read_inc
from toolkit.recipe.load import parse_recipe, validated

FILES = [parse_yaml(path.read_text(), path.name).data for path in sorted(RECIPES.glob("inc/*.yaml"))]
NAMES = st.sampled_from(("model", "sst2", "mnli-mm", "squad", "toy", *TEXTS))
NUMBERS = st.sampled_from((None, 1, 3, 0, -1, 10**22))


@st.composite
def flags(draw: st.DrawFn) -> IncFlags:
    """Flags as a shell passes them: any text, numbers of the right type."""
    optional = st.one_of(st.none(), NAMES)
    texts = {
        name: draw(optional) for name in ("model", "teacher", "task", "train_file", "validation_file", "label", "name")
    }
    lists: dict[str, Any] = {
        name: draw(st.one_of(st.none(), st.lists(NAMES, max_size=3).map(tuple))) for name in ("columns", "labels")
    }
    numbers: dict[str, Any] = {
        name: draw(NUMBERS) for name in ("num_train_epochs", "per_device_train_batch_size", "max_seq_length", "seed")
    }
    floats = st.one_of(st.none(), st.floats())
    weights = draw(st.one_of(st.none(), st.tuples(st.floats(), st.floats())))
    return IncFlags(
        **texts, **lists, **numbers, temperature=draw(floats), learning_rate=draw(floats), loss_weights=weights
    )


@given(files=st.lists(st.sampled_from(FILES).flatmap(damaged), min_size=1, max_size=2), given_flags=flags(), key=NAMES)
def test_damaged_inc_files_are_refused_or_translated(tmp_path_factory, files, given_flags, key):
    folder = tmp_path_factory.getbasetemp()
    paths = []
    for number, data in enumerate(files):
        paths.append(folder / f"inc{number}.yaml")
        paths[-1].write_bytes(as_yaml(data))
    for placeholders in (True, False):
        refused_or(lambda: translated(paths, given_flags, placeholders))  # noqa: B023 (called at once)


def translated(paths: list[Path], given_flags: IncFlags, placeholders: bool) -> None:
    plan = read_inc(paths, given_flags, placeholders)
    recipe = validated(plan.document("inc"), "inc")
    assert parse_recipe(explain(plan), "explained") == recipe
