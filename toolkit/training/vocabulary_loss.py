"""Chunked losses over the vocabulary: value and gradient, without ever storing the logits of all rows.

The last layer of a masked language model maps [rows, 384] hidden states to [rows, 30522] logits; the teacher has as
many, and their softmaxes as many again. Here only one chunk of rows exists at a time: the gradient of a chunk is
computed together with its loss, and its logits are freed. Nothing is computed twice. The gradients, as large as hidden
states and weights, are stored until the backward pass multiplies them by the incoming gradient.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Terms = Callable[[Tensor, Tensor | None, slice], tuple[Tensor, ...]]
TeacherLogitsFn = Callable[[slice], Tensor]  # slice of all rows -> the teacher's logits of these rows

# Logits in a chunk. Chunks must not be small: each reads all weights and adds to the gradient of all weights.
_NUMBERS = {"cpu": 1 << 23, "cuda": 1 << 27}
# Words per thread in one matrix product on a CPU: a product as wide as the vocabulary is slow (benchmarks).
_WORDS_OF_A_PRODUCT = 512
# Logits per evaluation of the loss, a part of a chunk: its intermediate results, about eight tensors, then fit into the
# CPU's cache, and glibc reuses their memory instead of mapping new pages.
_NUMBERS_OF_A_LOSS = {"cpu": 1 << 19, "cuda": 1 << 25}


def rows_per_chunk(width: int, kind: str) -> int:
    """Returns the maximum number of rows in a chunk, for `width` logits per row on a device of this kind."""
    return max(1, _NUMBERS.get(kind, _NUMBERS["cpu"]) // width)


def rows_per_loss(width: int, kind: str) -> int:
    """Returns the maximum number of rows in one evaluation of the loss."""
    return max(1, _NUMBERS_OF_A_LOSS.get(kind, _NUMBERS_OF_A_LOSS["cpu"]) // width)


def chunked_loss(
    terms: Terms, rows: Tensor, decoder: nn.Linear, weights: tuple[float, ...], teacher: TeacherLogitsFn | None = None
) -> tuple[Tensor, Tensor]:
    """Computes a loss over logits with k terms, each a sum over rows.

    Args:
        terms: (logits of some rows [m, V], the teacher's, slice of these rows) -> the k terms, summed over these rows.
        rows: Inputs of the decoder, [n, h]; n may be 0.
        decoder: Hidden states -> logits.
        weights: Weights of the terms, [k]; a term of weight 0 does not contribute to the gradient.
        teacher: Slice of the rows -> the teacher's logits of these rows; None without a teacher.

    Returns:
        The weighted sum over all rows, with its gradient; and the terms, detached, [k].
    """
    if torch.is_grad_enabled():
        total, found = _ChunkedLoss.apply(terms, weights, teacher, rows, decoder.weight, decoder.bias)
        return total, found
    found = torch.zeros(len(weights), device=rows.device)
    decode = decoder_of(decoder)
    for part in _parts(len(rows), rows_per_chunk(len(decoder.weight), rows.device.type)):
        found += torch.stack(terms(decode(rows[part]), None if teacher is None else teacher(part), part))
    return _weighted(found.unbind(), weights), found


def _parts(count: int, most: int) -> list[slice]:
    """Splits rows into equal chunks: a small remainder would cost almost as much as a full chunk."""
    size = math.ceil(count / max(1, math.ceil(count / most)))
    return [slice(first, min(first + size, count)) for first in range(0, count, size or 1)]


def _weighted(terms: Sequence[Tensor], weights: tuple[float, ...]) -> Tensor:
    parts = [weight * term for weight, term in zip(weights, terms, strict=True) if weight]
    return torch.stack(parts).sum()


def decoder_of(decoder: nn.Linear) -> Callable[[Tensor], Tensor]:
    """Returns a function: rows [m, h] -> logits [m, V], without a graph.

    Its precision is that of autocast at this call, not at the later ones; weights are cast once, here.
    """
    reduced = _reduced(decoder.weight)
    weight, bias = decoder.weight.detach().to(reduced), decoder.bias

    @torch.no_grad()
    def decode(rows: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            return _product(rows.to(reduced), weight, None if bias is None else bias.to(reduced))

    return decode


def _reduced(weight: Tensor) -> torch.dtype:
    """Dtype of a product with these weights: that of autocast if enabled, else theirs."""
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
    """Computes gradients in the forward pass; the incoming gradient only scales them in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        terms: Terms,
        weights: tuple[float, ...],
        teacher: TeacherLogitsFn | None,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        found = torch.zeros(len(weights), device=rows.device)
        row_gradient = torch.zeros_like(rows)
        weight_gradient = torch.zeros_like(weight) if weight.requires_grad else None
        bias_gradient = None if bias is None or not bias.requires_grad else torch.zeros_like(bias)
        reduced = _reduced(weight)
        low_rows, low_weight = rows.to(reduced), weight.to(reduced)  # once, not in every chunk
        for part in _parts(len(rows), rows_per_chunk(len(weight), rows.device.type)):
            logits = _product(low_rows[part], low_weight, bias)
            found += _to_gradient(terms, weights, logits, None if teacher is None else teacher(part), part)
            row_gradient[part] = logits @ low_weight
            if weight_gradient is not None:
                _add_product(weight_gradient, logits.t(), low_rows[part])
            if bias_gradient is not None:
                bias_gradient += logits.sum(0, dtype=bias_gradient.dtype)
        ctx.gradients = (row_gradient, weight_gradient, bias_gradient)
        ctx.mark_non_differentiable(found)
        return _weighted(found.unbind(), weights), found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor, *_: Any) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the backward pass runs once"
        return (None, None, None, *(None if g is None else g.mul_(above) for g in gradients))


def _to_gradient(
    terms: Terms, weights: tuple[float, ...], logits: Tensor, teacher_logits: Tensor | None, part: slice
) -> Tensor:
    """Returns the terms of a chunk, [k], and replaces its logits by the gradient of the weighted sum."""
    found = torch.zeros(len(weights), device=logits.device)
    for some in _parts(len(logits), rows_per_loss(logits.shape[1], logits.device.type)):
        own = logits[some].detach().requires_grad_()
        with torch.enable_grad():
            among_all = slice(part.start + some.start, part.start + some.stop)
            sums = terms(own, None if teacher_logits is None else teacher_logits[some], among_all)
            total = _weighted(sums, weights)
        found += torch.stack(sums).detach()
        logits[some] = torch.autograd.grad(total, own)[0] if total.requires_grad else 0.0
    return found


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a temporary of that size if all have the same dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
