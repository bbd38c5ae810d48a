"""Lookup of the models and data files of a recipe; one `ResolvedInputs` looks each of them up once. Loads no torch."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from toolkit.data.files import cached_file, fetch_file
from toolkit.models.config import read_config
from toolkit.models.published import published_config
from toolkit.models.sources import cached_model, fetch_model


@dataclass(frozen=True)
class ResolvedModel:
    """A model reference with its local checkpoint.

    Attributes:
        source: The reference as it is written in the recipe.
        folder: Folder of the checkpoint; None for a model on the hub that is not cached.
    """

    source: str
    folder: Path | None

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The checkpoint's `config.json`, or the published sizes of a hub model that is not cached; None if unknown.

        Raises:
            UserError: The file is missing or damaged, or has impossible values.
        """
        return published_config(self.source) if self.folder is None else read_config(self.folder)


@dataclass(frozen=True)
class ResolvedInputs:
    """Resolves references on demand, each of them once.

    Attributes:
        fetch: Whether to download from the hub; else models and files that are not cached are None.
    """

    fetch: bool = False
    _models: dict[str, ResolvedModel] = field(default_factory=dict, repr=False)
    _files: dict[str, Path | None] = field(default_factory=dict, repr=False)

    def model(self, source: str) -> ResolvedModel:
        """Resolves a reference to a model.

        Raises:
            UserError: There is no such folder, and the source is not a valid hub id, or the hub cannot be reached.
        """
        if source not in self._models:
            folder = fetch_model(source) if self.fetch else cached_model(source)
            self._models[source] = ResolvedModel(source, folder)
        return self._models[source]

    def file(self, spec: str) -> Path | None:
        """Resolves a reference to a file; None for a split of the hub that is not cached.

        Raises:
            UserError: A local file or package is missing, or the split cannot be downloaded.
        """
        if spec not in self._files:
            self._files[spec] = fetch_file(spec) if self.fetch else cached_file(spec)
        return self._files[spec]
