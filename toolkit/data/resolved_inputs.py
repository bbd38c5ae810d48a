"""Models and data files that a recipe names, each looked up once for a whole command. Loads no torch."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.data.files import cached_file, fetch_file
from toolkit.models.published import published_config
from toolkit.models.sources import cached_model, fetch_model


@dataclass(frozen=True)
class ResolvedModel:
    """What a model reference stands for.

    Attributes:
        source: The reference as the recipe has it.
        folder: The checkpoint's folder; None for a model on the hub that is not cached.
    """

    source: str
    folder: Path | None

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The checkpoint's `config.json`, or the published sizes of a hub model that is not cached; None if unknown.

        Raises:
            UserError: The file is missing or damaged.
        """
        if self.folder is None:
            return published_config(self.source)
        path = self.folder / "config.json"
        try:
            config = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"invalid model config ({error})", where=str(path), instead="copy or download it again"
            ) from None
        return config if isinstance(config, dict) else {}


@dataclass(frozen=True)
class ResolvedInputs:
    """Looks up references when they are needed, and each of them once.

    Attributes:
        fetch: Download what is on the hub; else a model or file that is not cached is unknown.
    """

    fetch: bool = False
    _models: dict[str, ResolvedModel] = field(default_factory=dict, repr=False)
    _files: dict[str, Path | None] = field(default_factory=dict, repr=False)

    def model(self, source: str) -> ResolvedModel:
        """The model behind a reference.

        Raises:
            UserError: There is no such folder, and the source is not a valid hub id, or the hub cannot be reached.
        """
        if source not in self._models:
            folder = fetch_model(source) if self.fetch else cached_model(source)
            self._models[source] = ResolvedModel(source, folder)
        return self._models[source]

    def file(self, spec: str) -> Path | None:
        """The file behind a reference; None for a split of the hub that is not cached.

        Raises:
            UserError: A local file or package is missing, or the split cannot be fetched.
        """
        if spec not in self._files:
            self._files[spec] = fetch_file(spec) if self.fetch else cached_file(spec)
        return self._files[spec]
