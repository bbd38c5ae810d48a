"""What must not change by accident: cache keys of the shipped recipes, the schema, the help texts, INC's translation.

A changed key makes weeks of pre-training run again, so a change here is a decision: say it in the CHANGELOG, then
`python -m tests.test_golden` writes the files of `tests/golden/` again.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toolkit.core import paths
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.ir import kernels
from toolkit.pipeline.graph import plan
from toolkit.recipe import Recipe
from toolkit.recipe.inc import IncFlags, explain, read_inc
from toolkit.recipe.load import load_recipe, parse_recipe, schema_json, validated

GOLDEN = Path(__file__).parent / "golden"
INC = sorted((paths.RECIPES / "inc").glob("*.yaml"))
SHIPPED = sorted(p for p in paths.RECIPES.rglob("*.yaml") if p not in INC)
BESIDE = "../shared/data"  # files that the repository does not hold


def name_of(path: Path) -> str:
    return path.relative_to(paths.RECIPES).as_posix()


def keys_of(recipe: Recipe) -> dict[str, str]:
    """Label of each step -> its cache key, in a run folder that holds nothing."""
    with tempfile.TemporaryDirectory() as empty:
        return {step.label: step.key for step in plan(recipe, Path(empty), ResolvedInputs())}


def shipped(path: Path) -> Recipe:
    # Files that are placeholders: any that are in the repository stand in for them.
    rows = GOLDEN / "rows.tsv"
    placeholders = {
        "template.yaml": (f"tasks.my-task.train={rows}", f"tasks.my-task.dev={rows}", f"corpus.files=[{rows}]"),
        "embedding/all_minilm_80.yaml": (f"tasks.sentences.train={rows}",),
    }
    return load_recipe(path, placeholders.get(name_of(path), ()))


def inc_plan(path: Path) -> dict[str, Any]:
    """The recipe that one of INC's files amounts to, for public models and data alone; and its keys."""
    flags = IncFlags(
        model="Intel/bert-base-uncased-sparse-90-unstructured-pruneofa",
        teacher="textattack/bert-base-uncased-SST-2",
        task="sst2",
    )
    plan = read_inc([path], flags)
    recipe = validated(plan.document(path.name), path.name)
    assert parse_recipe(explain(plan), path.name) == recipe, "what is printed is another recipe than what runs"
    return {"recipe": plan.recipe, "run_folder": plan.run_folder, "keys": keys_of(recipe)}


def help_texts() -> Iterator[tuple[str, str]]:
    """Every command and group -> what `--help` prints, 120 columns wide."""
    import click
    from typer.main import get_command
    from typer.testing import CliRunner

    from toolkit.cli import app

    def commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        for name, inner in getattr(command, "commands", {}).items():
            yield from commands(inner, (*words, name))

    for words in commands(get_command(app), ()):
        result = CliRunner().invoke(app, [*words, "--help"], env={"TERM": "dumb"}, prog_name="pruneofa")
        assert result.exit_code == 0, result.output
        yield " ".join(("pruneofa", *words)), re.sub(r"[ ─]+(?=[│╮╯]?\n)", "", result.output)


def text_of_help() -> str:
    return "\n".join(text for _, text in help_texts())


@pytest.fixture(autouse=True)
def _of_a_machine_with_a_compiler(monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_the_keys_of_a_shipped_recipe_are_those_of_the_release_before(path, request):
    if BESIDE in path.read_text():
        request.getfixturevalue("shared_data")
    stored = json.loads((GOLDEN / "keys.json").read_text())
    assert keys_of(shipped(path)) == stored[name_of(path)]


@pytest.mark.parametrize("path", INC, ids=name_of)
def test_an_inc_file_is_translated_to_the_same_recipe_with_the_same_keys(path):
    stored = json.loads((GOLDEN / "inc.json").read_text())[name_of(path)]
    assert json.loads(json.dumps(inc_plan(path))) == stored


def test_the_schema_is_the_stored_one():
    assert schema_json() + "\n" == (GOLDEN / "schema.json").read_text()


def test_the_help_of_every_command_is_the_stored_one():
    assert text_of_help() == (GOLDEN / "help.txt").read_text()


if __name__ == "__main__":
    os.environ |= {"COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
    kernels.available = lambda: True
    found = {name_of(path): keys_of(shipped(path)) for path in SHIPPED}
    (GOLDEN / "keys.json").write_text(json.dumps(found, indent=1) + "\n")
    plans = {name_of(path): inc_plan(path) for path in INC}
    (GOLDEN / "inc.json").write_text(json.dumps(plans, indent=1) + "\n")
    (GOLDEN / "schema.json").write_text(schema_json() + "\n")
    (GOLDEN / "help.txt").write_text(text_of_help())
