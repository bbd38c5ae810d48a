"""Model sources: local folders, installed packages, included models, the Hugging Face hub. Does not import torch."""

import re
from pathlib import Path

from toolkit.core.errors import UserError
from toolkit.core.files import require_regular_files, user_path
from toolkit.models.included_models import PREFIX, included_model
from toolkit.models.published import published_config
from toolkit.recipe.references import LOCAL_PREFIXES, package_path

LICENSE_KEYS = ("license", "license_name", "license_link")  # of the hub's model cards
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


def stated_license(source: str, scratch: Path) -> dict[str, str]:
    """Returns what the README.md of a model states about its license, under the hub's keys; empty if that is nothing.

    That of a hub model is downloaded to a folder of its own: inside of the model's it would change its content hash.

    Args:
        source: Source of the model.
        scratch: Folder for the download.
    """
    from huggingface_hub import hf_hub_download, metadata_load

    try:
        folder = local_model(source)
        if folder is None:
            name, _, revision = source.partition("@")
            path = Path(hf_hub_download(name, "README.md", revision=revision or None, cache_dir=scratch))
        else:
            path = folder / "README.md"
        found = metadata_load(path) or {}
    except Exception:  # no README.md, no network, or no metadata that can be parsed: nothing is stated
        return {}
    stated = {key: found[key] for key in LICENSE_KEYS if key in found}
    return stated if all(isinstance(value, str) for value in stated.values()) and "license" in stated else {}


def is_hub_model(source: str) -> bool:
    """Returns whether a source in a recipe is a hub id, even if a local folder has the same name."""
    named = _HUB_MODEL.fullmatch(source) and not source.startswith(LOCAL_PREFIXES)
    return bool(named) or published_config(source) is not None


def local_model(source: str) -> Path | None:
    """Returns the folder of a checkpoint that is not on the hub (a folder, `package:…`, `included:…`), or None.

    Raises:
        UserError: The folder has no `config.json` or has special files, or the package is not installed.
    """
    if source.startswith(PREFIX):
        return included_model(source)
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
