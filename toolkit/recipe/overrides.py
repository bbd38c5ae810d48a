"""Command-line overrides of a recipe: `key=value`, with the key shortened to any unambiguous part."""

from typing import Any

from toolkit.core.errors import UserError
from toolkit.core.yaml_document import Document, Mistake, Place, parse_yaml
from toolkit.recipe import OWN_STAGES, Recipe
from toolkit.recipe.fields import drop_excluded
from toolkit.recipe.json_schema import RECIPE, nearest


def apply_override(document: Document, text: str, place: Place) -> tuple[tuple[str, ...], Any]:
    """Applies an override to the document and returns the full key and the value.

    Raises:
        UserError: The override has no `=`, or its key is unknown or ambiguous.
    """
    name, equals, value_text = (part.strip() for part in text.partition("="))
    if not (name and equals and value_text):
        raise UserError("not of the form key=value", where=place.text, instead="student.steps=100, or teacher=null")
    path = _find(name, list(RECIPE.candidates(document.data)), place)
    value = parse_yaml(value_text, place.text, lines=False)
    document.mistakes += [Mistake(place.order, error) for _, error in value.mistakes]
    set_key(document, path, value.data, place)
    if path[0] in OWN_STAGES:  # an override of a stage applies to all tasks
        tasks = document.data.get("tasks")
        for name in tasks if isinstance(tasks, dict) else ():
            old = _take_out(document, own := ("tasks", name, *path), place)
            if isinstance(old, dict) and isinstance(value.data, dict):
                set_key(document, own, {}, place)  # keeps the task's section for later overrides
    return path, value.data


def require_effect(recipe: Recipe, path: tuple[str, ...], value: Any, place: Place) -> None:
    """Rejects an override of a stage that does not run, because a checkpoint is used instead of it.

    Raises:
        UserError: The override has no effect.
    """
    own = path[0] == "tasks" and len(path) > 2
    stage = path[2] if own else path[0]
    tasks = [task for name, task in recipe.tasks.items() if not own or name == path[1]]
    replaced = stage in recipe.ready or (bool(tasks) and all(stage in task.ready for task in tasks))
    if replaced and value is not None:
        what = f"the override has no effect: {stage} does not run, because a checkpoint is used instead (`ready`)"
        raise UserError(what, where=place.text, instead="remove it from `ready`, or leave out the override")


def set_key(document: Document, path: tuple[str, ...], value: Any, place: Place) -> None:
    """Sets a key of a recipe and its position; creates missing sections on the path.

    Nothing is set in what is not a section: another override has replaced it by null or by a value to be refused.
    """
    section = document.data
    for key in path[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            return
    _take_out(document, path, place)
    section[path[-1]] = value


def _take_out(document: Document, path: tuple[str, ...], place: Place) -> Any:
    """Removes a key's old value, the keys that exclude it, and pruner values that would take precedence over it.

    Args:
        document: The recipe.
        path: Path of the key; nothing is changed if its section does not exist.
        place: Position of the new value.

    Returns:
        The old value, or None.
    """
    section = document.data
    for key in path[:-1]:
        section = section.get(key) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        return None
    drop_excluded(section, path[-1])
    pruners = section.get("pruners") if path[-2:-1] == ("weight_compression",) else None
    for pruner in pruners if isinstance(pruners, list) else ():
        if isinstance(pruner, dict):
            pruner.pop(path[-1], None)
            drop_excluded(pruner, path[-1])
    document.places = {p: at for p, at in document.places.items() if p[: len(path)] != path} | {path: place}
    return section.pop(path[-1], None)


def _find(name: str, known: list[tuple[str, ...]], place: Place) -> tuple[str, ...]:
    """Returns the full path of the only key that matches `name`."""
    dotted = {".".join(path): path for path in known}
    if name in dotted:
        return dotted[name]
    matches = _of_recipe([full for full in dotted if _is_part(name.split("."), full.split("."))])
    if len(matches) == 1:
        return dotted[matches[0]]
    if matches:
        raise UserError(f"`{name}` is ambiguous", where=place.text, instead=f"one of {', '.join(matches)}")
    last = name.rpartition(".")[2]
    meant = nearest(last, [path[-1] for path in known])
    near = _of_recipe([full for full, path in dotted.items() if path[-1] == meant])
    raise UserError(
        f"this recipe has no key `{name}`",
        where=place.text,
        instead=" or ".join(near) or f"a key of {', '.join(p[0] for p in known if len(p) == 1)}",
    )


def _of_recipe(found: list[str]) -> list[str]:
    """Drops matches that another one implies, such as a task's stage by the recipe's.

    `transfer.pruning` is implied by `student`, and `transfer.tuning` by `quantize`.
    """
    return [
        f
        for f in found
        if not (f.startswith("transfer.pruning.") and f.replace("transfer", "student", 1) in found)
        and not (f.startswith("transfer.tuning.") and f.replace("transfer", "quantize", 1) in found)
        and not (f.startswith("tasks.") and f.split(".", 2)[-1] in found)
    ]


def _is_part(parts: list[str], full: list[str]) -> bool:
    """Returns whether `parts` is a subsequence of `full` that ends in the last key of `full`."""
    rest = iter(full[:-1])
    return parts[-1] == full[-1] and all(part in rest for part in parts[:-1])
