"""YAML reader that records the line of every key and follows the core schema of YAML 1.2.

PyYAML implements YAML 1.1, in which `1e-4` is a string, `no` is false and the pattern `2:4` is 124. Only node trees are
built and walked, so a tag cannot construct a Python object.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from toolkit.core.errors import UserError

KeyPath = tuple[str | int, ...]

# Far above the size of any recipe. The limits bound time and memory for malicious files and files of another kind.
MAX_BYTES = 1_000_000
MAX_DEPTH = 50  # sections within sections
MAX_VALUES = 20_000  # aliases count once per use: a few nested ones can expand to billions of values

_YAML = "tag:yaml.org,2002:"
# Tags that only state the type of the node. !Pruner is Intel Neural Compressor's.
_SHAPES = {"map", "seq", "!Pruner"}
_PLAIN_WORDS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)


class _Loader(yaml.SafeLoader):
    """Loader with its own table of plain scalars, so that PyYAML's process-wide loaders are not modified."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's class attribute)


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes strings which YAML 1.1 or 1.2 would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _PLAIN_WORDS:
    _Loader.add_implicit_resolver(_YAML + _tag, re.compile(f"(?:{_pattern})$"), _first)
    _Dumper.add_implicit_resolver(_YAML + _tag, re.compile(f"(?:{_pattern})$"), _first)


class Place(NamedTuple):
    """Position in a document: `text` is shown in messages, `order` sorts mistakes."""

    order: int
    text: str


class Mistake(NamedTuple):
    """An error in a document; mistakes are reported in the order of their places."""

    order: int
    error: UserError


@dataclass
class Document:
    """Parsed content of a YAML document, with the position of every key.

    Attributes:
        data: Dicts with string keys, lists, strings, numbers, booleans and None.
        places: Key path -> position of the key or list item; `()` is the entire document.
        empty: Keys with nothing after the colon (`data` has None there, as for `null`).
        mistakes: Errors found while reading, to be reported together with validation errors.
    """

    data: Any = None
    places: dict[KeyPath, Place] = field(default_factory=dict)
    empty: dict[KeyPath, None] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def place(self, path: KeyPath) -> Place:
        """Returns the position of a key, or of the innermost enclosing section that is written."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def add_mistake(self, path: KeyPath, what: str, instead: str = "") -> None:
        """Adds a mistake at a key."""
        place = self.place(path)
        self.mistakes.append(Mistake(place.order, UserError(what, where=place.text, instead=instead)))


def read_yaml(path: Path) -> Document:
    """Reads a YAML file.

    Raises:
        UserError: The file is missing, unreadable or too large, or not valid YAML.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            what = f"larger than {MAX_BYTES / 1e6:g} MB: too large for a configuration file"
            raise UserError(what, where=str(path))
        text = raw.decode("utf-8")
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), instead=_neighbours(path)) from None
    except IsADirectoryError:
        raise UserError("is a folder, not a file", where=str(path), instead="the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not a UTF-8 text file ({error.reason})", where=str(path)) from None
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror})", where=str(path)) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str, *, lines: bool = True) -> Document:
    """Parses a YAML text.

    Args:
        text: The YAML text.
        name: Name of the document in error messages.
        lines: Whether positions are shown as `<name>:<line>` instead of `<name>`.

    Raises:
        UserError: The text is not valid YAML, is nested too deeply, or has too many values after expanding aliases.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark and lines else name
        raise UserError(_syntax(error), where=where, instead=_syntax_hint(text, error)) from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {str(error).splitlines()[0]}", where=name) from None
    except RecursionError:
        raise UserError(f"nested too deeply: more than {MAX_DEPTH} levels", where=name) from None
    reader = _Reader(name, lines)
    if root is not None:
        reader.document.data = reader.value(root, ())
    return reader.document


def dump_yaml(data: Any) -> str:
    """Returns YAML that `parse_yaml` reads back as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def dump_flow(data: Any) -> str:
    """Returns YAML in flow style, on one line, that `parse_yaml` reads back as the same data."""
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=10**6)
    if "\n" in text.removesuffix("...\n").strip():  # a multi-line string
        text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=True, default_style='"', width=10**6)
    return text.removesuffix("...\n").strip()


