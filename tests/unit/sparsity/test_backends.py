"""The three back ends against reference implementations: equal masks at every update."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toolkit.core.errors import UserError
from toolkit.recipe import Pruning
from toolkit.sparsity.factory import make_sparsifier
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.pruners import PrunerGroup

BACKENDS = ["inc", "nncf", "magnitude"]
START, END, FREQUENCY, STEPS = 2, 14, 3, 18
# Parameter name -> module, as `models.prunable_matrices` names them: with dots.
NAMES = {"encoder.layer.0.query.weight": 0, "encoder.layer.0.output.weight": 2}


def section(backend: str, **compression: object) -> Pruning:
    settings = {
        "target_sparsity": 0.9,
        "start_step": START,
        "end_step": END,
        "update_frequency_on_step": FREQUENCY,
        "sparsity_decay_type": "cubic",
    }
    return Pruning.model_validate(
        {"backend": backend, "approach": {"weight_compression": settings | compression}},
    )


def tiny_model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(44, 60), nn.Tanh(), nn.Linear(60, 44), nn.Linear(44, 3))


def matrices_of(model: nn.Sequential) -> dict[str, nn.Linear]:
    return {name: model[index] for name, index in NAMES.items()}  # type: ignore[misc]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One optimizer step in bfloat16 autocast on data that depends on the step alone."""
    data = torch.randn(8, 44, generator=torch.Generator().manual_seed(step))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(data).float().pow(2).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def attached(settings: Pruning, model: nn.Sequential) -> PrunerGroup:
    return make_sparsifier(settings, matrices_of(model), 0)


def pruned_run(pruner: PrunerGroup, model: nn.Sequential) -> list[dict[str, Tensor]]:
    """Trains and prunes; the mask as it was in each step."""
    optimizer, masks = optimizer_of(model), []
    for step in range(STEPS):
        pruner.before_step(step)
        learn(model, optimizer, step)
        pruner.after_optimizer_step()
        masks.append(dict(pruner.mask.tensors))
    return masks


def reference_run(
    model: nn.Sequential, choose: Callable[[dict[str, np.ndarray], float], dict[str, np.ndarray]], target: float
) -> list[dict[str, Tensor]]:
    """The method written out: at each update all but the largest weights become zero, after each step they do again."""
    weights = {name: module.weight for name, module in matrices_of(model).items()}
    kept = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    optimizer, masks = optimizer_of(model), []
    for step in range(STEPS):
        if step in (2, 5, 8, 11, 14):
            sparsity = target - target * (1 - (step - START) / (END - START)) ** 3
            scores = {name: w.detach().abs().numpy() for name, w in weights.items()}
            kept = {name: torch.from_numpy(mask) for name, mask in choose(scores, sparsity).items()}
            for name, w in weights.items():
                w.data[~kept[name]] = 0.0
        learn(model, optimizer, step)
        for name, w in weights.items():
            w.data[~kept[name]] = 0.0
        masks.append(kept)
    return masks


def smallest_go(score: np.ndarray, sparsity: float) -> np.ndarray:
    """True for all but the floor(sparsity * n) smallest."""
    kept = np.ones(score.size, dtype=bool)
    kept[np.argsort(score, axis=None, kind="stable")[: math.floor(sparsity * score.size)]] = False
    return kept.reshape(score.shape)


def each_matrix(scores: dict[str, np.ndarray], sparsity: float) -> dict[str, np.ndarray]:
    return {name: smallest_go(score, sparsity) for name, score in scores.items()}


def all_together(scores: dict[str, np.ndarray], sparsity: float) -> dict[str, np.ndarray]:
    kept = smallest_go(np.concatenate([s.ravel() for s in scores.values()]), sparsity)
    parts = np.split(kept, np.cumsum([s.size for s in scores.values()])[:-1])
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def by_norm(scores: dict[str, np.ndarray], sparsity: float) -> dict[str, np.ndarray]:
    """NNCF's meaning of global: each matrix divided by its L2 norm first."""
    return all_together({n: s / torch.from_numpy(s).norm(2).numpy() for n, s in scores.items()}, sparsity)


