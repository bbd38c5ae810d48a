"""The heart of the method: one recipe, one pruning, four tasks, four INT8 IRs, one report."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from toolkit import reporting
from toolkit.core.artifacts import NullProgress
from toolkit.core.files import content_hash
from toolkit.ir.inspect import inspect_ir
from toolkit.pipeline.run import Run
from toolkit.recipe import Recipe
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.mask_file import MASK_FILE

TASKS = {"mood": 120, "twins": 30, "entailment": 30, "asked": 30}  # examples, or questions, that each is measured on
MATRICES = 12


@pytest.fixture(scope="module")
def made(tiny_bert, tiny_task_files, tiny_text, files, tmp_path_factory):
    """`.folder` and `.manifests` of a run of four tasks, and the labels of the stages that it made, in their order."""
    steps = {"steps": 3, "batch_size": 8}
    pruner = {"target_sparsity": 0.9, "end_step": 2, "update_frequency_on_step": 1}
    mood = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    three = files["classification"] | {"more_dev": {}}
    tasks = dict(zip(TASKS, (mood, files["pair"], three, files["question_answering"]), strict=True))
    timing = {"warmup": 0, "iteration": 1, "seconds": 1, "batch_sizes": [1], "sequence_length": 16}
    recipe = Recipe.model_validate(
        {
            "name": "four",
            "model": {"source": str(tiny_bert)},
            "corpus": {"files": [str(tiny_text)], "max_seq_length": 32, "limit": 40},
            "tasks": {name: task | {"tuning_examples": 0} for name, task in tasks.items()},
            "student": {
                "pruning": {"backend": "magnitude", "approach": {"weight_compression": pruner}},
                "distillation": {"train": steps},
            },
            "task_teacher": {"train": steps},
            "transfer": {"distillation": {"train": steps}},
            "quantize": {"distillation": {"train": steps}, "quantization": {"calibration": {"sampling_size": 8}}},
            # Three steps teach nothing: a number that hardly varies makes every difference large beside its range.
            "export": {"variants": ["sparse-int8"], "metric_tolerance": 0.2, "tolerance": 0.2},
            "benchmark": {"evaluation": {"performance": timing}},
        }
    )
    labels = []

    def progress(step):
        labels.append(step.label)
        return nullcontext(NullProgress())

    folder = tmp_path_factory.mktemp("runs") / "four"
    return SimpleNamespace(folder=folder, manifests=Run(recipe, folder, progress)(), labels=labels)


def of_stage(made, stage):
    return {m.task: m for m in made.manifests if m.stage == stage}


def test_the_student_is_made_once_and_first_and_each_task_transfers_that_very_one(made):
    per_task = ("task_teacher", "transfer", "quantize", "export", "benchmark")
    assert made.labels == ["student", *(f"{task}/{stage}" for task in TASKS for stage in per_task)]
    (student,) = of_stage(made, "student").values()
    assert list(made.folder.rglob("student/manifest.json")) == [made.folder / "student/manifest.json"]
    assert content_hash(made.folder / "student") == student.artifact.sha256
    transfers = of_stage(made, "transfer")
    assert list(transfers) == list(TASKS)
    assert {m.inputs["student"] for m in transfers.values()} == {student.artifact.sha256}
    assert len({m.artifact.sha256 for m in transfers.values()}) == len(TASKS)  # four models of one


def test_there_is_one_mask_and_every_task_model_keeps_it(made):
    pruned = SparsityMask.load(made.folder / "student" / MASK_FILE)
    assert len(pruned.tensors) == MATRICES
    assert pruned.sparsity() == pytest.approx(0.9, abs=2e-3)
    copies = [p for p in made.folder.rglob(MASK_FILE) if p.parent.name != "student"]
    assert sorted((p.parts[-3], p.parts[-2]) for p in copies) == sorted(
        (task, stage) for task in TASKS for stage in ("transfer", "quantize")
    )
    for copy in map(SparsityMask.load, copies):
        assert copy.tensors.keys() == pruned.tensors.keys()
        assert all(torch.equal(copy.tensors[name], kept) for name, kept in pruned.tensors.items())


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_a_checked_sparse_int8_ir(made, task):
    export, folder = of_stage(made, "export")[task], made.folder / "tasks" / task / "export"
    assert [p.name for p in folder.iterdir() if p.is_dir()] == ["sparse-int8"]
    assert all(check.ok for check in export.checks)
    checked = "\n".join(check.name for check in export.checks)
    for what in ("|IR - torch|", f"on all {TASKS[task]} dev examples", "examples answered", "zeros lost", "quantized"):
        assert what in checked, what
    # Not by the manifest's word alone: the zeros of the one mask, in 8 bits, in the IR's own file.
    shares = SparsityMask.load(made.folder / "student" / MASK_FILE).per_matrix()
    found = {f"{m.module}.weight": m for m in inspect_ir(folder / "sparse-int8").matmuls if m.module}
    assert shares.keys() <= found.keys()
    for name, share in shares.items():
        assert found[name].zero_fraction >= share - 1e-6
        assert found[name].stored_type == "i8"


def test_one_report_names_all_four_tasks_with_their_scores(made):
    page = reporting.build([made.manifests], made.folder / "report")
    assert [p.name for p in page.parent.glob("*.html")] == [page.name]
    texts = [page.read_text(), *(p.read_text() for p in page.parent.glob("*.md"))]
    assert len(texts) == 2
    for task, benchmark in of_stage(made, "benchmark").items():
        assert benchmark.metrics["dev_n"] == TASKS[task]
        score = benchmark.metrics["variants"]["sparse-int8"]["accuracy"][benchmark.metrics["metrics"][0]]
        for text in texts:
            assert task in text
            assert f"{100 * score:.1f}" in text
