"""Reconstruction keeps a matrix's outputs better than magnitude does, whatever the pattern."""

import pytest
import torch

from toolkit.sparsity.reconstruction import Moments, admm, corrected_target, largest_blocks, reconstruct

TILES = [(1, 1), (4, 1), (2, 2)]


@pytest.fixture
def layer():
    """A matrix and correlated inputs, whose columns differ in size as those of a feed-forward block do."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(24, 24, generator=generator) + 2 * torch.eye(24)
    inputs = torch.randn(4000, 24, generator=generator) @ mixing * torch.linspace(0.1, 3, 24) + 0.5
    return torch.randn(16, 24, generator=generator), torch.randn(16, generator=generator), inputs


def moments_of(dense, now):
    found = Moments(dense.shape[1])
    for rows in torch.arange(len(dense)).chunk(3):
        found.add(dense[rows], now[rows])
    return found


def error(weight, target, second):
    difference = weight - target
    return float((difference @ second * difference).sum())


@pytest.mark.parametrize("tile", TILES)
def test_admm_has_a_smaller_error_than_magnitude_at_the_same_number_of_zeros(layer, tile):
    weight, _, inputs = layer
    second = moments_of(inputs, inputs).centred()[3]
    found, mask = admm(weight, second, 0.5, tile)
    by_magnitude = weight * largest_blocks(weight.square(), 0.5, tile)
    assert int((found == 0).sum()) == int((~mask).sum()) == int((by_magnitude == 0).sum()) == 192
    assert error(found, weight, second) < 0.6 * error(by_magnitude, weight, second)


@pytest.mark.parametrize("tile", TILES)
def test_kept_weights_are_nearly_those_of_least_squares_on_the_mask(layer, tile):
    weight, _, inputs = layer
    second = moments_of(inputs, inputs).centred()[3].double()
    found, mask = admm(weight.double(), second, 0.5, tile)
    exact = torch.zeros_like(found)
    for row, kept in enumerate(mask):
        exact[row, kept] = torch.linalg.solve(second[kept][:, kept], (second @ weight[row].double())[kept])
    assert error(found, weight, second) < 1.1 * error(exact, weight, second)


@pytest.mark.parametrize("tile", TILES)
def test_blocks_are_kept_or_pruned_as_a_whole(layer, tile):
    weight, _, inputs = layer
    mask = admm(weight, moments_of(inputs, inputs).centred()[3], 0.5, tile)[1]
    high, wide = tile
    blocks = mask.reshape(16 // high, high, 24 // wide, wide).float().mean(dim=(1, 3))
    assert set(blocks.unique().tolist()) == {0.0, 1.0}


def test_the_matrix_makes_up_for_changed_inputs(layer):
    weight, bias, dense = layer
    generator = torch.Generator().manual_seed(1)
    change = torch.eye(24) + 0.1 * torch.randn(24, 24, generator=generator)
    now = dense @ change + 0.3
    wanted = dense @ weight.T + bias
    found, new_bias, _ = reconstruct(weight, bias, moments_of(dense, now), 0.0)
    before = (now @ weight.T + bias - wanted).square().mean()
    after = (now @ found.T + new_bias - wanted).square().mean()
    assert after < 0.05 * before


def test_the_bias_takes_up_the_difference_of_the_means(layer):
    weight, bias, dense = layer
    found, new_bias, _ = reconstruct(weight, bias, moments_of(dense, dense), 0.75)
    difference = (dense @ found.T + new_bias) - (dense @ weight.T + bias)
    torch.testing.assert_close(difference.mean(0), torch.zeros(16), atol=1e-3, rtol=0)


def test_without_a_change_of_the_inputs_the_target_is_the_matrix(layer):
    weight, _, inputs = layer
    _, _, cross, second = moments_of(inputs, inputs).centred()
    torch.testing.assert_close(corrected_target(weight, cross, second), weight, atol=1e-3, rtol=1e-3)


def test_inputs_that_are_always_zero_do_no_harm(layer):
    weight, bias, inputs = layer
    inputs[:, 3] = 0
    found, new_bias, mask = reconstruct(weight, bias, moments_of(inputs, inputs), 0.5)
    assert found.isfinite().all()
    assert new_bias.isfinite().all()
    assert int(mask.sum()) == 192