def blocks_of_4x1(scores: dict[str, np.ndarray], sparsity: float) -> dict[str, np.ndarray]:
    """Four rows of a column live or die together, by their mean."""
    means = {n: torch.from_numpy(s).reshape(-1, 4, s.shape[1]).mean(1).numpy() for n, s in scores.items()}
    return {name: np.repeat(smallest_go(mean, sparsity), 4, axis=0) for name, mean in means.items()}


def two_of_four(scores: dict[str, np.ndarray], sparsity: float) -> dict[str, np.ndarray]:
    """Groups of four in a row lose their two smallest; the groups whose two smallest are smallest on average first."""
    kept = {}
    for name, score in scores.items():
        groups = score.reshape(-1, 4)
        losing = np.argsort(groups, axis=1, kind="stable")[:, :2]
        pruned = np.take_along_axis(groups, losing, axis=1).mean(axis=1)
        mask = np.ones_like(groups, dtype=bool)
        for group in np.argsort(pruned, kind="stable")[: math.floor(2 * sparsity * len(groups))]:
            mask[group, losing[group]] = False
        kept[name] = mask.reshape(score.shape)
    return kept


def assert_same(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    for step, (masks, reference) in enumerate(zip(found, expected, strict=True)):
        for name, kept in reference.items():
            assert torch.equal(masks[name], kept), f"{name} at step {step}: {(masks[name] ^ kept).sum()} differ"


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_back_end_has_the_masks_and_weights_of_the_reference_at_every_step(backend, capfd):
    model, plain = tiny_model(), tiny_model()
    found = pruned_run(attached(section(backend), model), model)
    assert_same(found, reference_run(plain, each_matrix, 0.9))
    for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter, expected)
    out, err = capfd.readouterr()
    assert out + err == ""  # libraries do not talk into the progress display


@pytest.mark.parametrize(
    ("backend", "pattern", "target", "choose"),
    [
        ("inc", "tile_pattern_4x1", 0.8, blocks_of_4x1),
        ("inc", "2:4", 0.5, two_of_four),
        ("magnitude", "tile_pattern_4x1", 0.8, blocks_of_4x1),
        ("magnitude", "2:4", 0.5, two_of_four),
    ],
    ids=["inc 4x1", "inc 2:4", "magnitude 4x1", "magnitude 2:4"],
)
def test_patterns_follow_the_reference_at_every_step(backend, pattern, target, choose):
    model = tiny_model()
    found = pruned_run(attached(section(backend, pattern=pattern, target_sparsity=target), model), model)
    assert_same(found, reference_run(tiny_model(), choose, target))


@pytest.mark.parametrize(
    ("backend", "choose"),
    [("inc", all_together), ("magnitude", all_together), ("nncf", by_norm)],
    ids=["inc", "magnitude", "nncf by norm"],
)
def test_the_global_domain_follows_the_reference_at_every_step(backend, choose):
    model = tiny_model()
    found = pruned_run(attached(section(backend, prune_domain="global"), model), model)
    assert_same(found, reference_run(tiny_model(), choose, 0.9))


