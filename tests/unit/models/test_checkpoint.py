"""Checkpoint inspection: zeros of every float type, and rejected checkpoints."""

import json

import pytest
import torch
from safetensors.torch import save_file

from toolkit.core.errors import UserError
from toolkit.models import checkpoint
from toolkit.models.checkpoint import (
    require_finite_weights,
    require_unquantized,
    sparsity_by_tensor,
    stored_tensors,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_zeros_are_counted_in_every_float_type_with_either_sign(folder, dtype):
    weights = torch.arange(1, 21, dtype=dtype).reshape(4, 5)
    weights[0] = 0.0
    weights[1, 0] = -0.0
    save_file({"other": torch.ones(3), "a.weight": weights}, folder / "model.safetensors")
    assert stored_tensors(folder)["a.weight"].shape == (4, 5)
    assert sparsity_by_tensor(folder, ["a.weight"]) == {"a.weight": pytest.approx(6 / 20)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_found_in_every_float_type(folder, monkeypatch, dtype, value):
    monkeypatch.setattr(checkpoint, "_PIECE", 6)
    largest = torch.full((4, 5), torch.finfo(dtype).max, dtype=dtype)
    save_file({"a.weight": largest, "ids": torch.arange(3)}, folder / "model.safetensors")
    require_finite_weights(folder)
    largest[3, 4] = value
    save_file({"a.weight": largest, "b.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"1 of the model's tensors have weights .* e\.g\. a\.weight"):
        require_finite_weights(folder)


def test_a_bare_encoder_has_the_names_that_it_has_in_training(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    save_file(
        {"encoder.layer.0.w.weight": torch.zeros(2, 2), "lm_head.bias": torch.ones(2)}, folder / "model.safetensors"
    )
    assert set(stored_tensors(folder)) == {"roberta.encoder.layer.0.w.weight", "lm_head.bias"}
    assert sparsity_by_tensor(folder, ["roberta.encoder.layer.0.w.weight"])


def test_weights_cut_into_several_files_are_read_together(folder):
    save_file({"a.weight": torch.zeros(2, 2)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b.weight": torch.ones(2, 2)}, folder / "model-00002-of-00002.safetensors")
    assert sparsity_by_tensor(folder, ["a.weight", "b.weight"]) == {"a.weight": 1.0, "b.weight": 0.0}


def test_a_sparse_float_checkpoint_is_plain(folder):
    save_file({"a.weight": torch.zeros(2, 2), "LayerNorm.weight": torch.ones(2)}, folder / "model.safetensors")
    require_unquantized(folder)


@pytest.mark.parametrize(
    "names",
    [
        {"a.weight": torch.ones(2, 2, dtype=torch.int8), "b": torch.ones(1)},
        {"a.weight": torch.ones(2, 2), "a.weight_scale": torch.ones(2)},
        {"a._packed_params._packed_params": torch.ones(2, 2)},
        {"a.weight_fake_quant.scale": torch.ones(1), "a.weight": torch.ones(2, 2)},
        {"__nncf_hooks.pre_hooks.a__1.0._scale_param_storage": torch.ones(1)},
        {"a.qweight": torch.ones(2, 2, dtype=torch.int32)},
    ],
    ids=["int8", "compressed-tensors", "torch", "fake-quant", "nncf", "gptq"],
)
def test_a_checkpoint_that_others_quantized_is_refused_and_the_reason_named(folder, names):
    save_file(names, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"already quantized: (it contains|a\.weight is I8)") as error:
        require_unquantized(folder)
    assert "floating-point checkpoint" in error.value.instead


def test_a_config_of_a_quantized_model_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}))
    save_file({"a.weight": torch.ones(2, 2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="already quantized \\(bitsandbytes\\)"):
        require_unquantized(folder)


def test_a_pickle_is_refused_without_being_opened(folder):
    (folder / "best_model.pt").write_bytes(b"not even a pickle")
    with pytest.raises(UserError, match=r"best_model\.pt is a pickle"):
        require_unquantized(folder)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0[1,2,3]]", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[]"])
def test_a_damaged_header_is_a_user_error(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged or incomplete safetensors file"):
        stored_tensors(folder)


def test_weights_that_are_cut_off_are_a_user_error(folder):
    save_file({"a.weight": torch.ones(64, 64)}, folder / "model.safetensors")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged or incomplete safetensors file"):
        sparsity_by_tensor(folder, ["a.weight"])
