"""The walk through an encoder's layers: groups of matrices, what is changed, and the errors that it reports."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from toolkit.models.depth import keep_layers
from toolkit.models.load import prunable_matrices
from toolkit.recipe import Reconstruction, Tile
from toolkit.sparsity.layerwise import Job, layer_errors, prune_by_magnitude, reconstruct_layers

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
FIRST = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def dense():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForMaskedLM(BertConfig(vocab_size=50, max_position_embeddings=32, **SIZES)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    return model


@pytest.fixture(params=["bert", "modernbert"])
def either(request, dense):
    """BERT, or a model without biases whose layers attend to a window or to the complete text in turn."""
    if request.param == "bert":
        return dense
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kinds = ["full_attention", "sliding_attention", "full_attention"]
        sizes = SIZES | {"num_hidden_layers": 3, "vocab_size": 50, "pad_token_id": 0, "initializer_range": 0.2}
        return ModernBertForMaskedLM(ModernBertConfig(local_attention=4, layer_types=kinds, **sizes)).eval()


@pytest.fixture
def batches():
    """Two batches of different lengths, the second with padding."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for length, real in ((8, 8), (16, 11)):
        mask = (torch.arange(length) < real).long().expand(20, -1)
        found.append({"input_ids": torch.randint(0, 50, (20, length), generator=generator), "attention_mask": mask})
    return found


def jobs_for(linears, sparsity=0.5):
    return {name: Job(int(sparsity * m.weight.numel()), Tile.of("tile_pattern_1x1")) for name, m in linears.items()}


def inputs_of(model, name, batches):
    """What a matrix gets from the complete model, [tokens, columns], without padding."""
    found = []
    module = model.get_submodule(name.removesuffix(".weight"))
    with module.register_forward_pre_hook(lambda _, args: found.append(args[0])):
        for batch in batches:
            model.base_model(**batch)
    masks = [batch["attention_mask"].bool() for batch in batches]
    return torch.cat([hidden[mask] for hidden, mask in zip(found, masks, strict=True)])


@pytest.mark.parametrize("corrected", [True, False])
@torch.no_grad()
def test_the_errors_of_a_matrix_are_those_of_its_outputs(either, batches, corrected):
    dense, model = either, copy.deepcopy(either)
    linears = prunable_matrices(model)
    settings = Reconstruction(error_correction=corrected)
    _, errors = reconstruct_layers(model, dense, jobs_for(linears), linears, batches, settings)
    for name, module in linears.items():
        old = dense.get_submodule(name.removesuffix(".weight"))
        now = inputs_of(model, name, batches)
        wanted = old(inputs_of(dense, name, batches))
        power = (wanted - wanted.mean(0)).double().square().sum()
        by_magnitude = old.weight.clone()
        by_magnitude.flatten()[by_magnitude.abs().flatten().argsort()[: by_magnitude.numel() // 2]] = 0
        plain = F.linear(now, by_magnitude, old.bias)
        for found, output in zip(errors.matrices[name], (plain, module(now)), strict=True):
            assert found == pytest.approx(float((output - wanted).square().sum() / power), rel=2e-3)


@torch.no_grad()
def test_corrected_outputs_have_the_dense_means(dense, batches):
    model = copy.deepcopy(dense)
    linears = prunable_matrices(model)
    reconstruct_layers(model, dense, jobs_for(linears), linears, batches, Reconstruction())
    for name, module in linears.items():
        wanted = dense.get_submodule(name.removesuffix(".weight"))(inputs_of(dense, name, batches))
        torch.testing.assert_close(
            module(inputs_of(model, name, batches)).mean(0), wanted.mean(0), atol=1e-4, rtol=1e-4
        )


@torch.no_grad()
def test_weights_that_were_pruned_before_may_return(dense, batches):
    model = copy.deepcopy(dense)
    linears = prunable_matrices(model)
    linears[FIRST].weight.zero_()
    masks, _ = reconstruct_layers(model, dense, jobs_for(linears), linears, batches, Reconstruction())
    assert float(masks[FIRST].float().mean()) == 0.5
    assert int((linears[FIRST].weight != 0).sum()) == 128


@torch.no_grad()
def test_a_matrix_without_a_job_stays_as_it_is(dense, batches):
    model = copy.deepcopy(dense)
    linears = prunable_matrices(model)
    jobs = {name: job for name, job in jobs_for(linears).items() if name != FIRST}
    masks, _ = reconstruct_layers(model, dense, jobs, linears, batches, Reconstruction())
    assert masks.keys() == jobs.keys()
    assert torch.equal(linears[FIRST].weight, dense.get_parameter(FIRST))
    assert torch.equal(linears[FIRST].bias, dense.get_parameter(FIRST.replace("weight", "bias")))


@torch.no_grad()
def test_the_errors_of_the_layers_are_those_of_the_complete_model(dense, batches):
    model = copy.deepcopy(dense)
    linears = prunable_matrices(model)
    prune_by_magnitude(jobs_for(linears), linears)
    found = layer_errors(model, dense, linears, batches)
    masks = [batch["attention_mask"].bool() for batch in batches]
    for number, name in enumerate(found, 1):
        states = [
            torch.cat(
                [
                    m.base_model(**b, output_hidden_states=True).hidden_states[number][k]
                    for b, k in zip(batches, masks, strict=True)
                ]
            )
            for m in (dense, model)
        ]
        power = (states[0] - states[0].mean(0)).square().sum()
        assert found[name] == pytest.approx(float((states[1] - states[0]).square().sum() / power), rel=1e-4)
    assert list(found) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]


@torch.no_grad()
def test_error_correction_makes_up_for_layers_that_are_left_out(dense, batches):
    """The outputs of every matrix come nearer to those of the matrix in the complete model that it comes from."""
    complete = BertForMaskedLM(
        BertConfig(vocab_size=50, max_position_embeddings=32, **SIZES | {"num_hidden_layers": 3})
    )
    complete.eval().load_state_dict(dense.state_dict(), strict=False)
    model = copy.deepcopy(complete)
    keep_layers(model, [0, 2])
    linears = prunable_matrices(model)
    jobs = {name: Job(0, Tile.of("tile_pattern_1x1")) for name in linears}
    masks, errors = reconstruct_layers(model, complete, jobs, linears, batches, Reconstruction(), kept=[0, 2])
    assert all(mask.all() for mask in masks.values())
    for name, (before, after) in errors.matrices.items():
        assert after < before if "layer.1." in name else before == pytest.approx(after, abs=1e-4)
    for name, module in linears.items():
        origin = name.replace("layer.1.", "layer.2.")
        wanted = complete.get_submodule(origin.removesuffix(".weight"))(inputs_of(complete, origin, batches))
        now = module(inputs_of(model, name, batches))
        torch.testing.assert_close(now.mean(0), wanted.mean(0), atol=1e-4, rtol=1e-4)
