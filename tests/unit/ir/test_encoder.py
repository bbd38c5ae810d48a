"""Encoder stacks of the kernels: results against float64, masks, non-finite values, threads, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import erf

from toolkit.core.errors import UserError
from toolkit.ir import kernels

ACTIVATIONS = {
    "gelu_erf": lambda x: x / 2 * (1 + erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


@pytest.fixture(scope="module", autouse=True)
def built() -> Path:
    return kernels.build()


class Stack:
    """Random layers: packed, and as float64 matrices for the reference."""

    def __init__(self, hidden: int, inner: int, heads: int, layers: int = 1, *, seed: int = 0, quantized: bool = False):
        rng = np.random.default_rng(seed)
        self.heads, self.activation, self.layers, self.matrices = heads, "gelu_erf", [], []
        for _ in range(layers):
            blobs, matrices = [], []
            for i in range(6):
                rows, columns = inner if i == 4 else hidden, inner if i == 5 else hidden
                pattern: kernels.Pattern = "4x1" if rng.random() < 0.5 else "1x1"
                kept = (rng.random((-(-rows // 4), columns)) < 0.4).repeat(4, 0)[:rows]
                kept = kept if pattern == "4x1" else rng.random((rows, columns)) < 0.4
                codes = (rng.integers(-127, 128, (rows, columns)) * kept).astype(np.int8)
                scale = (rng.random(rows) / 60 / np.sqrt(columns) * 8).astype(np.float32)
                bias = rng.normal(size=rows).astype(np.float32) / 4
                blobs.append(kernels.pack(codes, scale, bias, pattern))
                matrices.append((codes * scale[:, None].astype(np.float64), bias.astype(np.float64)))
            norms = rng.normal(size=(4, hidden)).astype(np.float32) / 4 + np.array([[1], [0]] * 2, dtype=np.float32)
            ranges = [(-3.9, 4.1)] * 6 if quantized else [None] * 6
            of_attention = ((-2.9, 3.3), (-3.7, 2.6)) if quantized else None
            self.layers.append(kernels.EncoderLayer(blobs, norms, ranges, (1e-5, 1e-12), of_attention))
            self.matrices.append(matrices)

    def encoder(self, isa: str | None = None) -> kernels.Encoder:
        return kernels.Encoder(self.layers, self.heads, self.activation, isa=isa)

    def reference(self, x: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Dense float64 layers with an additive mask; non-finite values spread as in a dense graph."""
        x = x.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            for layer, matrices in zip(self.layers, self.matrices, strict=True):
                x = self._layer(x, mask, layer, matrices)
        if mask is not None:
            x[~mask] = 0
        return x

    def _layer(self, x, mask, layer, matrices):
        def rounded(values, low, high):
            step = (high - low) / 255
            return np.clip(np.rint((values - low) / step), 0, 255) * step + low

        def product(i, values):
            if layer.ranges[i] is not None:
                values = rounded(values, *layer.ranges[i])
            weight, bias = matrices[i]
            return np.einsum("blk,rk->blr", values, weight) + bias

        def normalized(values, i):
            mean = values.mean(-1, keepdims=True)
            distance = values - mean
            variance = (distance**2).mean(-1, keepdims=True)
            return distance / np.sqrt(variance + layer.epsilons[i]) * layer.norms[2 * i] + layer.norms[2 * i + 1]

        batch, length, hidden = x.shape
        size = hidden // self.heads
        q, k, v = (product(i, x).reshape(batch, length, self.heads, size).transpose(0, 2, 1, 3) for i in range(3))
        if layer.attention_ranges is not None:
            q, k = (rounded(values, *ends) for values, ends in zip((q, k), layer.attention_ranges, strict=True))
        scores = np.einsum("bhqd,bhkd->bhqk", q, k) * size**-0.5
        if mask is not None:
            scores = np.where(mask[:, None, None, :], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        if mask is not None:  # a masked token's value must not reach the sum, not even if it is no number
            v = np.where(mask[:, None, :, None], v, 0)
        context = np.einsum("bhqk,bhkd->bhqd", weights, v).transpose(0, 2, 1, 3).reshape(batch, length, hidden)
        x = normalized(x + product(3, context), 0)
        return normalized(x + product(5, ACTIVATIONS[self.activation](product(4, x))), 1)


def activations(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def valid_tokens(batch: int, length: int, seed: int = 2) -> np.ndarray:
    """At least one valid token in each sequence; a prefix in the first, any tokens in the others."""
    rng = np.random.default_rng(seed)
    mask = rng.random((batch, length)) < 0.7
    mask[0] = np.arange(length) < rng.integers(1, length + 1)
    mask[:, rng.integers(length)] = True
    return mask


SHAPES = [
    (8, 12, 1, 1, 1),
    (32, 64, 4, 2, 16),
    (48, 100, 12, 3, 33),
    (130, 260, 10, 1, 70),
    (64, 32, 1, 2, 130),
    (42, 7, 6, 5, 9),
]


@pytest.mark.parametrize(("hidden", "inner", "heads", "batch", "length"), SHAPES)
def test_stack_equals_float64_on_every_instruction_set_for_any_shape_and_mask(hidden, inner, heads, batch, length):
    stack = Stack(hidden, inner, heads, layers=2, seed=hidden)
    x = activations((batch, length, hidden))
    for mask in (None, valid_tokens(batch, length)):
        wanted = stack.reference(x, mask)
        for isa in kernels.instruction_sets():
            np.testing.assert_allclose(stack.encoder(isa)(x, mask), wanted, rtol=0, atol=2e-4, err_msg=isa)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_of_the_feed_forward_equals_its_formula(activation):
    stack = Stack(32, 48, 4)
    stack.activation = activation
    x = activations((2, 11, 32))
    for isa in kernels.instruction_sets():
        np.testing.assert_allclose(stack.encoder(isa)(x), stack.reference(x), rtol=0, atol=1e-4, err_msg=isa)


@pytest.mark.parametrize("length", [5, 64, 200])
def test_products_of_quantized_activations_round_them_to_the_ranges_levels(length):
    stack = Stack(64, 96, 4, quantized=True)
    x, mask = activations((2, length, 64)), valid_tokens(2, length)
    wanted = stack.reference(x, mask)
    for isa in kernels.instruction_sets():
        difference = np.abs(stack.encoder(isa)(x, mask) - wanted)
        assert np.median(difference[mask]) < 1e-5, isa  # where float32 and float64 round to the same level
        assert difference.max() < 0.1, isa  # a level is 0.03


def test_a_long_sequence_and_large_scores_neither_overflow_nor_lose_small_weights():
    stack = Stack(32, 32, 2)
    x = 30 * activations((1, 700, 32))
    for isa in kernels.instruction_sets():
        np.testing.assert_allclose(stack.encoder(isa)(x), stack.reference(x), rtol=0, atol=1e-2, err_msg=isa)


def test_padding_changes_no_valid_token_and_is_zero_in_the_result():
    stack = Stack(48, 96, 6, layers=3, quantized=True)
    short = activations((1, 20, 48))
    padded = np.full((1, 50, 48), np.nan, dtype=np.float32)  # not even read
    padded[:, :20] = short
    for isa in kernels.instruction_sets():
        encoder = stack.encoder(isa)
        result = encoder(padded, np.arange(50)[None] < 20)
        np.testing.assert_array_equal(result[:, :20], encoder(short))
        assert not result[:, 20:].any()


def test_sequences_of_a_batch_do_not_see_each_other():
    stack = Stack(32, 64, 4, layers=2)
    lengths = [7, 70, 1, 33]
    x = activations((4, 70, 32))
    mask = np.arange(70) < np.array(lengths)[:, None]
    for isa in kernels.instruction_sets():
        encoder = stack.encoder(isa)
        together = encoder(x, mask)
        for i, length in enumerate(lengths):
            np.testing.assert_allclose(together[i, :length], encoder(x[i : i + 1, :length])[0], rtol=0, atol=1e-5)


def test_a_sequence_without_valid_tokens_is_zero():
    stack = Stack(16, 16, 2)
    mask = np.array([[False] * 5, [True] * 5])
    x = activations((2, 5, 16))
    np.testing.assert_allclose(stack.encoder()(x, mask)[1], stack.reference(x[1:])[0], rtol=0, atol=1e-4)
    assert not stack.encoder()(x, mask)[0].any()
    assert not stack.encoder()(x, np.zeros((2, 5), dtype=bool)).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quantized", [False, True])
def test_a_value_that_is_not_finite_reaches_the_same_tokens_as_in_a_dense_graph(value, quantized):
    stack = Stack(32, 64, 4, quantized=quantized)
    x = activations((3, 40, 32))
    x[1, 17, 5] = value
    wanted = np.isfinite(stack.reference(x))
    assert not wanted[1, 17].any()
    assert wanted[0].all()
    assert wanted[1, 0].all() == (quantized and not np.isnan(value))  # an infinity has a nearest level
    for isa in kernels.instruction_sets():
        np.testing.assert_array_equal(np.isfinite(stack.encoder(isa)(x)), wanted, err_msg=isa)


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_several_threads_give_the_results_of_one(threads):
    stack = Stack(32, 64, 4, layers=3)
    for batch, length in ((1, 16), (1, 100), (6, 45)):
        x, mask = activations((batch, length, 32)), valid_tokens(batch, length)
        for isa in kernels.instruction_sets():
            encoder = stack.encoder(isa)
            np.testing.assert_allclose(encoder(x, mask, threads), encoder(x, mask), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
def test_products_of_codes_are_bitwise_equal_on_every_instruction_set_that_has_them(pattern):
    rng = np.random.default_rng(0)
    kept = (rng.random((50, 700)) < 0.3).repeat(4, 0) if pattern == "4x1" else rng.random((200, 700)) < 0.3
    codes = (rng.integers(-127, 128, (200, 700)) * kept).astype(np.int8)
    blob = kernels.pack(codes, rng.random(200).astype(np.float32), pattern=pattern)
    x = activations((75, 700))
    with_codes = [isa for isa in kernels.instruction_sets() if isa != "scalar"]
    results = [kernels.Layer([blob], ranges=[(-2.5, 3.1)], isa=isa)(x)[0] for isa in with_codes]
    assert results
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_what_does_not_fit_together_is_refused():
    good = Stack(32, 64, 4).layers[0]
    other = Stack(16, 64, 4).layers[0]

    def changed(**fields):
        return kernels.EncoderLayer(**({"blobs": good.blobs, "norms": good.norms} | fields))

    swapped = [*good.blobs[:4], good.blobs[5], good.blobs[4]]
    damaged = [blob.copy() for blob in good.blobs]
    damaged[3][200] ^= 1
    for layers, heads, scale in (
        ([good], 5, None),
        ([good], 0, 1.0),
        ([good], 4, float("nan")),
        ([good], 4, -1.0),
        ([good, changed(blobs=other.blobs)], 4, None),
        ([changed(blobs=swapped)], 4, None),
        ([changed(ranges=[(1.0, 1.0)] * 6)], 4, None),
        ([changed(epsilons=(-1.0, 1e-5))], 4, None),
        ([changed(epsilons=(1e-5, float("nan")))], 4, None),
    ):
        with pytest.raises(UserError, match="argument out of range"):
            kernels.Encoder(layers, heads, scale=scale)
    with pytest.raises(UserError, match="damaged"):
        kernels.Encoder([changed(blobs=damaged)], 4)
