"""The mask: what it keeps at zero, what it counts, and its file."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from toolkit.core.errors import UserError
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.mask_file import MASK_FILE, require_fitting_mask
from toolkit.sparsity.pruners import PatternLock


def random_mask(**shapes: tuple[int, int]) -> SparsityMask:
    generator = torch.Generator().manual_seed(0)
    return SparsityMask({name: torch.rand(shape, generator=generator) < 0.3 for name, shape in shapes.items()})


def test_from_zeros_keeps_what_is_not_zero():
    weight = nn.Parameter(torch.tensor([[0.0, 1.5], [-0.0, -1e-30]]))
    assert SparsityMask.from_zeros({"w": weight}).tensors["w"].tolist() == [[False, True], [False, True]]


def test_apply_sets_exactly_plus_zero_in_place_and_leaves_the_rest_alone():
    weight = nn.Parameter(torch.tensor([[-1.0, 2.0], [float("nan"), -3.0]]))
    storage = weight.data_ptr()
    SparsityMask({"w": torch.tensor([[False, True], [False, True]])}).apply_({"w": weight})
    assert weight.tolist() == [[0.0, 2.0], [0.0, -3.0]]
    assert not torch.signbit(weight[:, 0]).any()  # -0.0 is a zero too, but its sign is a bit that does not compress
    assert weight.data_ptr() == storage


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_apply_leaves_the_very_bits_of_what_is_kept_in_every_float_type(dtype):
    weight = (torch.randn(40, 30) * 10.0 ** torch.randint(-4, 4, (40, 30))).to(dtype).t()  # not contiguous
    weight[0, :3] = torch.tensor([float("inf"), -0.0, float("-inf")])
    kept, before = torch.rand(30, 40) > 0.5, weight.clone()
    kept[0, :2], kept[0, 2] = True, False
    SparsityMask({"a": kept}).apply_({"a": weight})
    assert torch.equal(weight[kept], before[kept])
    assert not weight[~kept].any()
    assert torch.signbit(weight[0, 1])
    assert not torch.signbit(weight[~kept]).any()


def test_violations_count_the_non_zero_weights_outside_the_pattern():
    mask = SparsityMask({"a": torch.tensor([True, False, False]), "b": torch.tensor([False, True])})
    weights = {"a": torch.tensor([0.0, 1e-38, -5.0]), "b": torch.tensor([-0.0, 1.0])}
    assert mask.violations(weights) == {"a": 2}
    mask.apply_(weights)
    assert mask.violations(weights) == {}


def test_sparsity_counts_each_matrix_and_all_together():
    mask = SparsityMask({"a": torch.tensor([True, False, False, False]), "b": torch.ones(2, 6, dtype=torch.bool)})
    assert mask.per_matrix() == {"a": 0.75, "b": 0.0}
    assert mask.sparsity() == 3 / 16


def test_beside_follows_the_parameters_and_does_nothing_when_there():
    mask = SparsityMask({"w": torch.tensor([True, False])})
    assert mask.on_devices_of({"w": torch.zeros(2)}) is mask
    assert mask.on_devices_of({"w": torch.zeros(2, device="meta")}).tensors["w"].device.type == "meta"


def train(model: nn.Module, lock: PatternLock | None, optimizer: torch.optim.Optimizer, steps: int = 12) -> None:
    """A few steps in bfloat16 autocast, as the training loop does them."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        if lock is not None:
            lock.before_step(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.randn(8, 16, generator=generator)).float().pow(2).mean()
        loss.backward()
        optimizer.step()
        if lock is not None:
            lock.after_optimizer_step()
            assert lock.mask.violations({"0.weight": model[0].weight, "2.weight": model[2].weight}) == {}
        optimizer.zero_grad()


OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_locked_weights_are_exactly_zero_after_every_step_under_weight_decay_and_bf16(optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))
    mask = random_mask(**{"0.weight": (24, 16), "2.weight": (16, 24)})
    matrices = {"0.weight": model[0], "2.weight": model[2]}
    weights = {name: module.weight for name, module in matrices.items()}

    # A pattern that is locked only now, with the momentum of dense steps behind it: the hardest case.
    chosen = OPTIMIZERS[optimizer](model.parameters())
    train(model, None, chosen)
    lock = PatternLock(mask)
    lock.attach(matrices)
    assert mask.violations(weights) == {}
    before = model[0].weight.detach().clone()
    train(model, lock, chosen)
    assert not torch.equal(model[0].weight, before)  # the weights that are kept do learn
    assert lock.mask.per_matrix() == mask.per_matrix()

    train(model, None, chosen, steps=1)
    assert mask.violations(weights)  # and without the lock they would not stay


def test_a_lock_moves_its_mask_to_where_the_weights_are():
    mask = random_mask(w=(4, 4))
    lock = PatternLock(mask)
    lock.attach({"w": nn.Linear(4, 4, device="meta")})  # a device that every machine has
    assert lock.mask.tensors["w"].device.type == "meta"
    lock.mask = mask  # as if the model had been moved since
    lock.after_optimizer_step()
    assert lock.mask.tensors["w"].device.type == "meta"


def test_a_saved_mask_comes_back_equal_from_one_bit_a_weight(tmp_path: Path):
    mask = random_mask(a=(7, 9), b=(64, 1000))
    mask.save(tmp_path / "mask.safetensors")
    loaded = SparsityMask.load(tmp_path / "mask.safetensors")
    assert loaded.tensors.keys() == mask.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], kept) for name, kept in mask.tensors.items())
    assert (tmp_path / "mask.safetensors").stat().st_size < 64 * 1000 / 8 + 400


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def scrambled(path: Path) -> None:
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def of_another_kind(path: Path) -> None:
    save_file({"w": np.zeros((4, 4), np.float32)}, path)


