"""Layer-wise reconstruction: choice of the zeros and new values of the kept weights, from a matrix's inputs alone.

The matrix with zeros that changes a layer's outputs least, W, minimises tr((W - T) H (W - T)^T) with W zero outside the
mask, where H is the second moment of the inputs and T the target. ADMM alternates between the least squares without
zeros and their projection on the mask (Boza, Fast and effective weight update for pruned large language models, 2024,
arXiv 2401.02938). The layers before have been changed already, so that T is not the dense matrix, but the one that
gives the dense outputs for the inputs as they are now (`corrected_target`).
"""

import torch
from torch import Tensor

_GROWING, _FIXED = 25, 15  # iterations in which the mask follows a cubic ramp, and on the final mask
_DAMPING = 0.01  # of the mean diagonal of H, which preconditioning makes 1
_RHO = 1.0
_PULL = 0.05  # of the mean diagonal of H: pulls the corrected target to the dense weights


class Moments:
    """Sums of the products of a matrix's inputs: dense ones X, and X' of the model with zeros, both [n, columns].

    Args:
        columns: Width of the inputs.
        device: Device of the sums, which are kept in float32.
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._dense_mean = torch.zeros(columns, device=device)
        self._mean = torch.zeros(columns, device=device)
        self._cross = torch.zeros(columns, columns, device=device)
        self._second = torch.zeros(columns, columns, device=device)

    def add(self, dense: Tensor, now: Tensor) -> None:
        """Adds inputs of the same tokens, [n, columns]: of the dense model, and of the one with zeros as it is now."""
        dense, now = dense.float(), now.float()
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
        return dense_mean, mean, cross, second


@torch.no_grad()
def reconstruct(
    weight: Tensor, bias: Tensor, moments: Moments, sparsity: float, tile: tuple[int, int] = (1, 1)
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the matrix with zeros, its bias, and the mask (True where a weight is kept).

    Args:
        weight: The dense matrix, [rows, columns].
        bias: Its bias, [rows].
        moments: Of the matrix's inputs.
        sparsity: Fraction of blocks to set to zero; rounded down to whole blocks.
        tile: Rows and columns of a block, which is pruned as a whole; they divide the matrix.
    """
    dense_mean, mean, cross, second = moments.centred()
    target = corrected_target(weight.float(), cross, second)
    pruned, mask = admm(target, second, sparsity, tile)
    new_bias = bias.float() + weight.float() @ dense_mean - pruned @ mean
    return pruned.to(weight.dtype), new_bias.to(bias.dtype), mask


def corrected_target(weight: Tensor, cross: Tensor, second: Tensor) -> Tensor:
    """Returns the matrix without zeros whose outputs for X' are nearest to the dense ones for X: W C H^-1, damped.

    Args:
        weight: The dense matrix W, [rows, columns].
        cross: Covariance C of X with X', [columns, columns].
        second: Covariance H of X', [columns, columns].
    """
    pull = _PULL * second.diagonal().mean()
    right = weight @ cross + pull * weight
    left = second + pull * torch.eye(len(second), device=second.device)
    return torch.linalg.solve(left, right, left=False)


def admm(target: Tensor, second: Tensor, sparsity: float, tile: tuple[int, int] = (1, 1)) -> tuple[Tensor, Tensor]:
    """Returns the matrix nearest to `target` in the norm of H with the wanted fraction of zeros, and its mask.

    Args:
        target: The matrix without zeros, [rows, columns], float32.
        second: Covariance H of the inputs, [columns, columns].
        sparsity: Fraction of blocks to set to zero.
        tile: Rows and columns of a block.
    """
    # Inputs that are always 0 would divide by 0; their weights do not matter.
    scale = second.diagonal().clamp_min(1e-8 * second.diagonal().mean().clamp_min(1e-30)).sqrt()
    unit = second / torch.outer(scale, scale)
    unit.diagonal().add_(_DAMPING)
    scaled = target * scale
    wanted = scaled @ unit
    unit.diagonal().add_(_RHO)
    inverse = torch.linalg.inv(unit)
    found, dual = scaled, torch.zeros_like(scaled)
    mask = torch.ones_like(scaled, dtype=torch.bool)
    for step in range(1, _GROWING + _FIXED + 1):
        if step <= _GROWING:
            now = sparsity * (1 - (1 - step / _GROWING) ** 3)
            mask = largest_blocks((found + dual).square(), now, tile)
        kept = (found + dual) * mask
        dual = dual + found - kept
        found = (wanted + _RHO * (kept - dual)) @ inverse
    return ((found + dual) * mask) / scale, mask


def largest_blocks(score: Tensor, sparsity: float, tile: tuple[int, int]) -> Tensor:
    """Returns the mask without the blocks of the smallest summed scores: bool, [rows, columns].

    Args:
        score: Importance of each weight, [rows, columns].
        sparsity: Fraction of blocks to leave out, rounded down to whole blocks.
        tile: Rows and columns of a block.
    """
    rows, columns = score.shape
    high, wide = tile
    blocks = score.reshape(rows // high, high, columns // wide, wide).sum(dim=(1, 3))
    zeros = int(sparsity * blocks.numel())
    kept = torch.ones(blocks.numel(), dtype=torch.bool, device=score.device)
    kept[blocks.flatten().argsort(stable=True)[:zeros]] = False
    return kept.view_as(blocks).repeat_interleave(high, 0).repeat_interleave(wide, 1)
