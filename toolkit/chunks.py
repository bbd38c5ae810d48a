"""Losses over many rows, a few rows at a time: value and gradient, without what all rows together would take.

The vocabulary head makes [rows, 30522] logits of [rows, 384] hidden states, the teacher's head as many, and their
softmaxes as many again. Here only a chunk of them exists at any moment: as soon as the loss of a chunk is known, its
gradient is taken, and the logits are gone. Nothing is computed twice. The gradients wait, as large as hidden states and
weights, until the backward pass multiplies them by what comes from above.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Terms = Callable[[Tensor, slice], tuple[Tensor, ...]]

# Numbers in a chunk of logits. A loss has about eight tensors of this size; a chunk's gradient of the head's weights
# is added to that of the others, so chunks must not be small either.
_NUMBERS = {"cpu": 1 << 23, "cuda": 1 << 27}


def rows_of(width: int, kind: str) -> int:
    """Rows of a chunk, when each becomes `width` logits on a device of this kind."""
    return max(1, _NUMBERS.get(kind, _NUMBERS["cpu"]) // width)


def weighted_sum(
    terms: Terms,
    rows: Tensor,
    parameters: Sequence[Tensor],
    weights: tuple[float, ...],
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The terms of a loss, each a sum over rows.

    Args:
        terms: (some rows [m, h], where they lie among all) -> the k terms' sums over these rows.
        rows: [n, h]; n may be 0.
        parameters: What else gradients are wanted of; those that `terms` does not use stay without.
        weights: Of the terms, [k]; one of weight 0 has no part in the gradient.
        chunk: Rows in one call of `terms`.

    Returns:
        The weighted sum over all rows, with its gradient; and the terms, detached, [k].
    """
    if torch.is_grad_enabled():
        wanted = tuple(p for p in parameters if p.requires_grad)
        total, found = _WeightedSum.apply(terms, weights, chunk, rows, *wanted)
        return total, found
    found = torch.zeros(len(weights), device=rows.device)
    for part in _parts(len(rows), chunk):
        found += torch.stack(terms(rows[part], part))
    return _weighted(found.unbind(), weights), found


def _parts(count: int, chunk: int) -> list[slice]:
    return [slice(first, min(first + chunk, count)) for first in range(0, count, chunk)]


def _weighted(terms: Sequence[Tensor], weights: tuple[float, ...]) -> Tensor:
    parts = [weight * term for weight, term in zip(weights, terms, strict=True) if weight]
    return torch.stack(parts).sum()


class _WeightedSum(torch.autograd.Function):
    """Takes the gradients in the forward pass: the sum is linear in what comes from above, whatever that will be."""

    @staticmethod
    def forward(
        ctx: Any,
        terms: Terms,
        weights: tuple[float, ...],
        chunk: int,
        rows: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        found = torch.zeros(len(weights), device=rows.device)
        of_rows = torch.zeros_like(rows)
        of_parameters: list[Tensor | None] = [None] * len(parameters)
        for part in _parts(len(rows), chunk):
            own = rows[part].detach().requires_grad_()
            with torch.enable_grad():
                sums = terms(own, part)
                total = _weighted(sums, weights)
            mine, *others = torch.autograd.grad(total, (own, *parameters), allow_unused=True)
            found += torch.stack(sums).detach()
            of_rows[part] = 0 if mine is None else mine
            for number, other in enumerate(others):
                if other is not None:
                    before = of_parameters[number]
                    of_parameters[number] = other if before is None else before.add_(other)
        ctx.gradients = (of_rows, *of_parameters)
        ctx.mark_non_differentiable(found)
        return _weighted(found.unbind(), weights), found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor, *_: Any) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the backward pass runs once"
        return (None, None, None, *(None if g is None else g.mul_(above) for g in gradients))
