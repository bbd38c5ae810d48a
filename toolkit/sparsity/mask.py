"""Sparsity mask of a model: which weights may be non-zero. Stored in one file next to the weights."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from toolkit.core.errors import UserError
from toolkit.models.architectures import encoder_prefix
from toolkit.models.checkpoint import MIN_SPARSITY, stored_tensors

MASK_FILE = "mask.safetensors"
_ITS_OWN_MASK = "the mask that was saved with these weights, or no mask file (the zeros then define the mask)"
_BITS_OF = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes per float -> integer type of the same width


@dataclass(frozen=True)
class SparsityMask:
    """Parameter name -> bool tensor of the parameter's shape; True where a weight is kept."""

    tensors: dict[str, Tensor]

    @classmethod
    def from_zeros(cls, parameters: Mapping[str, Tensor]) -> "SparsityMask":
        """Returns the mask of a sparse checkpoint: True where a weight is not zero."""
        return cls({name: parameter.detach() != 0 for name, parameter in parameters.items()})

    def on_devices_of(self, parameters: Mapping[str, Tensor]) -> "SparsityMask":
        """Returns the mask on the devices of the parameters; `self` if it is already there."""
        if all(kept.device == parameters[name].device for name, kept in self.tensors.items()):
            return self
        return SparsityMask({name: kept.to(parameters[name].device) for name, kept in self.tensors.items()})

    @torch.no_grad()
    def apply_(self, parameters: Mapping[str, Tensor]) -> None:
        """Sets every weight outside the mask to exactly 0.0, in place."""
        for name, kept in self.tensors.items():
            weight = parameters[name]
            # Multiplying floats by 0 would produce -0.0 (whose sign bits do not compress) and keep NaN. Multiplying
            # their bits by 0 or 1 gives 0.0 or the unchanged weight and takes less than half as long as masked_fill_.
            weight.view(_BITS_OF[weight.element_size()]).mul_(kept)

    def violations(self, parameters: Mapping[str, Tensor]) -> dict[str, int]:
        """Returns the number of non-zero weights outside the mask, for the matrices that have any."""
        counts = {}
        for name, kept in self.on_devices_of(parameters).tensors.items():
            counts[name] = int((parameters[name].detach() != 0).logical_and_(~kept).count_nonzero())
        return {name: count for name, count in counts.items() if count}

    def per_matrix(self) -> dict[str, float]:
        """Returns the fraction of pruned weights in each matrix."""
        return {name: 1.0 - int(kept.count_nonzero()) / kept.numel() for name, kept in self.tensors.items()}

    def sparsity(self) -> float:
        """Returns the fraction of pruned weights in all matrices together."""
        total = sum(kept.numel() for kept in self.tensors.values())
        return 1.0 - sum(int(kept.count_nonzero()) for kept in self.tensors.values()) / max(1, total)

    def bits(self) -> dict[str, np.ndarray]:
        """Returns the mask with one bit per weight in row-major order, packed: uint8 [ceil(weights / 8)] per matrix."""
        return {name: np.packbits(kept.cpu().numpy().reshape(-1)) for name, kept in self.tensors.items()}

    def digest(self) -> bytes:
        """Returns the SHA-256 digest of the mask."""
        found = hashlib.sha256()
        for bits in self.bits().values():
            found.update(bits.tobytes())
        return found.digest()

    @classmethod
    def from_bits(cls, bits: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]]) -> "SparsityMask":
        """Returns the mask that `bits` was called on.

        Args:
            bits: Packed bits of each matrix, as returned by `bits`.
            shapes: Shape of each matrix.

        Raises:
            ValueError: The number of bits of a matrix does not match its shape.
        """
        return cls({name: _unpack(bits[name], shape) for name, shape in shapes.items()})

    def save(self, path: Path) -> None:
        """Writes the mask with one bit per weight."""
        shapes = {name: list(kept.shape) for name, kept in self.tensors.items()}
        save_file(self.bits(), path, metadata={"shapes": json.dumps(shapes)})

    @classmethod
    def load(cls, path: Path) -> "SparsityMask":
        """Reads a mask that `save` wrote.

        Raises:
            UserError: The file is missing, damaged, or not a mask.
        """
        try:
            with safe_open(path, framework="np") as file:
                shapes = json.loads((file.metadata() or {}).get("shapes", "null"))
                if not isinstance(shapes, dict):
                    raise ValueError("the file contains no mask")
                return cls.from_bits({name: file.get_tensor(name) for name in shapes}, shapes)
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            raise UserError(
                f"the mask cannot be read ({error})",
                where=str(path),
                instead="restore the file, or delete it to derive the mask from the zeros of the weights",
            ) from None

    def validate(self, parameters: Mapping[str, Tensor], where: str) -> None:
        """Checks that the mask fits a model: it prunes exactly the weights that are zero.

        Some of the weights that it keeps may be zero, up to `MIN_SPARSITY` of a matrix: training may end there.

        Args:
            parameters: The model's prunable parameters by name.
            where: The mask file to report in errors.

        Raises:
            UserError: A matrix is missing or has another shape, a weight outside the mask is not zero, or the mask
                keeps weights that are zero.
        """
        for name, kept in self.tensors.items():
            if name not in parameters or parameters[name].shape != kept.shape:
                found = tuple(parameters[name].shape) if name in parameters else "no such matrix"
                raise UserError(
                    f"the mask does not fit the model: {name} is {tuple(kept.shape)}, found {found}", where=where
                )
        broken = self.violations(parameters)
        if broken:
            name, count = next(iter(broken.items()))
            raise UserError(
                f"the mask does not fit the weights: {count} weights of {name} should be zero but are not",
                where=where,
                instead=_ITS_OWN_MASK,
            )
        for name, sparsity in SparsityMask.from_zeros(parameters).per_matrix().items():
            pruned = SparsityMask({name: self.tensors[name]}).sparsity() if name in self.tensors else 0.0
            if sparsity - pruned > MIN_SPARSITY:
                raise UserError(
                    f"the mask does not cover the zeros: {sparsity:.1%} of {name} is zero, "
                    + (f"the mask prunes {pruned:.1%}" if name in self.tensors else "the mask does not list it"),
                    where=where,
                    instead=_ITS_OWN_MASK,
                )


