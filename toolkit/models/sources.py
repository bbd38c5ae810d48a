"""Model sources: local folders, folders in installed packages, and the Hugging Face hub. Does not import torch."""

import re
from pathlib import Path

from toolkit.core.errors import UserError
from toolkit.core.files import require_regular_files, user_path
from toolkit.models.published import published_config
from toolkit.recipe.references import LOCAL_PREFIXES, package_path

_HUB_MODEL = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def fetch_model(source: str) -> Path:
    """Returns the folder of a checkpoint. Downloads a hub model that is not cached yet.

    Args:
        source: A local folder, `package:…`, or a hub id (`owner/name[@revision]`).

    Raises:
        UserError: There is no such folder, and the hub does not provide the model or cannot be reached.
    """
    return local_model(source) or _snapshot(source, fetch=True)


def cached_model(source: str) -> Path | None:
    """Returns the folder of a checkpoint without downloading; None for a hub id that is not cached.

    Raises:
        UserError: There is no such folder, and the source is not a valid hub id.
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


def is_hub_model(source: str) -> bool:
    """Returns whether a source in a recipe is a hub id, even if a local folder has the same name."""
    named = _HUB_MODEL.fullmatch(source) and not source.startswith(LOCAL_PREFIXES)
    return bool(named) or published_config(source) is not None


def local_model(source: str) -> Path | None:
    """Returns the folder of a checkpoint that is not on the hub (`package:…` or a local folder); None if there is none.

    Raises:
        UserError: The folder has no `config.json` or has special files, or the package is not installed.
    """
    folder = package_path(source) if source.startswith("package:") else user_path(source)
    if not folder.is_dir():
        return None
    if not (folder / "config.json").is_file():
        raise UserError("no config.json in this folder", where=str(folder), instead="a Hugging Face model folder")
    require_regular_files(folder)
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
            f"neither a local folder nor a model available from the hub ({type(error).__name__})",
            where=source,
            instead="a folder with config.json and model.safetensors, package:<distribution>, or a hub id",
        ) from None
