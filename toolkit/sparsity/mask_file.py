"""The file of a sparsity mask, `mask.safetensors`, and its check against the weights beside it. Imports no torch."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from toolkit.core.errors import UserError
from toolkit.models.checkpoint import MIN_SPARSITY, StoredTensor, encoder_matrices, stored_tensors, zero_weights

MASK_FILE = "mask.safetensors"
_ITS_OWN_MASK = "the mask that was saved with these weights, or no mask file (the zeros then define the mask)"


def write_mask(path: Path, bits: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]]) -> None:
    """Writes a mask with one bit per weight.

    Args:
        path: The file.
        bits: Matrix name -> packed bits in row-major order, uint8 [ceil(weights / 8)]; 1 where a weight is kept.
        shapes: Shape of each matrix.
    """
    stored = {name: list(shape) for name, shape in shapes.items()}
    save_file(dict(bits), path, metadata={"shapes": json.dumps(stored)})


def read_mask(path: Path) -> dict[str, np.ndarray]:
    """Returns matrix name -> bool array of the matrix's shape, True where a weight is kept.

    Raises:
        UserError: The file is missing, damaged, or not a mask.
    """
    try:
        with safe_open(path, framework="np") as file:
            shapes = from_json((file.metadata() or {}).get("shapes", "null"))
            if not isinstance(shapes, dict):
                raise ValueError("the file contains no mask")
            return {name: unpacked(file.get_tensor(name), shape) for name, shape in shapes.items()}
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise UserError(
            f"the mask cannot be read ({error})",
            where=str(path),
            instead="restore the file, or delete it to derive the mask from the zeros of the weights",
        ) from None


def unpacked(bits: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Returns packed bits as a bool array. Checks their number, because numpy pads missing bits with zeros.

    Raises:
        ValueError: The number of bits does not match the shape.
    """
    if not isinstance(shape, Sequence) or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"{shape!r} is not the shape of a matrix")
    count = math.prod(shape)
    if bits.dtype != np.uint8 or bits.ndim != 1 or bits.size != -(-count // 8):
        raise ValueError(f"{bits.size} bytes are not one bit for each of {'x'.join(map(str, shape))} weights")
    return np.unpackbits(bits, count=count).astype(bool).reshape(shape)


def require_fitting_mask(folder: Path, names: Iterable[str]) -> None:
    """Checks that the zeros of a sparse checkpoint are kept: they are in prunable matrices, and fit its mask file.

    Some of the weights that a mask file keeps may be zero, up to `MIN_SPARSITY` of a matrix: training may end there.

    Args:
        folder: The checkpoint folder.
        names: Names of the prunable matrices.

    Raises:
        UserError: A matrix that is not prunable is sparse; or the mask file cannot be read; lists a matrix that is
            missing or has another shape; prunes weights that are not zero; or keeps weights that are.
    """
    prunable, stored = list(names), stored_tensors(folder)
    for name in encoder_matrices(folder).keys() - set(prunable):
        if (share := zero_weights(stored[name]).mean()) > MIN_SPARSITY:
            what = (
                f"{share:.1%} of {name} is zero, but `model.prunable` does not match it: training would lose the zeros"
            )
            raise UserError(what, where=str(folder), instead="model.prunable: [], or patterns of all sparse matrices")
    path = folder / MASK_FILE
    if not path.is_file():
        return
    kept = read_mask(path)
    for name in (*kept, *(name for name in prunable if name in stored and name not in kept)):
        _require_fitting(path, name, stored.get(name), kept.get(name))


def _require_fitting(path: Path, name: str, stored: StoredTensor | None, kept: np.ndarray | None) -> None:
    """Checks the mask of one matrix, None where the file does not list it, against the weights."""
    if stored is None or (kept is not None and kept.shape != stored.shape):
        shape, found = None if kept is None else kept.shape, stored.shape if stored else "no such matrix"
        what = f"the mask does not fit the model: {name} is {shape}, found {found}"
        raise UserError(what, where=str(path), instead=_ITS_OWN_MASK)
    zero = zero_weights(stored)
    pruned = np.zeros(zero.shape, bool) if kept is None else ~kept
    if nonzero := int(np.count_nonzero(pruned & ~zero)):
        what = f"the mask does not fit the weights: {nonzero} weights of {name} should be zero but are not"
        raise UserError(what, where=str(path), instead=_ITS_OWN_MASK)
    if zero.mean() - pruned.mean() > MIN_SPARSITY:
        covered = "the mask does not list it" if kept is None else f"the mask prunes {pruned.mean():.1%}"
        what = f"the mask does not cover the zeros: {zero.mean():.1%} of {name} is zero, {covered}"
        raise UserError(what, where=str(path), instead=_ITS_OWN_MASK)
