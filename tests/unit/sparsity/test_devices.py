"""What pruning keeps of the weights follows them to their device: a checkpoint comes on the CPU."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from toolkit.recipe import Pruning
from toolkit.sparsity.factory import make_sparsifier
from toolkit.sparsity.mask import SparsityMask

SCHEDULE = {"start_step": 2, "end_step": 10, "update_frequency_on_step": 2}


class OneDevice(TorchFunctionMode):
    """Refuses tensors of two devices in one operation, as CUDA does; the "meta" device alone takes them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        tensors = [a for a in args if isinstance(a, torch.Tensor) and a.dim()]
        assert len({tensor.device for tensor in tensors}) <= 1, f"{function.__name__} of tensors on two devices"
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("kind", ["snip_momentum", "gradient_sensitivity"])
@pytest.mark.parametrize("backend", ["inc", "magnitude"])
def test_scores_of_a_checkpoint_follow_the_weights_to_their_device(backend, kind):
    settings = Pruning.model_validate(
        {"backend": backend, "approach": {"weight_compression": SCHEDULE | {"pruners": [{"prune_type": kind}]}}}
    )
    layer = nn.Linear(8, 8, device="meta")  # a device that every machine has
    sparsifier = make_sparsifier(settings, {"w": layer}, 0)
    (pruner,) = sparsifier.pruners_with_schedule
    bits = SparsityMask({"w": torch.ones(8, 8, dtype=torch.bool)}).bits()["w"]
    sparsifier.load_state_dict({"w": torch.from_numpy(bits), "score/w": torch.ones(8, 8)})
    layer.weight.grad = torch.ones_like(layer.weight)
    with OneDevice():
        sparsifier.before_optimizer_step()
    assert pruner._scores["w"].device.type == "meta"


def test_masks_of_nncf_follow_the_weights_to_their_device(monkeypatch):
    from nncf.torch.function_hook.pruning.magnitude import algo

    layer = nn.Linear(8, 8)
    (pruner,) = make_sparsifier(
        Pruning.model_validate({"backend": "nncf", "approach": {"weight_compression": SCHEDULE}}), {"w": layer}, 0
    ).pruners_with_schedule
    pruner._parameters["w"] = nn.Parameter(torch.empty(8, 8, device="meta"))  # as if the model had been moved
    found = SimpleNamespace(binary_mask=torch.ones(8, 8))
    monkeypatch.setattr(algo, "update_pruning_ratio", lambda *_: None)
    monkeypatch.setattr(algo, "get_pruned_modules", lambda _: {"weights.0": found})
    monkeypatch.setattr(pruner, "_limit_to_count", lambda count, kept: kept)
    assert pruner.choose(0.5)["w"].device.type == "meta"
