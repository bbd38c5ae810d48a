"""A parsed INC file, and the translation plan built from one or more of them."""

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from toolkit.core.errors import UserError
from toolkit.core.yaml_document import Document, KeyPath, Place, read_yaml
from toolkit.recipe.fields import Section
from toolkit.recipe.inc.schema import IncFile
from toolkit.recipe.json_schema import Schema
from toolkit.recipe.load import fill_empty
from toolkit.recipe.messages import dotted, mistakes_in, together

_INC = Schema(IncFile)


@dataclass(frozen=True)
class IncFlags:
    """Command-line flags of INC's example scripts; None for flags that are not given."""

    model: str | None = None
    teacher: str | None = None
    task: str | None = None
    kind: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    columns: tuple[str, ...] | None = None
    label: str | None = None
    labels: tuple[str, ...] | None = None
    temperature: float | None = None
    loss_weights: tuple[float, ...] | None = None
    learning_rate: float | None = None
    num_train_epochs: int | None = None
    per_device_train_batch_size: int | None = None
    max_seq_length: int | None = None
    seed: int | None = None
    name: str | None = None
    ignored: tuple[tuple[str, str], ...] | None = None  # other flags of INC's scripts, and why they have no effect


@dataclass
class IncPlan:
    """Recipe translated from INC's files, with the origin of every value.

    Attributes:
        recipe: Data of a recipe, as read from YAML.
        origin: Key of the recipe -> origin of its value: line of a file, flag, or default.
        notes: Messages about ignored keys and flags.
        run_folder: INC's workspace folder, if a file sets it.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    origin: dict[KeyPath, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    run_folder: str | None = None

    def put(self, path: KeyPath, value: Any, origin: str) -> None:
        """Sets a key of the recipe and the origin of its value."""
        section: Any = self.recipe
        for key in path[:-1]:
            section = section.setdefault(key, {}) if isinstance(section, dict) else section[key]
        section[path[-1]] = value
        self.origin[path] = origin

    def document(self, name: str) -> Document:
        """Returns the recipe as a document whose positions refer to the lines of INC's files.

        Args:
            name: Name of the document in error messages.
        """
        places: dict[KeyPath, Place] = {(): Place(0, name)}
        for order, (path, origin) in enumerate(self.origin.items(), start=1):
            places[path] = Place(order, origin)
        for path, origin in self.origin.items():
            for length in range(1, len(path) if re.search(r":\d+$", origin) else 0):
                places.setdefault(path[:length], places[path])  # a section has the position of its first key
        return Document(data=copy.deepcopy(self.recipe), places=places)

    def note(self, where: str, key: str, why: str) -> None:
        """Adds a message about an ignored key."""
        line = f"ignored: {where}: {key}: {why}"
        if line not in self.notes:  # two stages can ignore the same key
            self.notes.append(line)


class IncSource:
    """A parsed INC file that records which of its keys have been used."""

    def __init__(self, path: Path, document: Document, file: IncFile) -> None:
        self.path, self.document, self.file = path, document, file
        self._used: set[KeyPath] = set()

    def written(self, *path: str | int) -> bool:
        """Returns whether the file contains this key."""
        return path in self.document.places

    def peek(self, *path: str | int) -> Any:
        """Returns the value of a key, or INC's default; None inside an absent section."""
        value: Any = self.file
        for key in path:
            if value is None:
                return None
            value = getattr(value, str(key)) if isinstance(value, Section) else value[key]
        return value

    def take(self, *path: str | int) -> Any:
        """Returns the value of a key and marks the key, with everything in it, as used."""
        self._used.add(path)
        return self.peek(*path)

    def where(self, *path: str | int) -> str:
        """Returns the origin of a key: `prune.yaml:12`, or `INC's default`."""
        return self.document.place(path).text if self.written(*path) else "INC's default"

    def refuse(self, path: KeyPath, why: str, instead: str = "") -> UserError:
        """Returns an error about a key, for the caller to raise."""
        return UserError(f"{dotted(path)}: {why}", where=self.document.place(path).text, instead=instead)

    def left_over(self) -> list[KeyPath]:
        """Returns the keys with values that the file contains and that were not used, in file order."""
        paths = [p for p in self.document.places if p]
        inner = {p[:n] for p in paths for n in range(1, len(p))}
        leaves = [p for p in paths if p not in inner and not any(p[: len(u)] == u for u in self._used)]
        return [p for p in leaves if not isinstance(self._raw(p), dict | list)]

    def _raw(self, path: KeyPath) -> Any:
        value = self.document.data
        for key in path:
            value = value[key]
        return value


def read_source(path: Path) -> IncSource:
    """Reads and validates one INC file.

    Raises:
        UserError: The file is invalid; the message lists every error with its line.
    """
    document = read_yaml(path)
    if not isinstance(document.data, dict):
        what = "the file is empty" if document.data is None else "an INC file must be a mapping of `key: value` lines"
        raise UserError(what, where=str(path), instead="model: {name: mine, framework: pytorch}")
    fill_empty(document, _INC)
    document.places = {path: place for path, place in document.places.items() if path not in document.empty}
    file = None
    try:
        file = IncFile.model_validate(document.data)
    except ValidationError as error:
        document.mistakes += mistakes_in(error, document, _INC)
    if document.mistakes:
        raise together(document.mistakes, str(path))
    assert file is not None
    return IncSource(path, document, file)
