"""Students of fewer layers than their teacher, dense and sparse, from the teacher to the INT8 IR and the report."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.test_whole import tiny_recipe
from toolkit import reporting
from toolkit.core.artifacts import NullProgress
from toolkit.measure import size
from toolkit.models.config import read_config
from toolkit.models.load import load_masked_lm, load_tokenizer, save_checkpoint
from toolkit.pipeline.preflight import check_recipe
from toolkit.pipeline.run import Run

LAYERS = {"IntermediateLayersKnowledgeDistillationLoss": {"loss_types": ["SquareHead"]}}
BOTH = LAYERS | {"KnowledgeDistillationLoss": {}}


@pytest.fixture(scope="module")
def four_layers(tiny_bert, tmp_path_factory) -> Path:
    """The tiny BERT with four layers, all of them different."""
    model: Any = load_masked_lm(tiny_bert)
    torch.manual_seed(1)
    model.config.num_hidden_layers = 4
    made = type(model)(model.config)
    folder = tmp_path_factory.mktemp("four_layers")
    save_checkpoint(made, load_tokenizer(tiny_bert), folder)
    return folder


def made(source: Path, files: Any, text: Path, folder: Path, **student: Any) -> tuple[Any, dict[str, Any]]:
    """Runs every stage, and returns the recipe and the manifests by stage."""
    train = {"steps": 12, "batch_size": 8, "log_every": 1, "checkpoint_every": 6}
    fast = {"steps": 80, "batch_size": 16, "optimizer": {"AdamW": {"learning_rate": 3e-3}}}
    task = {"train": str(files.train), "dev": str(files.dev), "max_seq_length": 16}
    changes = {
        "student": student | {"distillation": {"train": train | {"criterion": BOTH}}},
        "transfer": {"distillation": {"train": fast | {"steps": 100, "criterion": BOTH}}},
        "quantize": {
            "quantization": {"calibration": {"sampling_size": 16}},
            "distillation": {"train": train | {"criterion": BOTH}},
        },
    }
    recipe = tiny_recipe(source, task, text, **changes)
    check_recipe(recipe)
    manifests = Run(recipe, folder, lambda step: nullcontext(NullProgress()))()
    assert all(check.ok for m in manifests for check in m.checks)
    return recipe, {m.stage: m for m in manifests}


def test_a_dense_student_of_fewer_layers_goes_through_every_stage(four_layers, tiny_task_files, tiny_text, tmp_path):
    run = tmp_path / "shallow"
    _, found = made(four_layers, tiny_task_files, tiny_text, run, layers=2, pruning=None)
    kept = found["student"].metrics["kept_layers"]
    assert len(kept) == 2
    assert found["student"].artifact.kind == "dense"
    for stage in ("student", "transfer", "quantize"):
        assert (found[stage].metrics["kept_layers"], found[stage].metrics["layers_before"]) == (kept, 4)
        assert "sparsity" not in found[stage].metrics
    assert not (run / "student/mask.safetensors").exists()
    assert {"task_loss", "kd_loss", "layers_loss"} <= found["transfer"].history[-1].keys()
    for folder in ("student", "tasks/toy/transfer"):
        assert read_config(run / folder)["num_hidden_layers"] == 2
        assert not any("layer.2." in name for name in load_file(run / folder / "model.safetensors"))

    benchmark = found["benchmark"].metrics
    assert benchmark["variants"]["sparse-int8"]["accuracy"]["accuracy"] > 0.75
    sizes = {variant: values["sizes"] for variant, values in benchmark["variants"].items()}
    assert (
        sizes["dense-fp32"][size.VALUES]
        == 2 * sizes["sparse-fp32"][size.VALUES]
        == 8 * sizes["sparse-int8"][size.VALUES]
    )
    assert benchmark["sizes_reference"]["encoder"] == sizes["dense-fp32"][size.VALUES]
    assert sizes["sparse-fp32"][size.MASKED] == sizes["sparse-fp32"][size.VALUES]

    reporting.build([list(found.values())], tmp_path / "report")
    for file in ("report.html", "report.md"):
        text = (tmp_path / "report" / file).read_text()
        assert "dense, 2 of 4 layers" in text
        assert not any(words in text for words in ("weights are zero", "was pruned", "is pruned", "pruning steps"))
        assert "One sparse model" not in text

    few = {"steps": 3, "batch_size": 8}
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    later = tiny_recipe(
        four_layers,
        task | {"ready": {"task_teacher": str(run / "tasks/toy/task_teacher")}},
        tiny_text,
        **{"ready": {"student": str(run / "student")}, "teacher": None, "student": None, "task_teacher": None},
        **{"transfer": {"distillation": {"train": few}}, "quantize": None, "export": None, "benchmark": None},
    )
    assert ("student layers", f"{kept[0]}, {kept[1]} of 4; dense") in check_recipe(later)
    (transfer,) = Run(later, tmp_path / "later", lambda step: nullcontext(NullProgress()))()
    assert transfer.metrics["kept_layers"] == kept
    assert "sparsity" not in transfer.metrics


def test_a_sparse_student_of_named_layers_goes_through_every_stage(four_layers, tiny_task_files, tiny_text, tmp_path):
    pruning = {
        "backend": "magnitude",
        "learning_rate_rewinding": "cyclic",
        "approach": {"weight_compression": {"target_sparsity": 0.8, "end_step": 8, "update_frequency_on_step": 4}},
    }
    run = tmp_path / "both"
    recipe, found = made(four_layers, tiny_task_files, tiny_text, run, layers=[0, 2], pruning=pruning)
    for stage in ("student", "transfer", "quantize"):
        assert found[stage].metrics["kept_layers"] == [0, 2]
        assert found[stage].metrics["sparsity"] == pytest.approx(0.8, abs=1e-2)
    peak = recipe.student.distillation.train.optimizer.settings.learning_rate
    rates = [row["learning_rate"] / peak for row in found["student"].history]  # row k has the rate of step k + 1
    assert rates[3] == rates[7] == 1.0
    assert rates[2] < 0.3
    variants = found["benchmark"].metrics["variants"]
    assert variants["sparse-int8"]["accuracy"]["accuracy"] > 0.7
    reference = found["benchmark"].metrics["sizes_reference"]["encoder"]
    assert reference / variants["sparse-fp32"]["sizes"][size.VALUES] == pytest.approx(10, rel=0.02)
    reporting.build([list(found.values())], tmp_path / "report")
    assert "2 of 4 layers" in (tmp_path / "report/report.md").read_text()
    stored = json.loads((run / "student/config.json").read_text())
    assert (stored["kept_layers"], stored["layers_before"]) == ([0, 2], 4)
