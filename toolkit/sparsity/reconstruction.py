"""Reconstruction of a matrix: choice of the zeros and new values of the kept weights, from its inputs alone.

The matrix with zeros that changes a layer's outputs least, W, minimises tr((W - T) H (W - T)^T) with W zero outside the
mask, where H is the second moment of the inputs and T the target. The layers before have been changed already, so that
T is not the dense matrix, but the one that gives the dense outputs for the inputs as they are now (`corrected_target`).
`layerwise.py` applies this to the matrices of a model.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toolkit.sparsity.units import keep_units

if TYPE_CHECKING:  # `benchmarks/gpu` uses this module on a machine without pydantic
    from toolkit.recipe import Tile
    from toolkit.recipe.stages import ReconstructionMethod

_GROWING = 25  # iterations of ADMM, in which the mask follows a cubic ramp
_FITTING = 20  # iterations of conjugate gradients on the final mask
_DAMPING = 0.01  # of the mean diagonal of H, which preconditioning makes 1
_RHO = 1.0
_PULL = 0.05  # of the mean diagonal of H: pulls the corrected target to the weights as they are
_COLUMNS = 64  # of a block of SparseGPT, in which the zeros are chosen together


class Moments:
    """Sums of the products of a matrix's inputs: dense ones X, and X' of the model with zeros, both [n, columns].

    Args:
        columns: Width of the inputs.
        device: Device of the sums, which are kept in float32.
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._dense_shift = self._shift = torch.zeros(columns, device=device)
        self._dense_mean = torch.zeros(columns, device=device)
        self._mean = torch.zeros(columns, device=device)
        self._cross = torch.zeros(columns, columns, device=device)
        self._second = torch.zeros(columns, columns, device=device)

    def add(self, dense: Tensor, now: Tensor) -> None:
        """Adds inputs of the same tokens, [n, columns]: of the dense model, and of the one with zeros as it is now."""
        dense, now = dense.float(), now.float()
        if not self.count:  # covariances must not vanish beside the means: those of the first tokens are taken off
            self._dense_shift, self._shift = dense.mean(0), now.mean(0)
        dense, now = dense - self._dense_shift, now - self._shift
        self.count += len(now)
        self._dense_mean += dense.sum(0)
        self._mean += now.sum(0)
        self._cross += dense.T @ now
        self._second += now.T @ now

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the means of X and X', the covariance of X with X', and that of X' with itself."""
        dense_mean, mean = self._dense_mean / self.count, self._mean / self.count
        cross = self._cross / self.count - torch.outer(dense_mean, mean)
        second = self._second / self.count - torch.outer(mean, mean)
        return dense_mean + self._dense_shift, mean + self._shift, cross, second


def corrected_target(weight: Tensor, cross: Tensor, second: Tensor, now: Tensor | None = None) -> Tensor:
    """Returns the matrix without zeros whose outputs for X' are nearest to the dense ones for X: W C H^-1, damped.

    Args:
        weight: The dense matrix W, [rows, columns].
        cross: Covariance C of X with X', [columns, columns].
        second: Covariance H of X', [columns, columns].
        now: The matrix as it is, to which the damping pulls the result; None: W.
    """
    pull = (_PULL * second.diagonal().mean()).clamp_min(1e-30)  # inputs that are all constant leave the matrix as it is
    right = weight @ cross + pull * (weight if now is None else now)
    left = second + pull * torch.eye(len(second), device=second.device)
    return torch.linalg.solve(left, right, left=False)


def solve(
    method: "ReconstructionMethod", target: Tensor, second: Tensor, prune: int, tile: "Tile"
) -> tuple[Tensor, Tensor]:
    """Returns the matrix nearest to `target` in the norm of H with the wanted number of zeros, and its mask.

    A method chooses the mask and a first guess; conjugate gradients then solve the least squares on the mask (Meng et
    al., ALPS, 2024, arXiv 2406.07831, section 3.3).

    Args:
        method: The method that chooses, a key of `CHOICES`.
        target: The matrix without zeros, [rows, columns], float32.
        second: Covariance H of the inputs, [columns, columns].
        prune: Number of units of the pattern to set to zero.
        tile: The pattern.
    """
    if not prune:
        return target.clone(), torch.ones_like(target, dtype=torch.bool)
    scale, unit = _unit_variance(second)
    scaled = target * scale
    guess, mask = CHOICES[method](scaled, unit, prune, tile)
    return least_squares(guess * mask, scaled @ unit, unit, mask) / scale, mask


