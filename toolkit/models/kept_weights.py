"""Weights as a small file, without torch.

Of a sparse matrix: a bit for each weight, and the kept weights in 16 bits. Of a dense one, if wanted: 8-bit codes and
the scale of each row, weight = (code + 1/2) * scale, so that no weight becomes zero.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

_BITS, _KEPT, _CODES, _SCALES = ".bits", ".kept", ".codes", ".scales"


def write_kept(
    path: Path,
    trained: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
    card: Mapping[str, Any],
    *,
    codes: bool = False,
) -> None:
    """Writes trained parameters: matrices with a mask as bits and kept weights in 16 bits, the others in 32 bits.

    Args:
        path: The file.
        trained: Name -> parameter, float32.
        masks: Name -> bool array of the parameter's shape, True where a weight is kept.
        card: Facts about the model, stored in the file's header.
        codes: Whether matrices without a mask are rounded to 8-bit codes with a scale for each row.
    """
    stored: dict[str, np.ndarray] = {}
    for name, value in trained.items():
        if name in masks:
            stored[name + _BITS] = np.packbits(masks[name].reshape(-1))
            stored[name + _KEPT] = value[masks[name]].astype(np.float16)
        elif codes and value.ndim == 2:
            scales = (np.abs(value).max(axis=1, keepdims=True) / 128).astype(np.float32)
            stored[name + _SCALES] = scales
            levels = np.floor(value / np.where(scales > 0, scales, 1))
            stored[name + _CODES] = np.clip(levels, -128, 127).astype(np.int8)
        else:
            stored[name] = value.astype(np.float32)
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    save_file(stored, path, metadata={"shapes": json.dumps(shapes), "card": json.dumps(card)})


def read_kept(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the parameters in float32 and the masks of a file that `write_kept` wrote."""
    trained, masks = {}, {}
    with safe_open(path, framework="np") as file:
        names = list(file.keys())
        for name, shape in json.loads(file.metadata()["shapes"]).items():
            count = int(np.prod(shape))
            mask = np.unpackbits(file.get_tensor(name + _BITS), count=count).astype(bool).reshape(shape)
            weight = np.zeros(shape, np.float32)
            weight[mask] = file.get_tensor(name + _KEPT)
            trained[name], masks[name] = weight, mask
        for name in (n.removesuffix(_CODES) for n in names if n.endswith(_CODES)):
            trained[name] = (file.get_tensor(name + _CODES) + np.float32(0.5)) * file.get_tensor(name + _SCALES)
        stored = (_BITS, _KEPT, _CODES, _SCALES)
        trained |= {n: file.get_tensor(n).astype(np.float32) for n in names if not n.endswith(stored)}
    return trained, masks


def read_card(path: Path) -> dict[str, Any]:
    """Returns the facts in the header of a file that `write_kept` wrote."""
    with safe_open(path, framework="np") as file:
        found: dict[str, Any] = json.loads(file.metadata()["card"])
    return found
