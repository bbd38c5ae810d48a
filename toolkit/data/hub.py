"""Data sets of the Hugging Face hub: `hub:<dataset>[@revision]:<config>:<split>`. Loads no torch.

In place of a data set's id there may be the path of a local folder laid out like one.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.core.files import content_hash, json_hash
from toolkit.recipe.references import HUB_FORM, HUB_PREFIX, HUB_SPLIT, LOCAL_PREFIXES

_DATA = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
Record = dict[str, Any]


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set.

    Attributes:
        dataset: Id on the hub, or a local folder laid out like one.
        config: Empty: the data set's only one.
        revision: Commit, tag or branch; None: the newest.
    """

    dataset: str
    config: str
    split: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """As recipes write it."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUB_PREFIX}{self.dataset}{revision}:{self.config}:{self.split}"

    @property
    def folder(self) -> Path | None:
        """The local folder that the data set is; None: it is on the hub.

        Raises:
            UserError: It can only be a folder, and there is none.
        """
        if self.revision:  # which a folder has not
            return None
        folder = Path(self.dataset).expanduser()
        if folder.is_dir():
            return folder.resolve()
        if self.dataset.startswith(LOCAL_PREFIXES):
            raise UserError(
                "no such folder", where=self.name, instead=f"a folder laid out like a data set, or {HUB_FORM}"
            )
        return None

    @property
    def content(self) -> str:
        """What stands for its rows in a cache key. Of the hub its name, since nobody reads all of a stream for a key.

        Raises:
            UserError: As `folder`.
        """
        return json_hash([self.config, self.split, content_hash(self.folder)]) if self.folder else self.name

    def load(self, *, streaming: bool = False) -> Any:
        """The split as `datasets` gives it.

        Raises:
            UserError: There is none of that name, one of its files is empty, or the hub cannot be reached; or a local
                folder would be taken for the revision.
        """
        import datasets

        datasets.disable_progress_bars()
        folder = self.folder
        if folder is None and Path(self.dataset).is_dir():  # which `datasets` prefers, and would keep under this name
            raise UserError(
                "a folder here has the name of this data set, and a revision is the hub's",
                where=self.name,
                instead="the name without a revision if the folder is meant; or move the folder, or run elsewhere",
            )
        try:
            return datasets.load_dataset(
                str(folder or self.dataset),
                self.config or None,
                split=self.split,
                revision=self.revision,
                streaming=streaming,
            )
        except Exception as error:  # the hub client and each file format raise types of their own
            empty = _empty_file(folder) if folder else None
            if empty or isinstance(error, StopIteration):  # which `datasets` lets out where a file has no first row
                raise UserError(
                    "this file is empty" if empty else "one of its files is empty",
                    where=str(empty or self.name),
                    instead="rows in it, or a folder without it",
                ) from None
            raise UserError(
                f"the hub does not give this split ({type(error).__name__}: {_first_line(error)})",
                where=self.name,
                instead="a connection (HF_HUB_OFFLINE unset), another name, or a local file",
            ) from None

    @property
    def file(self) -> Path:
        """Where `fetched` keeps it. Of a local folder another file whenever one of the folder's files has changed.

        Raises:
            UserError: As `folder`.
        """
        from huggingface_hub.constants import HF_HOME

        folder = self.folder
        dataset, state = (folder.name, [str(folder), _state(folder)]) if folder else (self.dataset, [])
        parts = (dataset, self.revision or "", self.config, self.split)
        readable = re.sub(r"[^\w.-]+", "_", "--".join(parts)).strip("_")
        # The slices [:80%] and [80%:] read alike once their signs are gone; the hash tells them apart.
        return Path(HF_HOME) / "pruneofa" / f"{readable}-{json_hash([*parts, *state])[:12]}.parquet"

    def fetched(self) -> Path:
        """The split as one Parquet file, fetched once. Class numbers stay numbers.

        Raises:
            UserError: As `load`.
        """
        file = self.file
        if not file.is_file():
            split = self.load()
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as scratch:  # another run may fetch the same
                split.to_parquet(Path(scratch) / file.name)
                (Path(scratch) / file.name).replace(file)  # so a file of this name is always whole
        return file

    def texts(self, column: str) -> Iterator[str]:
        """The texts of a column, read as they come: nothing behind the last one asked for is fetched.

        Who is interrupted starts anew: no place in the stream is kept.

        Raises:
            UserError: As `load`; there is no such column, its values are no texts, or the reading breaks off.
        """
        number = 0
        for number, row in enumerate(self._guarded(self.load(streaming=True)), 1):
            where = f"{self.name}, document {number:,}"
            if column not in row:
                raise UserError(f"no column {column!r}", where=where, instead=f"one of {', '.join(row)}")
            if not isinstance(row[column], str | None):
                texts = [name for name, value in row.items() if isinstance(value, str)]
                what = f"column {column!r} has no texts, but e.g. {str(row[column])[:40]}"
                raise UserError(what, where=where, instead=f"corpus.column: {' or '.join(texts) or '<a text column>'}")
            yield row[column] or ""
        if not number:
            raise UserError("the split is empty", where=self.name, instead="another split")

    def _guarded(self, stream: Iterable[Record]) -> Iterator[Record]:
        """The same rows; what ends them too early is told as what it is."""
        number = 1
        try:
            for row in stream:
                yield row
                number += 1
        except Exception as error:  # a dropped connection and a damaged file have a type of their own in each library
            raise UserError(
                f"reading broke off ({type(error).__name__}: {_first_line(error)})",
                where=f"{self.name}, document {number:,}",
                instead="the same command again, which reads from the start; or a local copy, which cannot break off",
            ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _empty_file(folder: Path) -> Path | None:
    """The first data file without a byte in it, if there is one."""
    files = (p for p in sorted(folder.rglob("*")) if p.suffix in _DATA and p.is_file())
    return next((p for p in files if not p.stat().st_size), None)


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a folder's files: cheap to ask for, and never the same after an edit."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def hub_split(spec: str) -> HubSplit:
    """Reads `hub:<dataset>[@revision]:<config>:<split>`.

    Raises:
        UserError: It has another form.
    """
    found = HUB_SPLIT.fullmatch(spec.removeprefix(HUB_PREFIX))
    if not found:
        raise UserError("not a split of a data set on the hub", where=spec, instead=HUB_FORM)
    name, config, split = found.groups()
    if name.startswith(LOCAL_PREFIXES):
        return HubSplit(name, config, split)
    dataset, _, revision = name.partition("@")
    return HubSplit(dataset, config, split, revision or None)