def solve_locked(start: Tensor, target: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Returns the matrix nearest to `target` in the norm of H with the zeros of a given mask.

    Args:
        start: First guess, [rows, columns], float32.
        target: The matrix without zeros, of the same shape.
        second: Covariance H of the inputs, [columns, columns].
        mask: True where a weight is kept.
    """
    scale, unit = _unit_variance(second)
    return least_squares(start * scale * mask, target * scale @ unit, unit, mask) / scale


def _unit_variance(second: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the standard deviations of the inputs, and their damped correlation matrix."""
    # Inputs that are always 0 would divide by 0; their weights do not matter.
    diagonal = second.diagonal()
    scale = diagonal.clamp_min(1e-8 * float(diagonal.mean().clamp_min(1e-30))).sqrt()
    unit = second / torch.outer(scale, scale)
    unit.diagonal().add_(_DAMPING)
    return scale, unit


def admm(target: Tensor, second: Tensor, prune: int, tile: "Tile") -> tuple[Tensor, Tensor]:
    """Alternates between the least squares without zeros and their projection on the mask, which grows along a ramp.

    Boza, Fast and effective weight update for pruned large language models, 2024, arXiv 2401.02938. Arguments as of
    `solve`, with inputs of unit variance and H damped.
    """
    wanted = target @ second
    inverse = torch.linalg.inv(second + _RHO * torch.eye(len(second), device=second.device))
    found, dual = target, torch.zeros_like(target)
    mask = torch.ones_like(target, dtype=torch.bool)
    for step in range(1, _GROWING + 1):
        ramp = 1 - (1 - step / _GROWING) ** 3
        mask = keep_units((found + dual).square(), tile, int(prune * ramp + 1e-9))
        kept = (found + dual) * mask
        dual = dual + found - kept
        found = (wanted + _RHO * (kept - dual)) @ inverse
    return found + dual, mask


def obs(target: Tensor, second: Tensor, prune: int, tile: "Tile") -> tuple[Tensor, Tensor]:
    """SparseGPT: from left to right, each block of columns gets its zeros, for which the columns after it make up.

    Frantar and Alistarh, SparseGPT, 2023, arXiv 2301.00774, algorithm 1, with the update of the optimal brain surgeon.
    Arguments as of `solve`, with inputs of unit variance and H damped.
    """
    # Row j of the factor is row j of the inverse of H without the columns before j, divided by its diagonal's root.
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(second)), upper=True)
    weight = target.clone()
    mask = torch.ones_like(weight, dtype=torch.bool)
    columns = weight.shape[1]
    # N:M is chosen group by group; blocks and single weights in blocks of columns that hold complete units.
    width = tile.columns if tile.zeros else -(-_COLUMNS // tile.columns) * tile.columns
    for first in range(0, columns, width):
        last = min(first + width, columns)
        block, here = weight[:, first:last], factor[first:last, first:last]
        count = prune * last // columns - prune * first // columns
        kept = keep_units((block / here.diagonal()).square().contiguous(), tile, count)
        errors = torch.zeros_like(block)
        for i in range(last - first):
            errors[:, i] = block[:, i] * ~kept[:, i] / here[i, i]
            block[:, i:] -= torch.outer(errors[:, i], here[i, i:])
        weight[:, last:] -= errors @ factor[first:last, last:]
        mask[:, first:last] = kept
    return weight, mask


CHOICES: "dict[ReconstructionMethod, Callable[[Tensor, Tensor, int, Tile], tuple[Tensor, Tensor]]]" = {
    "admm": admm,
    "obs": obs,
}


def least_squares(start: Tensor, wanted: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Returns the minimiser of tr(W H W^T) - 2 tr(W B^T) with W zero outside the mask, by conjugate gradients per row.

    Args:
        start: First guess, zero outside the mask, [rows, columns].
        wanted: The right-hand side B, [rows, columns]: the target times H.
        second: H, [columns, columns], positive definite and with a diagonal near 1.
        mask: True where a weight is kept.
    """
    found = start
    residual = (wanted - found @ second) * mask
    direction, size = residual, residual.square().sum(1, keepdim=True)
    for _ in range(_FITTING):
        ahead = (direction @ second) * mask
        step = size / (direction * ahead).sum(1, keepdim=True).clamp_min(1e-30)
        found = found + step * direction
        residual = residual - step * ahead
        before, size = size, residual.square().sum(1, keepdim=True)
        direction = residual + size / before.clamp_min(1e-30) * direction
    return found