def with_floats(path: Path) -> None:
    save_file({"w": np.zeros(2, np.float32)}, path, metadata={"shapes": json.dumps({"w": [4, 4]})})


def too_short(path: Path) -> None:
    save_file({"w": np.zeros(1, np.uint8)}, path, metadata={"shapes": json.dumps({"w": [4, 4]})})


def lacking_a_tensor(path: Path) -> None:
    save_file({"v": np.zeros(2, np.uint8)}, path, metadata={"shapes": json.dumps({"w": [4, 4]})})


def with_a_broken_list(path: Path) -> None:
    save_file({"w": np.zeros(2, np.uint8)}, path, metadata={"shapes": '{"w": [4,'})


def missing(path: Path) -> None:
    path.unlink()


SHAPES = [[-4, -4], [-16], [0, 0], [], [4.0, 4.0], ["4", "4"], [True, 16], [2**40, 2**40], "44", 16, None, {"4": 4}]


@pytest.mark.parametrize("shapes", [*({"w": shape} for shape in SHAPES), [], 7, None])
def test_a_mask_of_an_impossible_shape_is_the_user_s_error(tmp_path: Path, shapes):
    path = tmp_path / "mask.safetensors"
    save_file({"w": np.zeros(2, np.uint8)}, path, metadata={"shapes": json.dumps(shapes)})
    with pytest.raises(UserError, match="the mask cannot be read"):
        SparsityMask.load(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"w":' * 100_000, '{"\\ud800": [4, 4]}', ""])
def test_a_mask_whose_shapes_are_no_json_is_the_user_s_error(tmp_path: Path, text):
    path = tmp_path / "mask.safetensors"
    save_file({"w": np.zeros(2, np.uint8)}, path, metadata={"shapes": text})
    with pytest.raises(UserError, match="the mask cannot be read"):
        SparsityMask.load(path)


@pytest.mark.parametrize("kind", [np.float16, np.int8, np.int64, np.bool_])
def test_a_mask_of_another_type_than_bits_is_the_user_s_error(tmp_path: Path, kind):
    path = tmp_path / "mask.safetensors"
    save_file({"w": np.zeros(2, kind)}, path, metadata={"shapes": json.dumps({"w": [4, 4]})})
    with pytest.raises(UserError, match="the mask cannot be read"):
        SparsityMask.load(path)


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        scrambled,
        of_another_kind,
        with_floats,
        too_short,
        lacking_a_tensor,
        with_a_broken_list,
        missing,
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_mask_file_that_cannot_be_read_is_the_user_s_error(tmp_path: Path, damage):
    path = tmp_path / "mask.safetensors"
    random_mask(w=(4, 4)).save(path)
    damage(path)
    with pytest.raises(UserError) as caught:
        SparsityMask.load(path)
    assert caught.value.where == str(path)
    assert caught.value.instead


@pytest.fixture
def fits(tmp_path):
    """Checks the file of a mask against weights that are saved beside it."""

    def check(mask: SparsityMask, weights: dict[str, torch.Tensor]) -> None:
        save_file({name: weight.numpy() for name, weight in weights.items()}, tmp_path / "model.safetensors")
        mask.save(tmp_path / MASK_FILE)
        require_fitting_mask(tmp_path, weights)

    return check


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"other": torch.ones(4, 4)}, "no such matrix"),
        ({"w": torch.zeros(4, 5)}, r"found \(4, 5\)"),
        ({"w": torch.ones(4, 4)}, "should be zero"),
    ],
    ids=["no matrix", "another shape", "other zeros"],
)
def test_a_mask_that_does_not_fit_the_weights_is_the_user_s_error(fits, tmp_path, weights, says):
    with pytest.raises(UserError, match=says) as caught:
        fits(random_mask(w=(4, 4)), weights)
    assert caught.value.where == str(tmp_path / MASK_FILE)


def sparse_weights(**shapes: tuple[int, int]) -> tuple[SparsityMask, dict[str, torch.Tensor]]:
    mask = random_mask(**shapes)
    return mask, {name: kept.float() for name, kept in mask.tensors.items()}


def test_a_mask_may_keep_a_few_weights_that_training_left_at_zero(fits):
    mask, weights = sparse_weights(w=(20, 20))
    at = mask.tensors["w"].nonzero()[0]
    weights["w"][at[0], at[1]] = -0.0
    fits(mask, weights)


def test_a_mask_that_keeps_what_is_zero_or_leaves_out_a_sparse_matrix_is_the_user_s_error(fits):
    mask, weights = sparse_weights(v=(20, 20), w=(20, 20))
    wider = SparsityMask(mask.tensors | {"w": torch.ones(20, 20, dtype=torch.bool)})
    half, none = SparsityMask({"v": mask.tensors["v"]}), SparsityMask({})
    for wrong, says in (
        (wider, "of w is zero, the mask prunes 0.0%"),
        (half, "of w is zero, the mask does not list it"),
        (none, "of v is zero, the mask does not list it"),
    ):
        with pytest.raises(UserError, match=re.escape(says)):
            fits(wrong, weights)
    fits(half, {"v": weights["v"], "w": torch.ones(20, 20)})  # a matrix that was not pruned
