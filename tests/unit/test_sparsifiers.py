"""The back ends choose the same weights: those of a reference that is written out here."""

import pytest
import torch
from torch import nn

from toolkit.errors import UserError
from toolkit.recipe import Pruning
from toolkit.sparsity.sparsifier import make_sparsifier

BACKENDS = ["magnitude", "inc", "nncf"]
SCHEDULE = {"target_sparsity": 0.9, "end_step": 12, "update_frequency_on_step": 3}


def matrices() -> dict[str, nn.Linear]:
    torch.manual_seed(0)
    shapes = {"query": (48, 64), "inner": (80, 48), "output": (48, 80)}
    return {f"bert.encoder.layer.0.{n}.weight": nn.Linear(i, o) for n, (o, i) in shapes.items()}


def pruner(backend: str, layers: dict[str, nn.Linear], **section):
    made = make_sparsifier(
        Pruning.model_validate({"backend": backend, "approach": {"weight_compression": SCHEDULE | section}})
    )
    made.attach(layers)
    return made


def nudge(layers: dict[str, nn.Linear], step: int) -> None:
    """Stands for an optimizer step: moves every weight, pruned ones too."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for layer in layers.values():
            layer.weight += 0.02 * torch.randn(layer.weight.shape, generator=generator)


def reference(layers, masks, sparsity):
    """The paper's rule in plain Python: in each matrix the smallest |w| go, counted off one by one."""
    kept = {}
    for name, layer in layers.items():
        values = (layer.weight.detach().abs() * masks[name]).flatten().tolist()
        order = sorted(range(len(values)), key=values.__getitem__)
        flags = torch.ones(len(values), dtype=torch.bool)
        flags[order[: int(sparsity * len(values))]] = False
        kept[name] = flags.view_as(layer.weight)
    return kept


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_equal_the_reference_at_every_update(backend):
    layers = matrices()
    made = pruner(backend, layers)
    masks = {n: torch.ones_like(layer.weight, dtype=torch.bool) for n, layer in layers.items()}
    for step in range(15):
        if step % 3 == 0 and step <= 12:
            t = step / 12
            masks = reference(layers, masks, 0.9 * (1 - (1 - t) ** 3))
        made.before_step(step)
        nudge(layers, step)
        made.after_optimizer_step()
        for name, layer in layers.items():
            assert torch.equal(made.mask.tensors[name], masks[name]), (step, name)
            assert not layer.weight[~masks[name]].any()
    assert all(abs(share - 0.9) < 1e-3 for share in made.mask.per_matrix().values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resumed_pruner_goes_on_with_the_same_masks(backend):
    straight, resumed = matrices(), matrices()
    whole, first = pruner(backend, straight), pruner(backend, resumed)
    for step in range(14):
        if step == 7:
            state = {name: value.clone() for name, value in first.state_dict().items()}
            first = pruner(backend, resumed)
            first.load_state_dict(state)
        for made, layers in ((whole, straight), (first, resumed)):
            made.before_step(step)
            nudge(layers, step)
            made.after_optimizer_step()
    for name in straight:
        assert torch.equal(whole.mask.tensors[name], first.mask.tensors[name])
        assert torch.equal(straight[name].weight, resumed[name].weight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_global_domain_reaches_the_target_over_all_matrices_together(backend):
    layers = matrices()
    with torch.no_grad():
        layers["bert.encoder.layer.0.query.weight"].weight *= 3
    made = pruner(backend, layers, prune_domain="global")
    for step in range(13):
        made.before_step(step)
    assert made.mask.sparsity() == pytest.approx(0.9, abs=2e-3)


def test_inc_prunes_whole_blocks_of_four_rows():
    layers = matrices()
    made = pruner("inc", layers, pattern="tile_pattern_4x1")
    for step in range(13):
        made.before_step(step)
    for name, kept in made.mask.tensors.items():
        per_block = kept.view(kept.shape[0] // 4, 4, kept.shape[1]).sum(1)
        assert set(per_block.unique().tolist()) == {0, 4}, name
    assert all(abs(share - 0.9) < 2e-3 for share in made.mask.per_matrix().values())


def test_inc_prunes_two_of_four():
    made = pruner("inc", matrices(), pattern="2:4", target_sparsity=0.5)
    for step in range(13):
        made.before_step(step)
    for kept in made.mask.tensors.values():
        assert (kept.view(kept.shape[0], -1, 4).sum(2) == 2).all()


@pytest.mark.parametrize("backend", ["magnitude", "nncf"])
def test_a_pattern_that_the_back_end_cannot_do_is_refused(backend):
    with pytest.raises(UserError, match="cannot prune in pattern"):
        pruner(backend, matrices(), pattern="tile_pattern_4x1")


def test_the_trained_model_stays_plain_under_every_back_end():
    for backend in BACKENDS:
        layers = matrices()
        pruner(backend, layers).before_step(3)
        for layer in layers.values():
            assert type(layer) is nn.Linear
            assert set(layer.state_dict()) == {"weight", "bias"}
