"""Data sets of the Hugging Face hub: `hub:<dataset>[@revision]:<config>:<split>`. Loads no torch.

The id may also be the path of a local folder with the layout of a data set.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.core.files import content_hash, json_hash, user_path
from toolkit.recipe.references import HUB_FORM, HUB_PREFIX, HUB_SPLIT, LOCAL_PREFIXES

_DATA = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
Record = dict[str, Any]


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set.

    Attributes:
        dataset: Id on the hub, or path of a local folder with the layout of a data set.
        config: Configuration; empty for the data set's only one.
        split: Name of the split, or a slice of it.
        revision: Commit, tag or branch; None: the latest.
    """

    dataset: str
    config: str
    split: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """The reference as it is written in recipes."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUB_PREFIX}{self.dataset}{revision}:{self.config}:{self.split}"

    @property
    def folder(self) -> Path | None:
        """The data set's local folder; None: the data set is on the hub.

        Raises:
            UserError: The id is that of a local folder, which does not exist.
        """
        if self.revision:  # local folders have none
            return None
        folder = user_path(self.dataset)
        if folder.is_dir():
            return folder.resolve()
        if self.dataset.startswith(LOCAL_PREFIXES):
            raise UserError(
                "no such folder", where=self.name, instead=f"a folder with the layout of a data set, or {HUB_FORM}"
            )
        return None

    @property
    def content(self) -> str:
        """Identifies the rows in a cache key: content hash of a local folder, or the name of a split on the hub.

        Hashing the rows of a split on the hub would require downloading all of them.

        Raises:
            UserError: The local folder does not exist.
        """
        return json_hash([self.config, self.split, content_hash(self.folder)]) if self.folder else self.name

    def load(self, *, streaming: bool = False) -> Any:
        """Loads the split with `datasets`.

        Raises:
            UserError: The split does not exist, one of its files is empty, the hub cannot be reached, or a local folder
                would be loaded instead of the revision.
        """
        import datasets

        datasets.disable_progress_bars()
        folder = self.folder
        if folder is None and Path(self.dataset).is_dir():  # `datasets` would load and cache the folder instead
            raise UserError(
                "a local folder has the name of this data set, but only data sets on the hub have revisions",
                where=self.name,
                instead="the name without the revision to load the folder; or move it, or run in another directory",
            )
        try:
            return datasets.load_dataset(
                str(folder or self.dataset),
                self.config or None,
                split=self.split,
                revision=self.revision,
                streaming=streaming,
            )
        except Exception as error:  # the hub client and each file format raise different types
            empty = _empty_file(folder) if folder else None
            if empty or isinstance(error, StopIteration):  # raised by `datasets` for a file without rows
                raise UserError(
                    "the file is empty" if empty else "a file of the data set is empty",
                    where=str(empty or self.name),
                    instead="add rows, or remove the file",
                ) from None
            raise UserError(
                f"cannot load this split ({type(error).__name__}: {_first_line(error)})",
                where=self.name,
                instead="a connection (HF_HUB_OFFLINE unset), another name, or a local file",
            ) from None

    @property
    def file(self) -> Path:
        """Path of the copy that `fetched` caches. It changes whenever a file of a local folder changes.

        Raises:
            UserError: The local folder does not exist.
        """
        from huggingface_hub.constants import HF_HOME

        folder = self.folder
        dataset, state = (folder.name, [str(folder), _state(folder)]) if folder else (self.dataset, [])
        parts = (dataset, self.revision or "", self.config, self.split)
        readable = re.sub(r"[^\w.-]+", "_", "--".join(parts)).strip("_")
        # The slices [:80%] and [80%:] are equal without their signs; the hash distinguishes them.
        return Path(HF_HOME) / "pruneofa" / f"{readable}-{json_hash([*parts, *state])[:12]}.parquet"

    def fetched(self) -> Path:
        """Returns the path of the split as one Parquet file, downloaded once. Class numbers stay numbers.

        Raises:
            UserError: The split cannot be loaded (see `load`).
        """
        file = self.file
        if not file.is_file():
            split = self.load()
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as scratch:  # another run may download it too
                split.to_parquet(Path(scratch) / file.name)
                (Path(scratch) / file.name).replace(file)  # atomic: a file of this name is complete
        return file

    def texts(self, column: str) -> Iterator[str]:
        """Streams the texts of a column; nothing after the last text that is consumed is downloaded.

        An interrupted stream starts again from the beginning: its position is not saved.

        Raises:
            UserError: The split cannot be loaded (see `load`), the column does not exist or does not contain text, or
                the stream is interrupted.
        """
        number = 0
        for number, row in enumerate(self._guarded(self.load(streaming=True)), 1):
            where = f"{self.name}, document {number:,}"
            if column not in row:
                raise UserError(f"no column {column!r}", where=where, instead=f"one of {', '.join(row)}")
            if not isinstance(row[column], str | None):
                texts = [name for name, value in row.items() if isinstance(value, str)]
                what = f"column {column!r} does not contain text, but e.g. {str(row[column])[:40]}"
                raise UserError(what, where=where, instead=f"corpus.column: {' or '.join(texts) or '<a text column>'}")
            yield row[column] or ""
        if not number:
            raise UserError("the split is empty", where=self.name, instead="another split")

    def _guarded(self, stream: Iterable[Record]) -> Iterator[Record]:
        """Yields the same rows; raises any error of the stream as a UserError."""
        number = 1
        try:
            for row in stream:
                yield row
                number += 1
        except Exception as error:  # each library raises other types for lost connections and damaged files
            raise UserError(
                f"reading was interrupted ({type(error).__name__}: {_first_line(error)})",
                where=f"{self.name}, document {number:,}",
                instead="run the command again, which reads from the start; or use a local copy",
            ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _empty_file(folder: Path) -> Path | None:
    """Returns the first data file without any content, or None."""
    files = (p for p in sorted(folder.rglob("*")) if p.suffix in _DATA and p.is_file())
    return next((p for p in files if not p.stat().st_size), None)


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and modification time of each file of a folder: cheap to read, and different after every edit."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def hub_split(spec: str) -> HubSplit:
    """Parses `hub:<dataset>[@revision]:<config>:<split>`.

    Raises:
        UserError: The reference has another form.
    """
    found = HUB_SPLIT.fullmatch(spec.removeprefix(HUB_PREFIX))
    if not found:
        raise UserError("not a split of a data set on the hub", where=spec, instead=HUB_FORM)
    name, config, split = found.groups()
    if name.startswith(LOCAL_PREFIXES):
        return HubSplit(name, config, split)
    dataset, _, revision = name.partition("@")
    return HubSplit(dataset, config, split, revision or None)
