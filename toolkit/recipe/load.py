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
from toolkit.core.yaml_document import Document, KeyPath, Mistake, Place, dump_flow, dump_yaml, parse_yaml, read_yaml
from toolkit.data import hub
from toolkit.recipe import OWN_STAGES, Recipe
from toolkit.recipe.fields import NAME_RULE, replaced
from toolkit.recipe.json_schema import RECIPE, Node, Schema, nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

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
    return _validated(document, str(path), overrides)


def parse_recipe(text: str, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe that is no file: its places are told as `<name>`, its file names are left as they are.

    Raises:
        UserError: As `load_recipe`.
    """
    return _validated(parse_yaml(text, name, lines=False), name, overrides)


def _validated(document: Document, name: str, overrides: Sequence[str]) -> Recipe:
    fill_empty(document, RECIPE)
    said = []
    for number, text in enumerate(overrides):
        place = Place(_AFTER_ALL_LINES + number, f"override {text!r}")
        try:
            said.append((*_override(document, text, place), place))
        except UserError as error:
            document.mistakes.append(Mistake(place.order, error))
    for path, value, place in said:  # what is said of one task stays, whatever was said of all of them after it
        if path[0] == "tasks":
            _set(document, path, value, place)
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
    if hub.is_hub(name):  # a local folder may stand in place of the id
        return hub.beside(name, folder)
    if name.startswith("~/"):
        return str(Path(name).expanduser())
    if not name or name.startswith("package:") or not (folder / name).exists():
        return name
    return os.path.normpath(folder.resolve() / name)  # not resolved: a link's target may have another suffix


# --- overrides -----------------------------------------------------------------------------------------------------


def _override(document: Document, text: str, place: Place) -> tuple[tuple[str, ...], Any]:
    """Sets what an override says; its key and value."""
    name, equals, value_text = (part.strip() for part in text.partition("="))
    if not (name and equals and value_text):
        raise UserError("not of the form key=value", where=place.text, instead="student.steps=100, or teacher=null")
    path = _find(name, list(RECIPE.candidates(document.data)), place)
    value = parse_yaml(value_text, place.text, lines=False)
    document.mistakes += [Mistake(place.order, error) for _, error in value.mistakes]
    _set(document, path, value.data, place)
    if path[0] in OWN_STAGES:  # what is said of a stage holds for all tasks
        for name in document.data.get("tasks") or {}:
            old = _take_out(document, own := ("tasks", name, *path), place)
            if isinstance(old, dict) and isinstance(value.data, dict):
                _set(document, own, {}, place)  # a section for more to be said of
    return path, value.data


def _set(document: Document, path: tuple[str, ...], value: Any, place: Place) -> None:
    section = document.data
    for key in path[:-1]:
        section = section.setdefault(key, {})
    _take_out(document, path, place)
    section[path[-1]] = value


def _take_out(document: Document, path: tuple[str, ...], place: Place) -> Any:
    """Makes room for a value: its old one goes, what excludes it, and pruners' own, which would win over a section's.

    Args:
        document: The recipe.
        path: A key; nothing happens where its section is not there.
        place: Who says so.

    Returns:
        The old value, or None.
    """
    section = document.data
    for key in path[:-1]:
        section = section.get(key) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        return None
    replaced(section, path[-1])
    for pruner in section.get("pruners") or [] if path[-2:-1] == ("weight_compression",) else []:
        if isinstance(pruner, dict):
            pruner.pop(path[-1], None)
    document.places = {p: at for p, at in document.places.items() if p[: len(path)] != path} | {path: place}
    return section.pop(path[-1], None)


def _find(name: str, known: list[tuple[str, ...]], place: Place) -> tuple[str, ...]:
    """The one key that `name` means."""
    dotted = {".".join(path): path for path in known}
    if name in dotted:
        return dotted[name]
    matches = _of_recipe([full for full in dotted if _is_part(name.split("."), full.split("."))])
    if len(matches) == 1:
        return dotted[matches[0]]
    if matches:
        raise UserError(f"`{name}` can mean several keys", where=place.text, instead=f"one of {', '.join(matches)}")
    last = name.rpartition(".")[2]
    meant = nearest(last, [path[-1] for path in known])
    near = _of_recipe([full for full, path in dotted.items() if path[-1] == meant])
    raise UserError(
        f"this recipe has no key `{name}`",
        where=place.text,
        instead=" or ".join(near) or f"a key of {', '.join(p[0] for p in known if len(p) == 1)}",
    )


def _of_recipe(found: list[str]) -> list[str]:
    """Leaves out what is set elsewhere too: pruning in `student` where tasks only lock; a task's own stages."""
    return [
        f
        for f in found
        if not (f.startswith("transfer.pruning.") and f.replace("transfer", "student", 1) in found)
        and not (f.startswith("tasks.") and f.split(".", 2)[2] in found)
    ]


def _is_part(parts: list[str], full: list[str]) -> bool:
    """Whether `parts` is a subsequence of `full` that ends in its last key."""
    rest = iter(full[:-1])
    return parts[-1] == full[-1] and all(part in rest for part in parts[:-1])


# --- pydantic's errors in words ------------------------------------------------------------------------------------


def mistakes_in(error: ValidationError, document: Document, schema: Schema) -> list[Mistake]:
    """What pydantic found wrong with `document.data`, in words and with places.

    Args:
        error: Of validating the data as `schema.model`.
        document: Where the data were written.
        schema: What they should have been.
    """
    return _in_places(error.errors(include_url=False), document, schema)


def _in_places(errors: "list[ErrorDetails]", document: Document, schema: Schema) -> list[Mistake]:
    found = []
    # Consequences of another mistake are not told: a key missing under its right name, a list short of its bad items.
    misspelt = [e["loc"] for e in errors if e["type"] == "extra_forbidden"]
    meant = {(*loc[:-1], _sibling(loc, schema)) for loc in misspelt}
    around = {e["loc"][:n] for e in errors for n in range(len(e["loc"]))}
    wrong = {error["loc"] for error in errors}
    for error in errors:
        if (error["type"] == "missing" and error["loc"] in meant) or error["loc"] in around:
            continue
        if error["loc"][:1] == ("tasks",) and error["loc"][2:] in wrong:
            continue  # laid over from the recipe's section
        path, what, instead = _in_words(error, document.data, schema)
        place = document.place(path)
        found.append(Mistake(place.order, UserError(what, where=place.text, instead=instead)))
    return found


def _in_words(error: "ErrorDetails", data: Any, schema: Schema) -> tuple[KeyPath, str, str]:
    """Key, what is wrong with it, what to write instead."""
    path, value = error["loc"], error["input"]
    if error["type"] == "recipe":  # raised by one of our own validators
        path = (*path, *error["ctx"]["at"])
        return path, f"{dotted(path)}: {error['ctx']['what']}".removeprefix(": "), error["ctx"]["instead"]
    if path[-1] == "[key]":
        path = path[:-1]
        if schema.known_keys(schema.node_at(path[:-1]) or {}):
            return path, f"unknown key `{dotted(path)}`", _known_instead(path, data, schema)
        return path, f"`{path[-1]}` cannot be the name of a folder", NAME_RULE
    if error["type"] == "extra_forbidden":
        return path, f"unknown key `{dotted(path)}`", _known_instead(path, data, schema)
    if error["type"] == "missing":
        described = schema.described(path)
        return path, f"`{dotted(path)}` is missing", f"{path[-1]}: <{described}>" if described else ""
    node = schema.node_at(path)
    assert node is not None, path
    return path, f"{dotted(path)} must be {schema.wanted(node)}, not {_shown(value)}", _hint(node, value, schema)


def _sibling(path: KeyPath, schema: Schema) -> str:
    return nearest(str(path[-1]), schema.known_keys(schema.node_at(path[:-1]) or {}))


def _known_instead(path: KeyPath, data: Any, schema: Schema) -> str:
    """For an unknown key: the same key further inside, a sibling like it, the same key elsewhere, or all siblings."""
    around, same = path[:-1], [p for p in schema.candidates(data) if p[-1] == path[-1]]
    inside = [".".join(p) for p in same if p[: len(around)] == around]
    if len(inside) == 1:
        return inside[0]
    elsewhere = [".".join(p) for p in same if p[0] == path[0]]
    siblings = schema.known_keys(schema.node_at(around) or {})
    return _sibling(path, schema) or " or ".join(elsewhere) or f"one of {', '.join(siblings)}"


def _hint(node: Node, value: Any, schema: Schema) -> str:
    """A value that was probably meant."""
    node = schema.resolved(node)
    if node.get("type") == "array" and isinstance(value, str | int | float):
        return f"[{dump_flow(value)}]"
    if node.get("type") == "string" and isinstance(value, bool):
        return f'"{dump_flow(value)}", in quotes'
    if node.get("exclusiveMaximum") == 1 and isinstance(value, int | float) and 1 < value <= 100:
        return f"{value / 100:g}"
    return ""


def dotted(path: KeyPath) -> str:
    """`student.pruners[0].pattern`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a section"
    if value is None:
        return "null"
    text = repr(value) if isinstance(value, str) else dump_flow(value)
    return text if len(text) <= 60 else text[:57] + "…"


def together(mistakes: list[Mistake], name: str) -> UserError:
    """One error that tells all mistakes, in the order of their places."""
    ordered = [m.error for m in sorted(mistakes, key=lambda m: m.order)]
    if len(ordered) == 1:
        return ordered[0]
    return UserError(f"{len(ordered)} mistakes in {name}\n" + "\n".join(map(str, ordered)))
