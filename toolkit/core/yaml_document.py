"""YAML with the line of every key, and without the surprises of YAML 1.1.

PyYAML follows YAML 1.1, in which `1e-4` is a text, `no` is false and the pattern `2:4` is 124. Here plain words are
read by the core rules of YAML 1.2. Only node trees are built and walked: no tag can make an object.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from toolkit.core.errors import UserError

KeyPath = tuple[str | int, ...]

# No recipe comes near these. They keep a file that is something else, or malicious, from costing time and memory.
MAX_BYTES = 1_000_000
MAX_DEPTH = 50  # sections within sections
MAX_VALUES = 20_000  # an alias counts as often as it is used: a few nested ones can stand for billions

_YAML = "tag:yaml.org,2002:"
# Tags that say no more than the shape of the value. !Pruner is Intel Neural Compressor's.
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
    """Its own table of plain words: PyYAML's loaders, shared by the whole process, stay as they are."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's class attribute)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what YAML 1.1 or 1.2 would take for something else than a text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _PLAIN_WORDS:
    _Loader.add_implicit_resolver(_YAML + _tag, re.compile(f"(?:{_pattern})$"), _first)
    _Dumper.add_implicit_resolver(_YAML + _tag, re.compile(f"(?:{_pattern})$"), _first)


class Place(NamedTuple):
    """Where something was written: for people, and for putting mistakes in order."""

    order: int
    text: str


class Mistake(NamedTuple):
    """Something wrong in a document; mistakes are told in the order of their places."""

    order: int
    error: UserError


@dataclass
class Document:
    """What a YAML text says, and where.

    Attributes:
        data: Dicts (all keys are texts), lists, texts, numbers, truth values, None.
        places: Where each key and list item was written; `()` is the whole text.
        empty: Keys with nothing after the colon (`data` has None there, as for `null`).
        mistakes: Found while reading, so that they can be told together with later ones.
    """

    data: Any = None
    places: dict[KeyPath, Place] = field(default_factory=dict)
    empty: dict[KeyPath, None] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def place(self, path: KeyPath) -> Place:
        """Of this key, or of the innermost section around it that was written."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def complain(self, path: KeyPath, what: str, instead: str = "") -> None:
        """Notes a mistake at a key."""
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
            raise UserError(f"larger than {MAX_BYTES / 1e6:g} MB: this is no file of settings", where=str(path))
        text = raw.decode("utf-8")
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path), instead=_neighbours(path)) from None
    except IsADirectoryError:
        raise UserError("this is a folder", where=str(path), instead="the YAML file in it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"this is not a text file in UTF-8 ({error.reason})", where=str(path)) from None
    except OSError as error:
        raise UserError(f"this file cannot be read ({error.strerror})", where=str(path)) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str, *, lines: bool = True) -> Document:
    """Reads a YAML text; its places are called `<name>:<line>`, or `<name>` without `lines`.

    Raises:
        UserError: It is not valid YAML, nested too deeply, or its aliases stand for too much.
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
    """YAML that `parse_yaml` reads back as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def dump_flow(data: Any) -> str:
    """The same on one line."""
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=10**6)
    if "\n" in text.removesuffix("...\n").strip():  # a text of several lines
        text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=True, default_style='"', width=10**6)
    return text.removesuffix("...\n").strip()


class _Reader:
    """Walks a node tree into a `Document`."""

    def __init__(self, name: str, lines: bool) -> None:
        self.name, self.lines = name, lines
        self.document = Document(places={(): Place(0, name)})
        self.open: set[int] = set()  # nodes around the current one: an anchor may contain itself
        self.values = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        if id(node) in self.open:
            self.document.complain(path, "this anchor contains itself")
            return None
        self._limit(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag.removeprefix(_YAML) not in _SHAPES:
            self.document.complain(path, f"unknown tag {node.tag!r}", instead="no tag; only !Pruner is known")
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
            raise UserError(f"more than {MAX_VALUES} values, aliases (*name) counted as often as used", where=where)

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
                self.document.complain(path, "a key must be one word, not a list or section")
                continue
            before = self.document.place((*path, key)).order
            self._note(key_node, (*path, key))
            if key in own:
                said = f"the key `{key}` is there twice, first in line {before}"
                self.document.complain((*path, key), said, instead="only one of them")
            if key in own or key in inherited:
                self._forget((*path, key), own.get(key, inherited.get(key)))
            own[key] = self._mapping_value(value_node, (*path, key))
        return inherited | own

    def _forget(self, path: KeyPath, value: Any) -> None:
        """The value of a key that is given anew: its empty keys are no more."""
        inside = isinstance(value, dict | list)
        for gone in [p for p in self.document.empty if p[: len(path)] == path] if inside else [path]:
            self.document.empty.pop(gone, None)

    def _mapping_value(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.value == "" and node.tag == _YAML + "null":
            self.document.empty[path] = None
        return self.value(node, path)

    def _merged(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        """`<<: *base` or `<<: [*first, *second]`; earlier ones win."""
        result: dict[str, Any] = {}
        for base in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            value = self.value(base, path)
            if isinstance(value, dict):
                result = value | result
            else:
                self.document.complain(path, "`<<` takes a section", instead="<<: *name, with &name on a section")
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
            self.document.complain(path, f"{text[:40]!r} is no value for the tag {node.tag!r}", instead="no tag")
            return None
        if node.tag == "!Pruner" and not text:  # a pruner with nothing but defaults
            return {}
        self.document.complain(path, f"unknown tag {node.tag!r}", instead="no tag; only !Pruner is known")
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
        return "spaces at the beginning of the line, not tabs"
    if line.count(": ") > 1:
        return "quotes around a text that contains ': '"
    return ""


def _neighbours(path: Path) -> str:
    """Recipes that lie where the missing one was looked for."""
    found = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    return f"one of {', '.join(found)}" if found else "a path to a recipe; `pruneofa init` writes one"