@pytest.mark.parametrize("backend", BACKENDS)
def test_sparsity_follows_the_schedule_and_ends_within_a_tenth_of_a_point_in_each_matrix(backend):
    model = tiny_model()
    pruner = attached(section(backend, target_sparsity=0.85), model)
    found = pruned_run(pruner, model)
    (only,) = pruner.pruners_with_schedule
    for step, masks in enumerate(found):
        for kept in masks.values():
            assert 1 - float(kept.float().mean()) == pytest.approx(only.schedule.sparsity(step), abs=1e-3)
    assert all(abs(share - 0.85) <= 1e-3 for share in pruner.mask.per_matrix().values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pruned_weight_never_comes_back_and_is_zero_after_every_step(backend):
    model = tiny_model()
    pruner = attached(section(backend), model)
    optimizer, before = optimizer_of(model), pruner.mask
    for step in range(STEPS):
        pruner.before_step(step)
        for name, kept in pruner.mask.tensors.items():
            assert not (kept & ~before.tensors[name]).any()
        learn(model, optimizer, step)
        pruner.after_optimizer_step()
        assert pruner.mask.violations({name: m.weight for name, m in matrices_of(model).items()}) == {}
        before = pruner.mask


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("resumed_at", [4, 8, 16])
def test_a_resumed_run_has_the_masks_of_one_that_was_not_interrupted(backend, resumed_at, tmp_path: Path):
    settings = section(backend, prune_domain="global")
    model = tiny_model()
    expected = pruned_run(attached(settings, model), model)

    model = tiny_model()
    pruner = attached(settings, model)
    optimizer = optimizer_of(model)
    for step in range(resumed_at):
        pruner.before_step(step)
        learn(model, optimizer, step)
        pruner.after_optimizer_step()
    save_file(pruner.state_dict(), tmp_path / "pruner.safetensors")
    weights, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())

    model = tiny_model()
    pruner = attached(settings, model)
    pruner.load_state_dict(load_file(tmp_path / "pruner.safetensors"))
    model.load_state_dict(weights)
    optimizer = optimizer_of(model)
    optimizer.load_state_dict(moments)
    for step in range(resumed_at, STEPS):
        pruner.before_step(step)
        learn(model, optimizer, step)
        pruner.after_optimizer_step()
        assert_same([dict(pruner.mask.tensors)], [expected[step]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_checkpoint_holds_one_bit_a_weight(backend, tmp_path: Path):
    model = tiny_model()
    pruner = attached(section(backend), model)
    pruner.before_step(8)
    state = pruner.state_dict()
    weights = sum(m.weight.numel() for m in matrices_of(model).values())
    assert sum(value.nbytes for value in state.values()) == weights / 8
    save_file(state, tmp_path / "pruner.safetensors")
    other = attached(section(backend), tiny_model())
    other.load_state_dict(load_file(tmp_path / "pruner.safetensors"))
    assert_same([dict(other.mask.tensors)], [dict(pruner.mask.tensors)])
    assert 0 < other.mask.sparsity() < 0.9


def test_a_matrix_that_a_global_domain_empties_is_treated_the_same_in_a_resumed_run():
    # INC remembers which matrices it found full; a run that is resumed in another process has no such memory.
    def choices(steps: list[int], state: dict[str, Tensor] | None = None) -> list[dict[str, Tensor]]:
        layers = {"small": nn.Linear(50, 40), "large": nn.Linear(50, 40)}
        with torch.no_grad():
            for scale, layer in zip((1e-3, 1.0), layers.values(), strict=True):
                layer.weight.copy_(scale * torch.randn(40, 50, generator=torch.Generator().manual_seed(0)))
        pruner = make_sparsifier(section("inc", prune_domain="global", target_sparsity=0.8), layers, 0)
        if state is not None:
            pruner.load_state_dict(state)
        masks = []
        for step in steps:
            pruner.before_step(step)
            masks.append(dict(pruner.mask.tensors))
        return masks

    whole = choices([2, 5, 8, 11, 14])
    assert whole[-1]["small"].count_nonzero() == 2  # as good as empty, and nearly from the start
    for done in (1, 2, 3, 4):
        state = {name: torch.from_numpy(bits) for name, bits in SparsityMask(whole[done - 1]).bits().items()}
        assert_same(choices([2, 5, 8, 11, 14][done:], state), whole[done:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_attaching_leaves_the_model_and_the_random_numbers_as_they_were(backend):
    model, untouched = tiny_model(), tiny_model()
    random = torch.get_rng_state()
    attached(section(backend), model)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.state_dict().keys() == untouched.state_dict().keys()
    assert all(torch.equal(value, untouched.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [type(module) for module in model.modules()] == [type(module) for module in untouched.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_equal_weights_are_pruned_in_their_order_to_the_exact_share():
    layer = nn.Linear(100, 10)
    layer.weight.data = torch.full((10, 100), 0.5)
    layer.weight.data[-1] = 2.0
    once = section("magnitude", target_sparsity=0.6, start_step=0, end_step=0)
    pruner = make_sparsifier(once, {"w": layer}, 0)
    pruner.before_step(0)
    assert pruner.mask.tensors["w"].flatten().tolist() == [False] * 600 + [True] * 400


def test_what_is_pruned_stays_so_beside_a_weight_that_happens_to_be_zero():
    layer = nn.Linear(4, 1)
    layer.weight.data = torch.tensor([[3.0, 4.0, 1.0, 2.0]])
    half = section("magnitude", target_sparsity=0.5, initial_sparsity=0.5, start_step=0, end_step=1)
    pruner = make_sparsifier(half, {"w": layer}, 0)
    pruner.before_step(0)
    layer.weight.data[0, 0] = 0.0
    pruner.before_step(1)
    assert pruner.mask.tensors["w"].tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    ("backend", "settings", "says"),
    [
        ("nncf", {"pattern": "tile_pattern_4x1"}, "pattern 'tile_pattern_4x1'"),
        ("nncf", {"pattern": "2:4", "target_sparsity": 0.5}, "pattern '2:4'"),
        ("nncf", {"pruners": [{"prune_type": "snip"}]}, "prune_type snip"),
        ("nncf", {"prune_domain": "global", "max_sparsity_ratio_per_layer": 0.95}, "max_sparsity_ratio_per_layer"),
        ("nncf", {"pruners": [{"prune_type": "group_lasso"}]}, "prune_type group_lasso"),
        (
            "inc",
            {"pattern": "2:4", "target_sparsity": 0.5, "pruners": [{"prune_type": "group_lasso"}]},
            "which has no blocks",
        ),
    ],
)
def test_what_a_back_end_cannot_do_is_the_user_s_error(backend, settings, says):
    with pytest.raises(UserError, match=f"{backend} does not support .*{says}") as caught:
        attached(section(backend, **settings), tiny_model())
    assert "inc" in caught.value.instead


@pytest.mark.parametrize("backend", ["inc", "magnitude"])
@pytest.mark.parametrize(("pattern", "target", "shape"), [("tile_pattern_4x1", 0.9, (6, 8)), ("2:4", 0.5, (8, 6))])
def test_a_pattern_that_the_matrices_cannot_have_is_the_user_s_error(backend, pattern, target, shape):
    settings = section(backend, pattern=pattern, target_sparsity=target)
    with pytest.raises(UserError, match=f"does not divide w of shape {shape[0]}x{shape[1]}") as caught:
        make_sparsifier(settings, {"w": nn.Linear(shape[1], shape[0])}, 0)
    assert caught.value.where
    assert caught.value.instead


def test_magnitude_loads_neither_nncf_nor_neural_compressor():
    code = (
        "import sys, torch; from toolkit.recipe import Pruning\n"
        "from toolkit.sparsity.factory import make_sparsifier\n"
        "pruner = make_sparsifier(Pruning(backend='magnitude'), {'w': torch.nn.Linear(4, 4)}, 0)\n"
        "pruner.before_step(0); print([m for m in ('nncf', 'neural_compressor', 'openvino') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_ramp_in_steps_and_epochs_that_ends_before_it_begins_is_the_user_s_error():
    mixed = section("magnitude", start_step=150, end_epoch=2, end_step=0)
    assert len(make_sparsifier(mixed, {"w": nn.Linear(8, 8)}, 100).pruners) == 1
    with pytest.raises(UserError, match="at step 100, and at 150"):
        make_sparsifier(mixed, {"w": nn.Linear(8, 8)}, 50)
