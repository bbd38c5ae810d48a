"""Checkpoint inspection: zeros of every float type, and rejected checkpoints."""

import json
import os

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
    zero_blocks,
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


def index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_the_index_says_which_files_belong_to_a_checkpoint(folder):
    for name in ("model-00001-of-00002", "model-00002-of-00002", "model_old"):
        save_file({f"{name}.weight": torch.ones(2, 2)}, folder / f"{name}.safetensors")
    index(folder, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    assert set(stored_tensors(folder)) == {"model-00001-of-00002.weight", "model-00002-of-00002.weight"}
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: no such file"):
        stored_tensors(folder)


OUTSIDE = ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin", "", 7, None]


@pytest.mark.parametrize("weight_map", [[], "a", None, {}, *({"a": name} for name in OUTSIDE)])
def test_an_index_that_names_anything_but_files_of_its_folder_is_refused(folder, weight_map):
    index(folder, weight_map)
    with pytest.raises(UserError, match="the index does not map each tensor to a safetensors file"):
        stored_tensors(folder)


def header(entries, size=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + bytes(16)


TENSOR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\1",
        header({"a": TENSOR}, size=1 << 63),
        header({"a": TENSOR}, size=10**12),
        header(b"[" * 50_000),
        header([TENSOR]),
        header({"a": []}),
        header({"a": TENSOR | {"shape": [-2, -2]}}),
        header({"a": TENSOR | {"shape": [2, "2"]}}),
        header({"a": TENSOR | {"shape": [2**40, 2**40]}}),
        header({"a": TENSOR | {"shape": 4}}),
        header({"a": TENSOR | {"dtype": "F33"}}),
        header({"a": TENSOR | {"dtype": None}}),
        header({"a": TENSOR | {"data_offsets": [16, 0]}}),
        header({"a": TENSOR | {"data_offsets": [-16, 0]}}),
        header({"a": TENSOR | {"data_offsets": [0, 10**15]}}),
        header({"a\ud800": TENSOR}),
    ],
)
def test_a_header_that_is_none_is_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged or incomplete safetensors file"):
        stored_tensors(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00001.safetensors"])
def test_weights_in_a_fifo_or_a_device_are_refused_without_being_opened(folder, name):
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match="not a regular file"):
        stored_tensors(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match="not a regular file"):
        stored_tensors(folder)


def test_zeros_of_a_type_that_is_no_plain_float_are_not_counted(folder):
    save_file({"a": torch.ones(2, 2).to(torch.float8_e4m3fn)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="the zeros of F8_E4M3 tensors cannot be counted"):
        sparsity_by_tensor(folder, ["a"])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 1), (1, 4), (2, 2), (32, 1)])
def test_the_blocks_of_zeros_are_the_largest_that_all_matrices_have(folder, rows, columns):
    random = torch.Generator().manual_seed(0)

    def matrix(height, width):
        kept = torch.rand(height // rows, width // columns, generator=random) > 0.8
        return kept.repeat_interleave(rows, 0).repeat_interleave(columns, 1) * torch.ones(height, width)

    weights = {"a.weight": matrix(64, 128), "b.weight": matrix(96, 64)}
    kept = weights["a.weight"].nonzero()
    weights["a.weight"][tuple(kept[0])] = 0.0  # training may end at zero
    save_file(weights | {"dense": torch.ones(6, 6)}, folder / "model.safetensors")
    assert zero_blocks(folder, ["a.weight", "b.weight"]) == f"{rows}x{columns}"


def test_a_matrix_that_blocks_do_not_divide_has_smaller_ones(folder):
    weights = {"a": torch.ones(8, 8), "b": torch.ones(6, 8)}
    weights["a"][:4], weights["b"][:2] = 0.0, 0.0
    save_file(weights, folder / "model.safetensors")
    assert zero_blocks(folder, ["a"]) == "4x8"
    assert zero_blocks(folder, ["a", "b"]) == "2x8"
