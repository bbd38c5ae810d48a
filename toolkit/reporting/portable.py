"""Manifests and recipes without the absolute paths of the machine that wrote them."""

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from toolkit.core.yaml_document import dump_yaml, parse_yaml
from toolkit.recipe import Recipe
from toolkit.recipe.load import dump_recipe
from toolkit.reporting.formatting import portable


def without_paths(value: Any) -> Any:
    """Returns nested values with absolute paths shortened to their last part, or as many as tell them apart.

    Paths inside of longer texts are shortened to their last part.
    """
    return _shortened(value, _short_names(sorted(set(_paths(value)))))


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
    elif isinstance(value, str) and _is_path(value):
        yield value


def _is_path(text: str) -> bool:
    return "\n" not in text and PurePath(text).is_absolute() and PurePath(text).name != ""


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


def _shortened(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {_shortened(key, names): _shortened(inner, names) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(inner, names) for inner in value]
    if isinstance(value, str):
        return names[value] if value in names else portable(value)
    return value
