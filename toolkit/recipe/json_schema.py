"""Queries on the JSON schema of a YAML format: sibling keys, descriptions and allowed values.

Error messages and overrides are derived from the schema, so that no list of keys has to be maintained.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from toolkit.core.yaml_document import KeyPath
from toolkit.recipe import Recipe
from toolkit.recipe.fields import EXCLUSIVE, NAME_RULE, Section

Node = dict[str, Any]
_KINDS = {"integer": "an integer", "number": "a number", "boolean": "true or false", "string": "a string"}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


@dataclass(frozen=True)
class Schema:
    """The JSON schema of one format.

    Attributes:
        model: The pydantic type of the entire file.
    """

    model: type[Section]

    @property
    def root(self) -> Node:
        """The JSON schema."""
        return _json(self.model)

    def node_at(self, path: KeyPath) -> Node | None:
        """Returns the schema of a key's value, or None if the format has no such key."""
        node: Node | None = self.root
        for key in path:
            node = _child(self.resolved(node), key) if node is not None else None
        return node

    def resolved(self, node: Node) -> Node:
        """Follows references and skips the null branch of optional values."""
        while True:
            if "$ref" in node:
                node = self.root["$defs"][node["$ref"].rpartition("/")[2]]
            elif "anyOf" in node:
                node = _branches(node)[0]
            else:
                return node

    def is_union(self, path: KeyPath) -> bool:
        """Returns whether a key takes values of several types, null aside."""
        return len(_branches(self.node_at(path) or {})) > 1

    def is_section(self, node: Node) -> bool:
        """Returns whether the value is a section with keys."""
        return self.resolved(node).get("type") == "object"

    def known_keys(self, node: Node, data: object = None) -> list[str]:
        """Returns the keys allowed in a section; for user-defined keys (`tasks`), the keys of `data`."""
        node = self.resolved(node)
        if "properties" in node:
            return list(node["properties"])
        if "propertyNames" in node and "enum" in node["propertyNames"]:
            return list(node["propertyNames"]["enum"])
        return list(data) if isinstance(data, dict) else []

    def described(self, path: KeyPath) -> str:
        """Returns the description of a key; empty if there is none."""
        node = self.node_at(path) or {}
        return str(node.get("description") or self.resolved(node).get("description", "")).replace("\n", " ")

    def candidates(
        self, data: object, node: Node | None = None, path: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, ...]]:
        """Yields every key that a file with these sections may have, whether it is written or not.

        Absent sections without a default are skipped: their stage does not run.
        """
        node = node if node is not None else self.root
        written = data if isinstance(data, dict) else {}
        for key in self.known_keys(node, written):
            yield (*path, key)
            child = _child(self.resolved(node), key)
            assert child is not None
            if self.is_section(child) and (isinstance(written.get(key), dict) or _on_by_default(child, key, written)):
                yield from self.candidates(written.get(key), child, (*path, key))

    def wanted(self, node: Node) -> str:
        """Returns a description of the allowed values, e.g. `an integer > 0`."""
        if len(branches := _branches(node)) > 1:
            return ", or ".join(map(self.wanted, branches))
        node = self.resolved(node)
        if "enum" in node:
            return "one of " + ", ".join(map(str, node["enum"]))
        if "const" in node:
            return str(node["const"])
        if node.get("type") == "array":
            return self._wanted_list(node)
        if node.get("type") == "object":
            keys = ", ".join(self.known_keys(node)) or "name: value"
            return f"a section ({keys})"
        if "pattern" in node:
            return f"a name ({NAME_RULE})"
        kind = _KINDS[node["type"]]
        if node.get("minLength"):
            return f"{kind} that is not empty"
        bounds = " and ".join(f"{sign} {node[k]:g}" for k, sign in _BOUNDS.items() if k in node)
        return " ".join([kind, bounds]).strip()

    def _wanted_list(self, node: Node) -> str:
        if "prefixItems" in node:
            return "a list of " + " and ".join(self.wanted(item) for item in node["prefixItems"])
        item = self.resolved(node["items"])
        each = f"one of {', '.join(item['enum'])}" if "enum" in item else self.wanted(item)
        low, high = node.get("minItems", 0), node.get("maxItems")
        if high:
            length = (
                f"of {low} {'or' if high == low + 1 else 'to'} {high} values"
                if low < high
                else f"of {low} value{'' if low == 1 else 's'}"
            )
        else:
            length = "of one or more values" if low else "of values"
        return f"a list {length}, each {each}"


RECIPE = Schema(Recipe)


@cache
def _json(model: type[Section]) -> Node:
    return model.model_json_schema()


def _branches(node: Node) -> list[Node]:
    """Returns the alternatives of a union without null; empty if the value has one type only."""
    return [branch for branch in node.get("anyOf", ()) if branch.get("type") != "null"]


def _on_by_default(child: Node, key: str, written: dict[str, Any]) -> bool:
    excluded = any(key in group and group & written.keys() for group in EXCLUSIVE)
    return key not in written and not excluded and child.get("default") is not None


def nearest(word: str, words: list[str]) -> str:
    """Returns the closest match of a misspelt word; empty if there is none."""
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
