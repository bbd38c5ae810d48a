"""Reconstruction keeps a matrix's outputs better than magnitude does, whatever the pattern."""

import pytest
import torch

from toolkit.recipe import Tile
from toolkit.sparsity.reconstruction import CHOICES, Moments, corrected_target, least_squares, obs, solve
from toolkit.sparsity.units import keep_units, units_to_prune

PATTERNS = ["tile_pattern_1x1", "tile_pattern_4x1", "tile_pattern_2x2", "1:2", "2:4"]
METHODS = sorted(CHOICES)


@pytest.fixture
def layer():
    """A matrix and correlated inputs, whose columns differ in size as those of a feed-forward block do."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(24, 24, generator=generator) + 2 * torch.eye(24)
    inputs = torch.randn(4000, 24, generator=generator) @ mixing * torch.linspace(0.1, 3, 24) + 0.5
    return torch.randn(16, 24, generator=generator), inputs


def moments_of(dense, now):
    found = Moments(dense.shape[1])
    for rows in torch.arange(len(dense)).chunk(3):
        found.add(dense[rows], now[rows])
    return found


def error(weight, target, second):
    difference = (weight - target).double()
    return float((difference @ second.double() * difference).sum())


def exact(target, second, mask):
    """The least squares of each row on its mask, by the normal equations."""
    found = torch.zeros_like(target, dtype=torch.float64)
    second, target = second.double(), target.double()
    for row, kept in enumerate(mask):
        found[row, kept] = torch.linalg.solve(second[kept][:, kept], (second @ target[row])[kept])
    return found


def solved(method, layer, pattern):
    weight, inputs = layer
    tile, second = Tile.of(pattern), moments_of(inputs, inputs).centred()[3]
    prune = units_to_prune(0.5, tile, weight.numel())
    return (*solve(method, weight, second, prune, tile), second, tile, prune)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_the_error_is_below_that_of_magnitude_at_the_same_number_of_zeros(layer, method, pattern):
    found, mask, second, tile, prune = solved(method, layer, pattern)
    by_magnitude = layer[0] * keep_units(layer[0].abs(), tile, prune)
    assert int((found == 0).sum()) == int((~mask).sum()) == int((by_magnitude == 0).sum()) == 192
    assert error(found, layer[0], second) < 0.7 * error(by_magnitude, layer[0], second)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_kept_weights_are_the_least_squares_on_the_mask(layer, method, pattern):
    found, mask, second, _, _ = solved(method, layer, pattern)
    best = exact(layer[0], second, mask)
    # Not 1: the least squares are damped by 1 % of the diagonal.
    assert error(found, layer[0], second) < 1.02 * error(best, layer[0], second)


def test_obs_makes_up_for_its_first_column_exactly(layer):
    weight, inputs = layer
    weight[:, 0] *= 1e-3
    second = torch.corrcoef(inputs.T) + 0.01 * torch.eye(24)
    found, mask = obs(weight, second, 16, Tile.of("tile_pattern_1x1"))
    assert (~mask).sum(0).tolist() == [16] + [0] * 23
    torch.testing.assert_close(found.double(), exact(weight, second, mask), atol=1e-4, rtol=1e-3)


def test_conjugate_gradients_solve_the_normal_equations_of_each_row(layer):
    weight, inputs = layer
    second = torch.corrcoef(inputs.T) + 0.01 * torch.eye(24)
    mask = torch.rand(16, 24, generator=torch.Generator().manual_seed(1)) < 0.4
    mask[3] = False
    found = least_squares(weight * mask, weight @ second, second, mask)
    torch.testing.assert_close(found.double(), exact(weight, second, mask), atol=1e-3, rtol=1e-2)
    assert not found[~mask].any()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_blocks_and_groups_are_pruned_as_the_pattern_says(layer, method, pattern):
    _, mask, _, tile, _ = solved(method, layer, pattern)
    blocks = mask.view(16 // tile.rows, tile.rows, 24 // tile.columns, tile.columns).float().mean(dim=(1, 3))
    assert set(blocks.unique().tolist()) == ({0.5} if tile.zeros else {0.0, 1.0})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.37, 0.99])
def test_the_number_of_zeros_is_the_wanted_one(layer, method, fraction):
    weight, inputs = layer
    prune = int(fraction * 384)
    _, mask = solve(method, weight, moments_of(inputs, inputs).centred()[3], prune, Tile.of("tile_pattern_1x1"))
    assert int((~mask).sum()) == prune


def test_the_target_makes_up_for_changed_inputs(layer):
    weight, dense = layer
    generator = torch.Generator().manual_seed(1)
    change = torch.eye(24) + 0.1 * torch.randn(24, 24, generator=generator)
    now = dense @ change
    dense_mean, mean, cross, second = moments_of(dense, now).centred()
    target = corrected_target(weight, cross, second)
    wanted = (dense - dense_mean) @ weight.T
    before, after = (((now - mean) @ w.T - wanted).square().mean() for w in (weight, target))
    assert after < 0.05 * before


def test_without_a_change_of_the_inputs_the_target_is_the_matrix(layer):
    weight, inputs = layer
    _, _, cross, second = moments_of(inputs, inputs).centred()
    torch.testing.assert_close(corrected_target(weight, cross, second), weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("inputs", ["a zero column", "equal columns", "all constant", "all zero", "few tokens"])
def test_inputs_without_full_rank_do_no_harm(layer, method, inputs):
    weight, values = layer
    if inputs == "a zero column":
        values[:, 3] = 0
    elif inputs == "equal columns":
        values[:, 5:9] = values[:, 4:5]
    elif inputs == "few tokens":
        values = values[:5]
    else:
        values = torch.full_like(values, 1.5 if inputs == "all constant" else 0.0)
    _, _, cross, second = moments_of(values, values).centred()
    target = corrected_target(weight, cross, second)
    found, mask = solve(method, target, second, 192, Tile.of("tile_pattern_1x1"))
    assert found.isfinite().all()
    assert found.abs().max() < 100
    assert int(mask.sum()) == 192


def test_a_matrix_without_zeros_stays_as_it_is(layer):
    weight, inputs = layer
    found, mask = solve("admm", weight, moments_of(inputs, inputs).centred()[3], 0, Tile.of("2:4"))
    assert torch.equal(found, weight)
    assert mask.all()
