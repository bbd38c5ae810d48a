"""Manifests and recipes without the absolute paths of the machine that wrote them."""

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from toolkit.core.yaml_document import dump_yaml, parse_yaml
from toolkit.recipe import Recipe
from toolkit.recipe.load import dump_recipe
from toolkit.recipe.references import HUB_PREFIX, HUB_SPLIT, is_hub
from toolkit.reporting.formatting import portable

_HOME = re.compile(r"~\w*/")


def without_paths(value: Any, known: Any = ()) -> Any:
    """Returns nested values with absolute paths shortened to their last part, or as many as tell them apart.

    Inside of longer texts, paths that are among the values or known are replaced as they are, with spaces and commas;
    what looks like another one is shortened to its last part.

    Args:
        value: The values.
        known: More values, such as a recipe, whose paths may occur in the texts.
    """
    names = _short_names(sorted({*_paths(value), *_paths(known)}))
    longest_first = sorted(names, key=len, reverse=True)
    any_known = re.compile(rf"(?<![\w./…*])(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})(?!\w)")
    return _shortened(value, names, any_known)


def recipe_of_task(recipe: Recipe, task: str) -> str:
    """Returns the YAML of a recipe with one of its tasks, and those whose texts its corpus reads, without paths."""
    read = recipe.corpus.all_tasks if recipe.corpus else ()
    kept = {name: section for name, section in recipe.tasks.items() if name == task or name in read}
    text = dump_recipe(recipe.model_copy(update={"tasks": kept}))
    return dump_yaml(without_paths(parse_yaml(text, recipe.name, lines=False).data))


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in (*value, *value.values()):
            yield from _paths(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _paths(inner)
    elif isinstance(value, str) and _is_path(path := _local_part(value)):
        yield path


def _local_part(text: str) -> str:
    """Returns the name of the data set in a reference to a split on the hub, which may be a folder; else the text."""
    found = HUB_SPLIT.fullmatch(text.removeprefix(HUB_PREFIX)) if is_hub(text) else None
    return found["name"] if found else text


def _is_path(text: str) -> bool:
    path = PurePath(text)
    return "\n" not in text and (path.is_absolute() or _HOME.match(text) is not None) and path.name != ""


def _short_names(paths: list[str]) -> dict[str, str]:
    """Returns for each path its shortest end that is no end of another one."""
    parts = {path: PurePath(path).parts[1:] for path in paths}
    names = {}
    for path, own in parts.items():
        others = [found for other, found in parts.items() if other != path]
        ends = (own[-depth:] for depth in range(1, len(own) + 1))
        unique = next((end for end in ends if all(other[-len(end) :] != end for other in others)), own)
        names[path] = "/".join(unique)
    return names


def _shortened(value: Any, names: dict[str, str], any_known: re.Pattern[str]) -> Any:
    if isinstance(value, dict):
        return {_shortened(k, names, any_known): _shortened(inner, names, any_known) for k, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(inner, names, any_known) for inner in value]
    if not isinstance(value, str):
        return value
    path = _local_part(value)
    if path in names:
        return value.replace(path, names[path], 1)
    return portable(any_known.sub(lambda found: names[found[0]], value))
