"""Recipe loader: reads YAML, applies command-line overrides, and reports all errors with their lines.

    recipe.yaml:12: student.distillation.train.steps must be an integer > 0, not 'many'

All errors of a file are reported together, in the order of their lines.
"""

import glob
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from toolkit.core.errors import UserError
from toolkit.core.yaml_document import Document, Mistake, Place, dump_yaml, parse_yaml, read_yaml
from toolkit.recipe import Recipe
from toolkit.recipe.fields import path_problem
from toolkit.recipe.json_schema import RECIPE, Schema
from toolkit.recipe.messages import mistakes_in, together
from toolkit.recipe.overrides import apply_override, require_effect, set_key
from toolkit.recipe.references import is_hub, matching_files, with_local_folder

_UNLABELLED = tuple(
    (*task, stage, "distillation", "unlabelled", "files", "*")
    for task in ((), ("tasks", "*"))
    for stage in ("transfer", "quantize")
)
# Keys of a recipe that hold file names; `*` is any name or list item.
_FILE_KEYS = (
    ("model", "source"),
    ("corpus", "files", "*"),
    ("corpus", "sources", "*", "files", "*"),
    ("tasks", "*", "train"),
    ("tasks", "*", "train", "*"),
    ("tasks", "*", "more_train", "*"),
    ("tasks", "*", "dev"),
    ("tasks", "*", "more_dev", "*"),
    ("tasks", "*", "retrieval", "*"),
    ("tasks", "*", "ready", "*"),
    ("ready", "*"),
    *_UNLABELLED,
)
# Keys of a recipe that may hold patterns such as `data/*.csv`.
_PATTERN_KEYS = (
    ("corpus", "files", "*"),
    ("corpus", "sources", "*", "files", "*"),
    ("tasks", "*", "train"),
    ("tasks", "*", "train", "*"),
    *_UNLABELLED,
)
# Keys of a JSON schema: the dialect that pydantic writes, and a name that is not an address.
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ID = "urn:pruneofa:recipe:1"
_AFTER_ALL_LINES = 10**9  # errors of overrides are reported after those of the file


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    An empty section (`export:`) gets all defaults; `export: null` removes the section. Relative file names are resolved
    against the recipe's folder first; those in overrides are relative to the current directory.

    Args:
        path: YAML file.
        overrides: Changes `key.path=value`. The path may be shortened to any unambiguous part that ends in the last
            key: `pruning.target_sparsity=0.85`.

    Raises:
        UserError: The recipe or an override is invalid; the message lists every error with its line.
    """
    return validated(_document(path), str(path), overrides)


def changed_text(path: Path, overrides: Sequence[str]) -> str:
    """Returns YAML of a recipe with overrides applied, without its comments; file names are those of `load_recipe`.

    Raises:
        UserError: The recipe or an override is invalid.
    """
    document = _document(path)
    recipe = validated(document, str(path), overrides)
    return dump_yaml({"name": recipe.name} | document.data)  # an override moves a key to the end


def _document(path: Path) -> Document:
    """Reads a recipe's file, with its file names resolved against its folder."""
    document = read_yaml(Path(path))
    if not isinstance(document.data, dict):
        what = "the file is empty" if document.data is None else "a recipe must be a mapping of `key: value` lines"
        raise UserError(what, where=str(path), instead="start from a copy: pruneofa init")
    for keys in _FILE_KEYS:
        document.data = _rewrite(document.data, keys, lambda name: _beside(Path(path).parent, name))
    return document


def parse_recipe(text: str, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Parses a recipe from a string. Errors refer to `<name>`; file names are not resolved.

    Raises:
        UserError: The recipe or an override is invalid.
    """
    return validated(parse_yaml(text, name, lines=False), name, overrides)


def validated(document: Document, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Validates a document as a recipe, after applying overrides to it in place.

    Args:
        document: The parsed YAML; modified by the overrides.
        name: Name of the document in error messages.
        overrides: Changes `key.path=value`, as for `load_recipe`.

    Raises:
        UserError: The recipe or an override is invalid.
    """
    fill_empty(document, RECIPE)
    applied = []
    for number, text in enumerate(overrides):
        place = Place(_AFTER_ALL_LINES + number, f"override {text!r}")
        try:
            applied.append((*apply_override(document, text, place), place))
        except UserError as error:
            document.mistakes.append(Mistake(place.order, error))
    for path, value, place in applied:  # an override of one task takes precedence over a later one of all tasks
        if path[0] == "tasks":
            set_key(document, path, value, place)
    for keys in _PATTERN_KEYS:
        document.data = _rewrite(document.data, keys, matching_files)
    recipe = None
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError as error:
        document.mistakes += mistakes_in(error, document, RECIPE)
    for path, value, place in applied:
        try:
            if recipe is not None:
                require_effect(recipe, path, value, place)
        except UserError as error:
            document.mistakes.append(Mistake(place.order, error))
    if document.mistakes:
        raise together(document.mistakes, name)
    assert recipe is not None
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Returns YAML that loads back to an equal recipe, with all defaults written out."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.student is not None and recipe.student.pruning is None:
        values["student"]["pruning"] = None  # not the default
    return dump_yaml(values)


def schema_json() -> str:
    """Returns the JSON schema of recipes, for editors that complete and check YAML."""
    return json.dumps({"$schema": _DIALECT, "$id": _ID} | RECIPE.root, indent=2)


# --- before validation ---------------------------------------------------------------------------------------------


def fill_empty(document: Document, schema: Schema) -> None:
    """Replaces empty values (`key:`): sections get their defaults, other keys are removed (and stay in `empty`)."""
    for path in list(document.empty):
        parent: Any = document.data
        for key in path[:-1]:
            parent = parent[key]
        node = schema.node_at(path)
        if node is not None and schema.is_section(node):
            parent[path[-1]] = {}
            del document.empty[path]
        elif node is not None:
            del parent[path[-1]]


def _rewrite(value: Any, keys: Sequence[str], change: Callable[[str], str | list[str]]) -> Any:
    """Applies `change` to the strings under `keys`; values of an unexpected type are left to the validation.

    A list that `change` returns for an item of a list takes the place of the item.
    """
    if not keys:
        return change(value) if isinstance(value, str) else value
    if isinstance(value, list) and keys[0] == "*":
        changed = [(item, _rewrite(item, keys[1:], change)) for item in value]
        return [n for old, new in changed for n in (new if isinstance(new, list) and new is not old else [new])]
    if isinstance(value, dict):
        return {k: _rewrite(v, keys[1:], change) if keys[0] in (k, "*") else v for k, v in value.items()}
    return value


def _beside(folder: Path, name: str) -> str:
    """Resolves a file name against `folder` if it exists there; returns other names (hub id, package:) unchanged."""
    if path_problem(name):  # reported by the validation
        return name
    if is_hub(name):  # a local folder with the data set's name takes precedence
        return with_local_folder(name, folder)
    if name.startswith("~/"):
        return str(Path(name).expanduser())
    if not name or name.startswith("package:"):
        return name
    if not (folder / name).exists():
        inside = os.path.join(glob.escape(str(folder.resolve())), name)  # noqa: PTH118 (a pattern is no path)
        return inside if matching_files(inside) != [inside] else name
    return os.path.normpath(folder.resolve() / name)  # not resolved: a link's target may have another suffix