class _Reader:
    """Converts a node tree to a `Document`."""

    def __init__(self, name: str, lines: bool) -> None:
        self.name, self.lines = name, lines
        self.document = Document(places={(): Place(0, name)})
        self.open: set[int] = set()  # ids of the enclosing nodes, to detect an anchor that contains itself
        self.values = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        if id(node) in self.open:
            self.document.add_mistake(path, "this anchor contains itself")
            return None
        self._limit(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag.removeprefix(_YAML) not in _SHAPES:
            self.document.add_mistake(
                path, f"unknown tag {node.tag!r}", instead="remove the tag; only !Pruner is known"
            )
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return [self._item(child, (*path, i)) for i, child in enumerate(node.value)]
        finally:
            self.open.remove(id(node))

    def _limit(self, node: yaml.Node) -> None:
        self.values += 1
        where = f"{self.name}:{node.start_mark.line + 1}" if self.lines else self.name
        if len(self.open) > MAX_DEPTH:
            raise UserError(f"nested too deeply: more than {MAX_DEPTH} levels", where=where)
        if self.values > MAX_VALUES:
            raise UserError(f"more than {MAX_VALUES} values, aliases (*name) counted once per use", where=where)

    def _item(self, node: yaml.Node, path: KeyPath) -> Any:
        self._note(node, path)
        return self.value(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        inherited: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _YAML + "merge":
                inherited = self._merged(value_node, path) | inherited
        for key_node, value_node in node.value:
            if key_node.tag == _YAML + "merge":
                continue
            key = key_node.value
            if not isinstance(key, str):
                self.document.add_mistake(path, "a key must be a plain value, not a list or section")
                continue
            before = self.document.place((*path, key)).order
            self._note(key_node, (*path, key))
            if key in own:
                what = f"duplicate key `{key}`, first defined in line {before}"
                self.document.add_mistake((*path, key), what, instead="keep only one of them")
            if key in own or key in inherited:
                self._forget((*path, key), own.get(key, inherited.get(key)))
            own[key] = self._mapping_value(value_node, (*path, key))
        return inherited | own

    def _forget(self, path: KeyPath, value: Any) -> None:
        """Removes the recorded empty keys of a value that a later key replaces."""
        inside = isinstance(value, dict | list)
        for gone in [p for p in self.document.empty if p[: len(path)] == path] if inside else [path]:
            self.document.empty.pop(gone, None)

    def _mapping_value(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.value == "" and node.tag == _YAML + "null":
            self.document.empty[path] = None
        return self.value(node, path)

    def _merged(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        """Returns the content of `<<: *base` or `<<: [*first, *second]`; earlier sections take precedence."""
        result: dict[str, Any] = {}
        for base in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            value = self.value(base, path)
            if isinstance(value, dict):
                result = value | result
            else:
                self.document.add_mistake(path, "`<<` needs a section", instead="<<: *name, with &name on a section")
        return result

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text = node.value
        try:
            match node.tag.removeprefix(_YAML):
                case "str" | "merge":
                    return text
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return int(text)
                case "float":
                    return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
        except (ValueError, KeyError):
            what = f"{text[:40]!r} is not a valid value for the tag {node.tag!r}"
            self.document.add_mistake(path, what, instead="remove the tag")
            return None
        if node.tag == "!Pruner" and not text:  # a pruner with all defaults
            return {}
        self.document.add_mistake(path, f"unknown tag {node.tag!r}", instead="remove the tag; only !Pruner is known")
        return None

    def _note(self, node: yaml.Node, path: KeyPath) -> None:
        line = node.start_mark.line + 1
        self.document.places[path] = Place(line, f"{self.name}:{line}" if self.lines else self.name)


def _syntax(error: yaml.MarkedYAMLError) -> str:
    context = f" {error.context}" if error.context else ""
    return f"not valid YAML: {error.problem}{context}"


def _syntax_hint(text: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "indent with spaces, not tabs"
    if line.count(": ") > 1:
        return "put quotes around text that contains ': '"
    return ""


def _neighbours(path: Path) -> str:
    """Lists the YAML files in the folder of the missing one."""
    found = sorted(map(str, path.parent.glob("*.y*ml"))) if path.parent.is_dir() else []
    return " or ".join(found) if found else "a path to a recipe; `pruneofa init` writes one"
