"""`inspect`: right counts for every type of weight, or none; and whatever file is given."""

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import Type
from openvino import opset13 as ops
from rich.console import Console
from safetensors.torch import save_file

from toolkit.cli.doctor import facts
from toolkit.cli.inspect import inspection
from toolkit.core.errors import UserError
from toolkit.ir.inspect import inspect_ir


def lines(path) -> list[str]:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(inspection(path).shown)
    return [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]


def weight() -> torch.Tensor:
    """Three of eight values are zero, one of them negative."""
    return torch.tensor([[0.0, 1.0, -2.0, -0.0], [4.0, 0.0, 8.0, 16.0]])


COUNTED = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("given", ["folder", "file"])
def test_zeros_of_every_float_are_counted(tmp_path, name, given):
    save_file({"a.weight": weight().to(COUNTED[name]), "a.bias": torch.zeros(4)}, tmp_path / "model.safetensors")
    found = lines(tmp_path if given == "folder" else tmp_path / "model.safetensors")
    assert f"a.weight 2x4 {name} 37.50%" in found
    assert "all pruned matrices 8 37.50%" in found


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int8, torch.int64])
def test_codes_of_integers_are_not_counted_as_weights(tmp_path, dtype):
    save_file({"a.qweight": torch.zeros(2, 4, dtype=dtype)}, tmp_path / "model.safetensors")
    found = lines(tmp_path)
    assert f"a.qweight 2x4 {str(dtype).removeprefix('torch.')} not counted" in found
    assert not any("all pruned" in line for line in found)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "a.ckpt"])
@pytest.mark.parametrize("old", [False, True])
def test_a_pickled_checkpoint_is_named_for_what_it_is_and_not_opened(tmp_path, name, old):
    torch.save({"a": weight()}, tmp_path / name, _use_new_zipfile_serialization=not old)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match="a pickle file, which can run arbitrary code") as error:
            inspection(path)
        assert error.value.where == str(tmp_path / name)


@pytest.mark.parametrize("name", ["gone", "text.txt"])
def test_anything_else_is_refused(tmp_path, name):
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(UserError, match=r"no such file or folder|not a run, checkpoint or IR"):
        inspection(tmp_path / name)


def grouped_ir(folder, kind: Type, codes: np.ndarray, offset: int | None) -> None:
    """An IR whose 4 x 8 matrix is stored as two groups of four codes per row, as NNCF compresses weights."""
    weights = ops.convert(ops.constant(codes.reshape(4, 2, 4), dtype=kind), "f32")
    if offset is not None:
        weights = ops.subtract(weights, ops.convert(ops.constant(np.full((4, 2, 1), offset), dtype=kind), "f32"))
    scales = ops.constant(np.full((4, 2, 1), 0.5, dtype=np.float32))
    weights = ops.reshape(ops.multiply(weights, scales), ops.constant([4, 8]), special_zero=False)
    x = ops.parameter([-1, 8], np.float32, name="x")
    model = ov.Model([ops.matmul(x, weights, transpose_a=False, transpose_b=True)], [x])
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)


@pytest.mark.parametrize(
    ("kind", "offset", "zero"),
    [(Type.u4, 8, 8), (Type.i4, None, 0), (Type.u8, 128, 128), (Type.i8, None, 0), (Type.nf4, None, 0)],
)
def test_zeros_of_grouped_codes_are_counted_after_dequantization(tmp_path, kind, offset, zero):
    codes = np.full((4, 8), 3 if kind != Type.nf4 else 1.0)
    codes[:, :3] = zero
    grouped_ir(tmp_path, kind, codes, offset)
    (matmul,) = inspect_ir(tmp_path).matmuls
    assert (matmul.shape, matmul.weight_granularity) == ((4, 8), "per_group")
    assert matmul.zero_fraction == 3 / 8
    for given in (tmp_path, tmp_path / "openvino_model.xml", tmp_path / "openvino_model.bin"):
        assert any("4x8" in line and "group 37.5% f32" in line for line in lines(given))


@pytest.mark.parametrize("kind", [Type.bf16, Type.f8e4m3, Type.f8e5m2, Type.u4])
def test_zeros_of_a_matrix_of_small_types_are_counted(tmp_path, kind):
    stored = ops.convert(ops.constant(np.array([[0, 1, 2, 4], [0, 0, 2, 1]]), dtype=kind), "f32")
    x = ops.parameter([-1, 4], np.float32, name="x")
    model = ov.Model([ops.matmul(x, stored, transpose_a=False, transpose_b=True)], [x])
    ov.save_model(model, tmp_path / "other.xml", compress_to_fp16=False)
    (matmul,) = inspect_ir(tmp_path / "other.xml").matmuls
    assert (matmul.shape, matmul.zero_fraction) == ((2, 4), 3 / 8)
    assert any("37.5%" in line for line in lines(tmp_path / "other.xml"))


@pytest.mark.parametrize("built", [False, True])
def test_doctor_looks_where_torch_builds_extensions(tmp_path, monkeypatch, built):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    if built:
        (tmp_path / "nncf").mkdir()
        (tmp_path / "nncf" / "quantized_functions.so").touch()
    found = {fact.item: fact.found for fact in facts()}["NNCF extension"]
    assert found.startswith("built" if built else "not built")
