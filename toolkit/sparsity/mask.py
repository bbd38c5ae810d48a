"""Sparsity mask of a model: which weights may be non-zero. Stored in one file next to the weights."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.core.errors import UserError
from toolkit.models.checkpoint import MIN_SPARSITY
from toolkit.sparsity.mask_file import read_mask, require_fitting_mask, unpacked, write_mask

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
        return cls({name: torch.from_numpy(unpacked(bits[name], shape)) for name, shape in shapes.items()})

    def save(self, path: Path) -> None:
        """Writes the mask with one bit per weight."""
        write_mask(path, self.bits(), {name: kept.shape for name, kept in self.tensors.items()})

    @classmethod
    def load(cls, path: Path) -> "SparsityMask":
        """Reads a mask that `save` wrote.

        Raises:
            UserError: The file is missing, damaged, or not a mask.
        """
        return cls({name: torch.from_numpy(kept) for name, kept in read_mask(path).items()})


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
    require_fitting_mask(folder, matrices)
    mask = SparsityMask.from_zeros(weights)
    if mask.sparsity() < MIN_SPARSITY and not dense_too:
        raise UserError(
            "this checkpoint is dense: there is no pattern to lock", where=str(folder), instead="a pruned checkpoint"
        )
    return mask
