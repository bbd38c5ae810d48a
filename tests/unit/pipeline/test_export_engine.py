"""Export to the sparse engine: variants are exported if the kernels can be built, else left out with the reason."""

import sys
from contextlib import nullcontext

import pytest
import torch

from tests.helpers.quantization import Case
from toolkit.cli.doctor import facts
from toolkit.core.artifacts import NullProgress
from toolkit.core.errors import UserError
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.ir import kernels
from toolkit.ir import sparse_engine as engine
from toolkit.pipeline import graph
from toolkit.pipeline.run import Run
from toolkit.recipe import Recipe
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.mask_file import MASK_FILE

DENSE = "bert.encoder.layer.1.intermediate.dense"


@pytest.fixture(scope="module")
def recipe(tiny_bert, tiny_task_files, tmp_path_factory):
    """An export of a ready model, one of whose matrices has no zeros."""
    kernels.build()
    case = Case(tiny_bert, tiny_task_files)
    weight = case.model.get_submodule(DENSE).weight
    with torch.no_grad():
        weight.copy_(torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("sparse")
    case.model.save_pretrained(folder)
    case.tokenizer.save_pretrained(folder)
    SparsityMask({n: t for n, t in case.mask.tensors.items() if DENSE not in n}).save(folder / MASK_FILE)
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    return Recipe.model_validate(
        {
            "name": "engine",
            "model": {"source": str(tiny_bert)},
            "tasks": {"toy": task | {"ready": {"transfer": str(folder)}}},
            "export": {"variants": ["sparse-fp32", "sparse-engine-fp32"]},
        }
    )


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    """Undone by `undo()`."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return monkeypatch


def export(recipe, folder):
    (manifest,) = Run(recipe, folder, lambda step: nullcontext(NullProgress()))()
    return manifest.metrics


def is_there(recipe, folder):
    (step,) = graph.plan(recipe, folder, ResolvedInputs())
    return step.manifest is not None


def test_matrices_with_few_zeros_stay_ordinary_and_are_recorded_with_their_share(recipe, tmp_path):
    figures = export(recipe, tmp_path / "run")["variants"]["sparse-engine-fp32"]
    modules = {m["module"]: m for m in figures["matmuls"]}
    assert len(figures["on_the_kernel"]) == 2 * 6 - 1
    stayed = next(share for name, share in figures["ordinary"].items() if DENSE in name)
    assert stayed == modules[DENSE]["zero_fraction"] < 0.01
    assert not set(figures["ordinary"]) & set(figures["on_the_kernel"])


def test_without_a_compiler_plain_irs_are_exported_and_the_reason_is_kept(recipe, tmp_path, no_compiler):
    metrics = export(recipe, tmp_path / "run")
    assert set(metrics["variants"]) == {"sparse-fp32"}
    assert metrics["left_out"] == {
        "sparse-engine-fp32": "the sparse kernels cannot be built: a C++ compiler (g++ or clang++) is missing"
    }
    assert is_there(recipe, tmp_path / "run")


def test_without_a_cache_folder_plain_irs_are_exported_and_the_reason_is_kept(recipe, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    metrics = export(recipe, tmp_path / "run")
    assert set(metrics["variants"]) == {"sparse-fp32"}
    (reason,) = metrics["left_out"].values()
    assert reason.endswith(f"write permission for {tmp_path}/file/pruneofa/kernels is missing")
    monkeypatch.undo()
    assert not is_there(recipe, tmp_path / "run")


def test_doctor_says_without_a_compiler_that_plain_irs_are_exported(no_compiler):
    assert {fact.item: fact.found for fact in facts()}["sparse kernel"] == (
        "cannot be built: a C++ compiler (g++ or clang++) is missing; only IRs without the sparse engine are exported"
    )


def test_without_openvino_there_is_no_kernel_and_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not kernels.available()
    assert kernels.extension() is None
    assert kernels.missing_tool() == "OpenVINO"


def test_what_was_left_out_is_made_once_there_is_a_compiler_and_then_kept_without_one(recipe, tmp_path, no_compiler):
    export(recipe, tmp_path / "run")
    no_compiler.undo()
    assert not is_there(recipe, tmp_path / "run")
    assert set(export(recipe, tmp_path / "run")["variants"]) == {"sparse-fp32", "sparse-engine-fp32"}
    assert is_there(recipe, tmp_path / "run")
    no_compiler.setattr(kernels, "available", lambda: False)
    assert is_there(recipe, tmp_path / "run")


def test_an_export_in_an_older_packed_form_is_made_anew_and_one_without_it_is_not(recipe, tmp_path, monkeypatch):
    plain = recipe.model_copy(update={"export": recipe.export.model_copy(update={"variants": ("sparse-fp32",)})})
    for name, chosen in (("engine", recipe), ("plain", plain)):
        export(chosen, tmp_path / name)
    monkeypatch.setattr(kernels, "FORMAT_VERSION", kernels.FORMAT_VERSION + 1)
    assert not is_there(recipe, tmp_path / "engine")
    assert is_there(plain, tmp_path / "plain")


def test_an_error_of_the_conversion_is_not_hidden_as_a_variant_left_out(recipe, tmp_path, monkeypatch):
    def broken(source, target, **_):
        raise UserError("it is broken")

    monkeypatch.setattr(engine, "to_sparse_engine", broken)
    with pytest.raises(UserError, match="it is broken"):
        export(recipe, tmp_path / "run")


def test_the_version_of_the_packed_form_is_the_librarys_own():
    kernels.build()
    assert kernels.format_version() == kernels.FORMAT_VERSION
