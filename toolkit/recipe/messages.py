"""Translation of pydantic's validation errors to messages with a line number and a suggestion."""

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from toolkit.core.errors import UserError
from toolkit.core.yaml_document import Document, KeyPath, Mistake, dump_flow
from toolkit.recipe.fields import NAME_RULE
from toolkit.recipe.json_schema import Node, Schema, nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def mistakes_in(error: ValidationError, document: Document, schema: Schema) -> list[Mistake]:
    """Converts a validation error of `document.data` to mistakes with positions.

    Args:
        error: Error from validating the data as `schema.model`.
        document: Document that was validated.
        schema: Schema of the expected format.
    """
    return _in_places(_without_branches(error.errors(include_url=False), schema), document, schema)


def _without_branches(errors: "list[ErrorDetails]", schema: Schema) -> "list[ErrorDetails]":
    """Replaces the errors of each branch of a union, which pydantic lists with the branch in the path, by one."""
    found: dict[KeyPath, ErrorDetails] = {}
    for error in errors:
        loc = error["loc"]
        union = next((loc[:n] for n in range(1, len(loc)) if schema.is_union(loc[:n])), None)
        found[union or loc] = {**error, "loc": union, "type": "union"} if union else error
    return list(found.values())


def _in_places(errors: "list[ErrorDetails]", document: Document, schema: Schema) -> list[Mistake]:
    found = []
    # Follow-up errors are dropped: a key reported missing because it is misspelt, a list with invalid items.
    misspelt = [e["loc"] for e in errors if e["type"] == "extra_forbidden"]
    meant = {(*loc[:-1], _sibling(loc, schema)) for loc in misspelt}
    around = {e["loc"][:n] for e in errors for n in range(len(e["loc"]))}
    wrong = {error["loc"] for error in errors}
    for error in errors:
        if (error["type"] == "missing" and error["loc"] in meant) or error["loc"] in around:
            continue
        if error["loc"][:1] == ("tasks",) and error["loc"][2:] in wrong:
            continue  # merged from the recipe's section, where the same error is reported
        path, what, instead = _in_words(error, document.data, schema)
        place = document.place(path)
        found.append(Mistake(place.order, UserError(what, where=place.text, instead=instead)))
    return found


def _in_words(error: "ErrorDetails", data: Any, schema: Schema) -> tuple[KeyPath, str, str]:
    """Returns the key, the description of the error, and what to write instead."""
    path, value = error["loc"], _written(data, error["loc"], error["input"])
    if error["type"] == "recipe":  # raised by a validator of this package, see `wrong`
        path = (*path, *error["ctx"]["at"])
        return path, f"{dotted(path)}: {error['ctx']['what']}".removeprefix(": "), error["ctx"]["instead"]
    if path[-1] == "[key]" and error["type"] != "extra_forbidden":  # pydantic's mark of the keys of a dict
        path = path[:-1]
        if schema.known_keys(schema.node_at(path[:-1]) or {}):
            return path, f"unknown key `{dotted(path)}`", _known_instead(path, data, schema)
        return path, f"`{path[-1]}` is not a valid folder name", NAME_RULE
    if error["type"] == "extra_forbidden":
        return path, f"unknown key `{dotted(path)}`", _known_instead(path, data, schema)
    if error["type"] == "missing":
        described = schema.described(path)
        return path, f"`{dotted(path)}` is missing", f"{path[-1]}: <{described}>" if described else ""
    node = schema.node_at(path)
    assert node is not None, path
    return path, f"{dotted(path)} must be {schema.wanted(node)}, not {_shown(value)}", _hint(node, value, schema)


def _written(data: Any, path: KeyPath, otherwise: Any) -> Any:
    """Returns the value at a path of the document; pydantic's input is that of a branch, or of a validator."""
    for key in path:
        try:
            data = data[key]
        except (LookupError, TypeError):
            return otherwise
    return data


def _sibling(path: KeyPath, schema: Schema) -> str:
    return nearest(str(path[-1]), schema.known_keys(schema.node_at(path[:-1]) or {}))


def _known_instead(path: KeyPath, data: Any, schema: Schema) -> str:
    """For an unknown key, suggests the same key in a subsection, a similar sibling, the key elsewhere, or all keys."""
    around, same = path[:-1], [p for p in schema.candidates(data) if p[-1] == path[-1]]
    inside = [".".join(p) for p in same if p[: len(around)] == around]
    if len(inside) == 1:
        return inside[0]
    elsewhere = [".".join(p) for p in same if p[0] == path[0]]
    siblings = schema.known_keys(schema.node_at(around) or {})
    return _sibling(path, schema) or " or ".join(elsewhere) or f"one of {', '.join(siblings)}"


def _hint(node: Node, value: Any, schema: Schema) -> str:
    """Suggests a valid value."""
    node = schema.resolved(node)
    if node.get("type") == "array" and isinstance(value, str | int | float):
        return f"[{dump_flow(value)}]"
    if node.get("type") == "string" and isinstance(value, bool):
        return f'"{dump_flow(value)}", in quotes'
    if node.get("exclusiveMaximum") == 1 and isinstance(value, int | float) and 1 < value <= 100:
        return f"{value / 100:g}"
    return ""


def dotted(path: KeyPath) -> str:
    """Formats a key path, e.g. `student.pruners[0].pattern`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a section"
    if value is None:
        return "null"
    text = repr(value) if isinstance(value, str) else dump_flow(value)
    return text if len(text) <= 60 else text[:57] + "…"


def together(mistakes: list[Mistake], name: str) -> UserError:
    """Combines mistakes to one error, in the order of their positions."""
    ordered = [m.error for m in sorted(mistakes, key=lambda m: m.order)]
    if len(ordered) == 1:
        return ordered[0]
    return UserError(f"{len(ordered)} errors in {name}\n" + "\n".join(map(str, ordered)), parts=ordered)