def _unpack(packed: np.ndarray, shape: Sequence[int]) -> Tensor:
    """Returns the bool tensor of packed bits. Checks their number, because numpy pads missing bits with zeros."""
    count = math.prod(shape)
    if packed.size != math.ceil(count / 8):
        raise ValueError(f"{packed.size} bytes are not one bit for each of {'x'.join(map(str, shape))} weights")
    return torch.from_numpy(np.unpackbits(packed, count=count).astype(bool)).reshape(shape)


def checkpoint_mask(folder: Path, matrices: Mapping[str, nn.Linear], *, dense_too: bool = False) -> SparsityMask:
    """Returns the mask of a sparse checkpoint: the zeros of its weights, which its mask file, if any, must describe.

    Args:
        folder: The checkpoint folder that `matrices` were loaded from.
        matrices: Parameter name -> module, as returned by `prunable_matrices`.
        dense_too: Accept a dense checkpoint as well; its mask keeps all weights.

    Raises:
        UserError: The mask does not fit the weights, or the checkpoint is dense.
    """
    weights = {name: module.weight for name, module in matrices.items()}
    _validate_file(folder, weights)
    mask = SparsityMask.from_zeros(weights)
    if mask.sparsity() < MIN_SPARSITY and not dense_too:
        raise UserError(
            "this checkpoint is dense: there is no pattern to lock", where=str(folder), instead="a pruned checkpoint"
        )
    return mask


def validate_mask_file(folder: Path, names: Iterable[str]) -> None:
    """Checks the mask file of a checkpoint, if it has one, without loading the model.

    Args:
        folder: The checkpoint folder.
        names: Names of the prunable matrices.

    Raises:
        UserError: The mask cannot be read or does not fit the weights.
    """
    if not (folder / MASK_FILE).is_file():
        return
    stored, prefix, weights = stored_tensors(folder), encoder_prefix(folder), {}
    for name in names:
        with safe_open(stored[name].file, framework="pt") as file:
            weights[name] = file.get_tensor(name if name in file.keys() else name.removeprefix(prefix))  # noqa: SIM118
    _validate_file(folder, weights)


def _validate_file(folder: Path, weights: Mapping[str, Tensor]) -> None:
    path = folder / MASK_FILE
    if path.is_file():
        SparsityMask.load(path).validate(weights, str(path))
