"""The sparsity pattern of a model: which weights may differ from zero. One file beside the weights keeps it."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from toolkit.core.errors import UserError
from toolkit.models.checkpoint import MIN_SPARSITY

MASK_FILE = "mask.safetensors"
_BITS_OF = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a float -> an integer as wide


@dataclass(frozen=True)
class SparsityMask:
    """Parameter name -> bool tensor of the parameter's shape; True where a weight is kept."""

    tensors: dict[str, Tensor]

    @classmethod
    def from_zeros(cls, parameters: Mapping[str, Tensor]) -> "SparsityMask":
        """The pattern that a sparse checkpoint already has: kept where the weight is not zero."""
        return cls({name: parameter.detach() != 0 for name, parameter in parameters.items()})

    def on_devices_of(self, parameters: Mapping[str, Tensor]) -> "SparsityMask":
        """The same pattern on the devices of the parameters; this very object when it is there already."""
        if all(kept.device == parameters[name].device for name, kept in self.tensors.items()):
            return self
        return SparsityMask({name: kept.to(parameters[name].device) for name, kept in self.tensors.items()})

    @torch.no_grad()
    def apply_(self, parameters: Mapping[str, Tensor]) -> None:
        """Sets every weight outside the pattern to exactly 0.0, in place."""
        for name, kept in self.tensors.items():
            weight = parameters[name]
            # A product of floats would leave -0.0 (whose sign bits do not compress) and keep nan. That of their bits
            # with 0 or 1 leaves 0.0 or the very weight, and takes less than half the time of masked_fill_.
            weight.view(_BITS_OF[weight.element_size()]).mul_(kept)

    def violations(self, parameters: Mapping[str, Tensor]) -> dict[str, int]:
        """Number of non-zero weights outside the pattern, for the matrices that have any."""
        counts = {}
        for name, kept in self.on_devices_of(parameters).tensors.items():
            counts[name] = int((parameters[name].detach() != 0).logical_and_(~kept).count_nonzero())
        return {name: count for name, count in counts.items() if count}

    def per_matrix(self) -> dict[str, float]:
        """Share of pruned weights of each matrix."""
        return {name: 1.0 - int(kept.count_nonzero()) / kept.numel() for name, kept in self.tensors.items()}

    def sparsity(self) -> float:
        """Share of pruned weights of all matrices together."""
        total = sum(kept.numel() for kept in self.tensors.values())
        return 1.0 - sum(int(kept.count_nonzero()) for kept in self.tensors.values()) / max(1, total)

    def bits(self) -> dict[str, np.ndarray]:
        """One bit a weight, in the order in which they lie, eight in a byte: uint8, [ceil(weights / 8)] of a matrix."""
        return {name: np.packbits(kept.cpu().numpy().reshape(-1)) for name, kept in self.tensors.items()}

    def digest(self) -> bytes:
        """Hash of the pattern."""
        found = hashlib.sha256()
        for bits in self.bits().values():
            found.update(bits.tobytes())
        return found.digest()

    @classmethod
    def from_bits(cls, bits: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]]) -> "SparsityMask":
        """What `bits` was taken of.

        Raises:
            ValueError: A matrix has more or fewer bits than weights.
        """
        return cls({name: _unpack(bits[name], shape) for name, shape in shapes.items()})

    def save(self, path: Path) -> None:
        """Writes one bit a weight."""
        shapes = {name: list(kept.shape) for name, kept in self.tensors.items()}
        save_file(self.bits(), path, metadata={"shapes": json.dumps(shapes)})

    @classmethod
    def load(cls, path: Path) -> "SparsityMask":
        """Reads what `save` wrote.

        Raises:
            UserError: The file is missing, damaged, or not a mask.
        """
        try:
            with safe_open(path, framework="np") as file:
                shapes = json.loads((file.metadata() or {}).get("shapes", "null"))
                if not isinstance(shapes, dict):
                    raise ValueError("it holds no mask")
                return cls.from_bits({name: file.get_tensor(name) for name in shapes}, shapes)
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            raise UserError(
                f"this mask cannot be read ({error})",
                where=str(path),
                instead="delete it to take the pattern from the zeros of the weights, or restore it",
            ) from None

    def validate(self, parameters: Mapping[str, Tensor], where: str) -> None:
        """Raises a UserError unless every matrix of the pattern is there, in its shape, with its zeros."""
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
                f"the mask does not fit the weights: {count} weights of {name} should be zero and are not",
                where=where,
                instead="the mask that was saved with these weights, or none (it is then read off the zeros)",
            )


def _unpack(packed: np.ndarray, shape: Sequence[int]) -> Tensor:
    """Bits -> bool tensor. numpy itself would fill up missing bits with zeros."""
    count = math.prod(shape)
    if packed.size != math.ceil(count / 8):
        raise ValueError(f"{packed.size} bytes do not hold one bit for each of {'x'.join(map(str, shape))} weights")
    return torch.from_numpy(np.unpackbits(packed, count=count).astype(bool)).reshape(shape)


def checkpoint_mask(folder: Path, matrices: Mapping[str, nn.Linear], *, dense_too: bool = False) -> SparsityMask:
    """The pattern of a sparse checkpoint: its mask file; without one, the zeros of its weights.

    Args:
        folder: The checkpoint that `matrices` were loaded from.
        matrices: Parameter name -> module, as from `prunable_matrices`.
        dense_too: Take a dense checkpoint as well: its pattern keeps everything.

    Raises:
        UserError: The mask does not fit the weights, or there are no zeros to lock.
    """
    weights = {name: module.weight for name, module in matrices.items()}
    path = folder / MASK_FILE
    if path.is_file():
        mask = SparsityMask.load(path)
        mask.validate(weights, str(path))
        return mask
    mask = SparsityMask.from_zeros(weights)
    if mask.sparsity() < MIN_SPARSITY and not dense_too:
        raise UserError(
            "this checkpoint is dense: there is no pattern to lock", where=str(folder), instead="a pruned checkpoint"
        )
    return mask
