"""Data sets of the Hugging Face hub: `hub:<dataset>[@revision]:<config>:<split>`. Loads no torch."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.artifacts import json_hash
from toolkit.errors import UserError

PREFIX = "hub:"
_FORM = "hub:<dataset>[@revision]:<config>:<split>, e.g. hub:nyu-mll/glue:sst2:train (the config may be empty)"


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

    def load(self, *, streaming: bool = False) -> Any:
        """The split as `datasets` gives it.

        Raises:
            UserError: There is none of that name, or the hub cannot be reached.
        """
        import datasets

        datasets.disable_progress_bars()
        try:
            return datasets.load_dataset(
                self.dataset, self.config or None, split=self.split, revision=self.revision, streaming=streaming
            )
        except Exception as error:  # the hub client and each file format raise types of their own
            reason = (str(error).strip().splitlines() or [""])[0]
            raise UserError(
                f"the hub does not give this split ({type(error).__name__}: {reason})",
                where=f"{PREFIX}{self.dataset}:{self.config}:{self.split}",
                instead="a connection (HF_HUB_OFFLINE unset), another name, or a local file",
            ) from None

    @property
    def file(self) -> Path:
        """Where `fetched` keeps it."""
        from huggingface_hub.constants import HF_HOME

        parts = (self.dataset, self.revision or "", self.config, self.split)
        readable = re.sub(r"[^\w.-]+", "_", "--".join(parts)).strip("_")
        # The slices [:80%] and [80%:] read alike once their signs are gone; the hash tells them apart.
        return Path(HF_HOME) / "pruneofa" / f"{readable}-{json_hash(parts)[:12]}.parquet"

    def fetched(self) -> Path:
        """The split as one Parquet file, fetched once. Class numbers stay numbers.

        Raises:
            UserError: As `load`.
        """
        if not self.file.is_file():
            split = self.load()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial = self.file.with_suffix(".partial")
            split.to_parquet(partial)
            partial.rename(self.file)  # so a file of this name is always whole
        return self.file

    def texts(self, column: str) -> Iterator[str]:
        """The texts of a column, read as they come: nothing behind the last one asked for is fetched.

        Raises:
            UserError: As `load`; or there is no such column.
        """
        for row in self.load(streaming=True):
            if column not in row:
                raise UserError(f"no column {column!r}", where=self.dataset, instead=f"one of {', '.join(row)}")
            yield row[column] or ""


def is_hub(spec: str) -> bool:
    """Whether a file of a recipe is a split on the hub."""
    return spec.startswith(PREFIX)


def hub_split(spec: str) -> HubSplit:
    """Reads `hub:<dataset>[@revision]:<config>:<split>`.

    Raises:
        UserError: It has another form.
    """
    name, *rest = spec.removeprefix(PREFIX).split(":", 2)  # a split may be a slice: train[:1000]
    dataset, _, revision = name.partition("@")
    if not dataset or len(rest) != 2 or not rest[1]:
        raise UserError("not a split of a data set on the hub", where=spec, instead=_FORM)
    return HubSplit(dataset, rest[0], rest[1], revision or None)
