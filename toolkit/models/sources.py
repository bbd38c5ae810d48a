"""Where models and data come from: local files and folders, data inside installed packages, the hub. Loads no torch."""

import json
import re
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.models.published import published_config
from toolkit.recipe.references import LOCAL_PREFIXES, package_path

_HUB_MODEL = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def fetch_model(source: str) -> Path:
    """The folder of a checkpoint: a local folder, `package:…`, or a hub id (`owner/name[@revision]`), then fetched.

    Raises:
        UserError: There is no such folder, and the hub does not have it or cannot be reached.
    """
    return local_model(source) or _snapshot(source, fetch=True)


def cached_model(source: str) -> Path | None:
    """As `model_folder`; None for what may be a model on the hub that was not fetched yet.

    Raises:
        UserError: There is no such folder, and it cannot be the name of a model on the hub.
    """
    folder = local_model(source)
    if folder is not None:
        return folder
    try:
        return _snapshot(source, fetch=False)
    except UserError:
        named = _HUB_MODEL.fullmatch(source) and not Path(source).parent.is_dir()
        if named or published_config(source) is not None:
            return None
        raise


def cached_config(source: str) -> dict[str, Any] | None:
    """What a checkpoint's `config.json` says, or what is known of a model on the hub; None: nothing is.

    Raises:
        UserError: As `model_at_hand`; or the file is damaged.
    """
    folder = cached_model(source)
    if folder is None:
        return published_config(source)
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"not a model's config ({error})", where=str(path), instead="a fresh copy of it") from None
    return config if isinstance(config, dict) else {}


def is_hub_model(source: str) -> bool:
    """Whether a name in a recipe is that of a model on the hub, whatever folder of that name there may be."""
    named = _HUB_MODEL.fullmatch(source) and not source.startswith(LOCAL_PREFIXES)
    return bool(named) or published_config(source) is not None


def local_model(source: str) -> Path | None:
    """The folder of a checkpoint that is no model on the hub: `package:…`, or a folder of that name.

    Raises:
        UserError: The folder has no `config.json`, or the package is not installed.
    """
    folder = package_path(source) if source.startswith("package:") else Path(source).expanduser()
    if not folder.is_dir():
        return None
    if not (folder / "config.json").is_file():
        raise UserError("no config.json in this folder", where=str(folder), instead="a Hugging Face model folder")
    return folder


def _snapshot(source: str, *, fetch: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download

        kinds = ["*.json", "*.safetensors", "*.txt", "*.model"]
        name, _, revision = source.partition("@")
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=kinds, local_files_only=not fetch)
        )
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise UserError(
            f"neither a local folder nor a model that the hub gives ({type(error).__name__})",
            where=source,
            instead="a folder with config.json and model.safetensors, package:<distribution>, or a hub id",
        ) from None
