"""What the recipe's JSON schema knows about a key: its neighbours, its description, what its value must be.

The schema is the one source for error messages and for overrides, so that neither has a list of keys of its own.
"""

from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any

from toolkit.recipe import Recipe
from toolkit.recipe_base import NAME_RULE
from toolkit.yaml_lines import KeyPath

Node = dict[str, Any]
_KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a text"}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


@cache
def schema() -> Node:
    """The JSON schema of recipes."""
    return Recipe.model_json_schema()


def node_at(path: KeyPath) -> Node | None:
    """The schema of a key's value, or None when the recipe knows no such key."""
    node: Node | None = schema()
    for key in path:
        node = _child(resolved(node), key) if node is not None else None
    return node


def resolved(node: Node) -> Node:
    """Follows references, and looks through `or null`."""
    while True:
        if "$ref" in node:
            node = schema()["$defs"][node["$ref"].rpartition("/")[2]]
        elif "anyOf" in node:
            node = next(branch for branch in node["anyOf"] if branch.get("type") != "null")
        else:
            return node


def is_section(node: Node) -> bool:
    """Whether the value has keys."""
    return resolved(node).get("type") == "object"


def known_keys(node: Node, data: object = None) -> list[str]:
    """The keys that a section may have; where the user names them (`tasks`), those that `data` has."""
    node = resolved(node)
    if "properties" in node:
        return list(node["properties"])
    if "propertyNames" in node and "enum" in node["propertyNames"]:
        return list(node["propertyNames"]["enum"])
    return list(data) if isinstance(data, dict) else []


def described(path: KeyPath) -> str:
    """The description of a key, empty when there is none."""
    node = node_at(path) or {}
    return str(node.get("description") or resolved(node).get("description", "")).replace("\n", " ")


def candidates(data: object, node: Node | None = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key that a recipe with these sections may have, written in it or not.

    Sections that are absent and have no default are not entered: their stage does not run.
    """
    node = node if node is not None else schema()
    written = data if isinstance(data, dict) else {}
    for key in known_keys(node, written):
        yield (*path, key)
        child = _child(resolved(node), key)
        assert child is not None
        if is_section(child) and (isinstance(written.get(key), dict) or _on_by_default(child, key, written)):
            yield from candidates(written.get(key), child, (*path, key))


def _on_by_default(child: Node, key: str, written: dict[str, Any]) -> bool:
    return key not in written and child.get("default") is not None


def wanted(node: Node) -> str:
    """What a value must be, in words: `a whole number > 0`."""
    node = resolved(node)
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    if node.get("type") == "array":
        return _wanted_list(node)
    if node.get("type") == "object":
        keys = ", ".join(known_keys(node)) or "name: value"
        return f"a section ({keys})"
    if "pattern" in node:
        return f"a name ({NAME_RULE})"
    kind = _KINDS[node["type"]]
    if node.get("minLength"):
        return f"{kind} that is not empty"
    return " ".join([kind, " and ".join(f"{sign} {node[k]:g}" for k, sign in _BOUNDS.items() if k in node)]).strip()


def _wanted_list(node: Node) -> str:
    if "prefixItems" in node:
        return "a list of " + " and ".join(wanted(item) for item in node["prefixItems"])
    item = resolved(node["items"])
    each = f"one of {', '.join(item['enum'])}" if "enum" in item else wanted(item)
    low, high = node.get("minItems", 0), node.get("maxItems")
    if high:
        length = f"of {low} or {high} values" if low < high else f"of {low} value"
    else:
        length = "of one or more values" if low else "of values"
    return f"a list {length}, each {each}"


def nearest(word: str, words: list[str]) -> str:
    """The word that was probably meant; empty when none is like it."""
    folded = {w.lower(): w for w in words}
    close = get_close_matches(word.lower(), list(folded), n=1, cutoff=0.6)
    return folded[close[0]] if close else ""


def _child(node: Node, key: str | int) -> Node | None:
    if isinstance(key, int):
        items = node.get("prefixItems", [])
        child = items[key] if key < len(items) else node.get("items")
    elif "properties" in node:
        child = node["properties"].get(key)
    else:
        child = node.get("additionalProperties") or next(iter(node.get("patternProperties", {}).values()), None)
    return child if isinstance(child, dict) else None
