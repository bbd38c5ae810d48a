"""Losses over the vocabulary, a few rows at a time: value and gradient, without the logits of all rows together.

The last layer of a masked language model makes [rows, 30522] logits of [rows, 384] hidden states, the teacher's as
many, and their softmaxes as many again. Here only a chunk of them exists at any moment: as soon as the loss of a chunk
is known, its gradient is taken, and the logits are gone. Nothing is computed twice. The gradients wait, as large as
hidden states and weights, until the backward pass multiplies them by what comes from above.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Terms = Callable[[Tensor, Tensor | None, slice], tuple[Tensor, ...]]
TeacherLogitsFn = Callable[[slice], Tensor]  # some rows -> the teacher's logits of them

# Numbers in a chunk of logits. Chunks must not be small: each reads all weights and adds to the gradient of all.
_NUMBERS = {"cpu": 1 << 23, "cuda": 1 << 27}
# Words, for each thread, that a CPU decodes at a time: a product as wide as a vocabulary is slow (benchmarks).
_WORDS_OF_A_PRODUCT = 512
# Of these the loss takes some at a time: what a formula makes on the way, eight tensors or so, stays small enough to be
# near the processor, and for glibc to hand out the same memory again instead of fresh pages.
_NUMBERS_OF_A_LOSS = {"cpu": 1 << 19, "cuda": 1 << 25}


def rows_per_chunk(width: int, kind: str) -> int:
    """Rows of a chunk at most, when each becomes `width` logits on a device of this kind."""
    return max(1, _NUMBERS.get(kind, _NUMBERS["cpu"]) // width)


def rows_per_loss(width: int, kind: str) -> int:
    """Rows of which a loss is taken at once at most."""
    return max(1, _NUMBERS_OF_A_LOSS.get(kind, _NUMBERS_OF_A_LOSS["cpu"]) // width)


def chunked_loss(
    terms: Terms, rows: Tensor, decoder: nn.Linear, weights: tuple[float, ...], taught: TeacherLogitsFn | None = None
) -> tuple[Tensor, Tensor]:
    """The terms of a loss of logits, each a sum over rows.

    Args:
        terms: (logits of some rows [m, V], the teacher's, where these rows lie among all) -> the k terms' sums.
        rows: What the decoder takes, [n, h]; n may be 0.
        decoder: hidden states -> logits.
        weights: Of the terms, [k]; one of weight 0 has no part in the gradient.
        taught: Where rows lie among all -> the teacher's logits of them, or None.

    Returns:
        The weighted sum over all rows, with its gradient; and the terms, detached, [k].
    """
    if torch.is_grad_enabled():
        total, found = _ChunkedLoss.apply(terms, weights, taught, rows, decoder.weight, decoder.bias)
        return total, found
    found = torch.zeros(len(weights), device=rows.device)
    decode = decoder_of(decoder)
    for part in _parts(len(rows), rows_per_chunk(len(decoder.weight), rows.device.type)):
        found += torch.stack(terms(decode(rows[part]), None if taught is None else taught(part), part))
    return _weighted(found.unbind(), weights), found


def _parts(count: int, most: int) -> list[slice]:
    """Of about the same size: a small rest would cost almost as much as a whole chunk."""
    size = math.ceil(count / max(1, math.ceil(count / most)))
    return [slice(first, min(first + size, count)) for first in range(0, count, size or 1)]


def _weighted(terms: Sequence[Tensor], weights: tuple[float, ...]) -> Tensor:
    parts = [weight * term for weight, term in zip(weights, terms, strict=True) if weight]
    return torch.stack(parts).sum()


def decoder_of(decoder: nn.Linear) -> Callable[[Tensor], Tensor]:
    """Rows [m, h] -> logits [m, V], without a graph.

    In the precision of the autocast around this call, whatever is around the later ones; weights are cast here, once.
    """
    reduced = _reduced(decoder.weight)
    weight, bias = decoder.weight.detach().to(reduced), decoder.bias

    @torch.no_grad()
    def decode(rows: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            return _product(rows.to(reduced), weight, None if bias is None else bias.to(reduced))

    return decode


def _reduced(weight: Tensor) -> torch.dtype:
    """What a product with these weights is computed in."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows [m, h] @ weight [V, h].T + bias [V], without a graph."""
    if rows.device.type != "cpu" or rows.dtype != torch.float32:
        return F.linear(rows, weight, bias)
    logits = rows.new_empty(len(rows), len(weight))
    words = _WORDS_OF_A_PRODUCT * torch.get_num_threads()
    for first in range(0, len(weight), words):
        some = slice(first, first + words)
        if bias is None:
            torch.mm(rows, weight[some].t(), out=logits[:, some])
        else:
            torch.addmm(bias[some], rows, weight[some].t(), out=logits[:, some])
    return logits


class _ChunkedLoss(torch.autograd.Function):
    """Takes the gradients in the forward pass: the sum is linear in what comes from above, whatever that will be."""

    @staticmethod
    def forward(
        ctx: Any,
        terms: Terms,
        weights: tuple[float, ...],
        taught: TeacherLogitsFn | None,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        found = torch.zeros(len(weights), device=rows.device)
        of_rows = torch.zeros_like(rows)
        of_weight = torch.zeros_like(weight) if weight.requires_grad else None
        of_bias = None if bias is None or not bias.requires_grad else torch.zeros_like(bias)
        reduced = _reduced(weight)
        low_rows, low_weight = rows.to(reduced), weight.to(reduced)  # once, not in every chunk
        for part in _parts(len(rows), rows_per_chunk(len(weight), rows.device.type)):
            logits = _product(low_rows[part], low_weight, bias)
            found += _to_gradient(terms, weights, logits, None if taught is None else taught(part), part)
            of_rows[part] = logits @ low_weight
            if of_weight is not None:
                _add_product(of_weight, logits.t(), low_rows[part])
            if of_bias is not None:
                of_bias += logits.sum(0, dtype=of_bias.dtype)
        ctx.gradients = (of_rows, of_weight, of_bias)
        ctx.mark_non_differentiable(found)
        return _weighted(found.unbind(), weights), found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor, *_: Any) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the backward pass runs once"
        return (None, None, None, *(None if g is None else g.mul_(above) for g in gradients))


def _to_gradient(
    terms: Terms, weights: tuple[float, ...], logits: Tensor, theirs: Tensor | None, part: slice
) -> Tensor:
    """The terms of a chunk, [k]; in place of its logits, the gradient of their weighted sum."""
    found = torch.zeros(len(weights), device=logits.device)
    for some in _parts(len(logits), rows_per_loss(logits.shape[1], logits.device.type)):
        own = logits[some].detach().requires_grad_()
        with torch.enable_grad():
            among_all = slice(part.start + some.start, part.start + some.stop)
            sums = terms(own, None if theirs is None else theirs[some], among_all)
            total = _weighted(sums, weights)
        found += torch.stack(sums).detach()
        logits[some] = torch.autograd.grad(total, own)[0] if total.requires_grad else 0.0
    return found


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a second tensor of that size where one precision allows it."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
