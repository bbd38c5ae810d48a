"""Reads recipes from YAML, changes them from the command line, and says what is wrong with them in words.

    recipe.yaml:12: student.distillation.train.steps must be a whole number > 0, not 'many'

All mistakes of a file are told together, in the order in which they are written.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from toolkit.core.errors import UserError
from toolkit.core.yaml_document import Document, Mistake, Place, dump_yaml, parse_yaml, read_yaml
from toolkit.recipe import Recipe
from toolkit.recipe.json_schema import RECIPE, Schema
from toolkit.recipe.messages import mistakes_in, together
from toolkit.recipe.overrides import apply_override, set_key
from toolkit.recipe.references import is_hub, with_local_folder

if TYPE_CHECKING:
    pass

# Where a recipe names files; `*` is any name or list item.
_FILE_KEYS = (
    ("model", "source"),
    ("corpus", "files", "*"),
    ("tasks", "*", "train"),
    ("tasks", "*", "dev"),
    ("tasks", "*", "more_dev", "*"),
    ("tasks", "*", "ready", "*"),
    ("ready", "*"),
)
_AFTER_ALL_LINES = 10**9  # overrides are told after the file's own mistakes


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    A section with nothing in it (`export:`) has all its defaults; `export: null` is a section that is not there.
    Relative file names are looked for beside the recipe first; those in overrides are left as the shell has them.

    Args:
        path: YAML file.
        overrides: Changes `key.path=value`. The path may be cut to any part that is unambiguous and ends in the last
            key: `pruning.target_sparsity=0.85`.

    Raises:
        UserError: Something is wrong; the message names every mistake with its line.
    """
    document = read_yaml(Path(path))
    if not isinstance(document.data, dict):
        what = "this file is empty" if document.data is None else "a recipe is a mapping of `key: value` lines"
        raise UserError(what, where=str(path), instead="start from a copy: pruneofa init")
    for keys in _FILE_KEYS:
        document.data = _rewrite(document.data, keys, lambda name: _beside(Path(path).parent, name))
    return validated(document, str(path), overrides)


def parse_recipe(text: str, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe that is no file: its places are told as `<name>`, its file names are left as they are.

    Raises:
        UserError: As `load_recipe`.
    """
    return validated(parse_yaml(text, name, lines=False), name, overrides)


def validated(document: Document, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a document holds, with the changes of the command line; the document is changed by them.

    Raises:
        UserError: As `load_recipe`.
    """
    fill_empty(document, RECIPE)
    said = []
    for number, text in enumerate(overrides):
        place = Place(_AFTER_ALL_LINES + number, f"override {text!r}")
        try:
            said.append((*apply_override(document, text, place), place))
        except UserError as error:
            document.mistakes.append(Mistake(place.order, error))
    for path, value, place in said:  # what is said of one task stays, whatever was said of all of them after it
        if path[0] == "tasks":
            set_key(document, path, value, place)
    recipe = None
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError as error:
        document.mistakes += mistakes_in(error, document, RECIPE)
    if document.mistakes:
        raise together(document.mistakes, name)
    assert recipe is not None
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """YAML that loads back to an equal recipe, with all defaults written out."""
    return dump_yaml(recipe.model_dump(mode="json", exclude_none=True))


def schema_json() -> str:
    """The JSON schema of recipes, for editors that complete and check YAML."""
    return json.dumps(RECIPE.root, indent=2)


# --- before validation ---------------------------------------------------------------------------------------------


def fill_empty(document: Document, schema: Schema) -> None:
    """`key:` with nothing after it: a section with its defaults, or as if the key were not there."""
    for path in document.empty:
        parent: Any = document.data
        for key in path[:-1]:
            parent = parent[key]
        node = schema.node_at(path)
        if node is not None and schema.is_section(node):
            parent[path[-1]] = {}
        elif node is not None:
            del parent[path[-1]]


def _rewrite(value: Any, keys: Sequence[str], change: Callable[[str], str]) -> Any:
    """Applies `change` to the texts under `keys`; values of an unexpected type are left for the validation."""
    if not keys:
        return change(value) if isinstance(value, str) else value
    if isinstance(value, list) and keys[0] == "*":
        return [_rewrite(item, keys[1:], change) for item in value]
    if isinstance(value, dict):
        return {k: _rewrite(v, keys[1:], change) if keys[0] in (k, "*") else v for k, v in value.items()}
    return value


def _beside(folder: Path, name: str) -> str:
    """The path of a file that lies in `folder`; any other name (hub id, package:, current directory) as it is."""
    if is_hub(name):  # a local folder may stand in place of the id
        return with_local_folder(name, folder)
    if name.startswith("~/"):
        return str(Path(name).expanduser())
    if not name or name.startswith("package:") or not (folder / name).exists():
        return name
    return os.path.normpath(folder.resolve() / name)  # not resolved: a link's target may have another suffix


# --- overrides -----------------------------------------------------------------------------------------------------


# --- pydantic's errors in words ------------------------------------------------------------------------------------
