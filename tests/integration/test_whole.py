"""The whole pipeline on a tiny BERT: every stage, every file, what is cached, and what the report shows."""

import copy
import re
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from toolkit.core.artifacts import Artifact, Context, NullProgress
from toolkit.core.errors import UserError
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.measure import size
from toolkit.models.load import load_masked_lm, load_task_model, load_tokenizer, save_checkpoint
from toolkit.pipeline import graph
from toolkit.pipeline.cache_keys import sections_of
from toolkit.pipeline.run import Run
from toolkit.pipeline.stages import benchmark
from toolkit.recipe import Recipe
from toolkit.training import hardware as precision

VARIANTS = ("dense-fp32", "dense-int8", "sparse-fp32", "sparse-int8", "sparse-engine-fp32", "sparse-engine-int8")


# The file with a stage's weights, in a run of the tiny recipe.
WEIGHTS = {
    "teacher": "teacher/model.safetensors",
    "student": "student/model.safetensors",
    "task_teacher": "tasks/toy/task_teacher/model.safetensors",
    "transfer": "tasks/toy/transfer/model.safetensors",
    "quantize": "tasks/toy/quantize/quantized.safetensors",
}


def tiny_recipe(model: Path, task: dict, text: Path, **changes) -> Recipe:
    train = {"steps": 12, "batch_size": 8, "log_every": 4, "checkpoint_every": 6}
    fast = {"steps": 80, "batch_size": 16, "optimizer": {"AdamW": {"learning_rate": 3e-3}}}
    values = {
        "name": "tiny",
        "model": {"source": str(model)},
        "corpus": {"files": [str(text)], "max_seq_length": 24},
        "tasks": {"toy": task},
        "teacher": {"train": train},
        "student": {
            "pruning": {
                "backend": "magnitude",
                "approach": {
                    "weight_compression": {"target_sparsity": 0.8, "end_step": 8, "update_frequency_on_step": 2}
                },
            },
            "distillation": {"train": train},
        },
        "task_teacher": {"train": fast},
        "transfer": {"distillation": {"train": fast | {"steps": 300}}},
        "quantize": {"quantization": {"calibration": {"sampling_size": 16}}, "distillation": {"train": train}},
        "export": {},
        "benchmark": {
            "evaluation": {
                "performance": {"iteration": 1, "warmup": 0, "seconds": 1, "batch_sizes": [1], "sequence_length": 16}
            }
        },
    }
    return Recipe.model_validate(values | changes)


def trained_recipe(model: Path, files: Any, text: Path, train: dict, backend: str, compression: dict) -> Recipe:
    """The tiny recipe up to `quantize`, every stage with the same training."""
    lesson = {"train": train}
    return tiny_recipe(
        model,
        {"train": str(files.train), "dev": str(files.dev), "max_seq_length": 16},
        text,
        teacher=lesson,
        task_teacher=lesson,
        transfer={"distillation": lesson},
        quantize={"quantization": {"calibration": {"sampling_size": 8}}, "distillation": lesson},
        student={
            "pruning": {
                "backend": backend,
                "approach": {"weight_compression": {"target_sparsity": 0.7} | compression},
            },
            "distillation": lesson,
        },
        export=None,
        benchmark=None,
    )


@pytest.fixture(scope="module")
def finished(tiny_bert, tiny_task_files, tiny_text, tmp_path_factory):
    """A run folder with every stage done, its recipe and its manifests."""
    train, dev = tiny_task_files.train, tiny_task_files.dev
    task = {"train": str(train), "dev": str(dev), "max_seq_length": 16}
    recipe = tiny_recipe(tiny_bert, task, tiny_text)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    manifests = Run(recipe, folder, lambda step: nullcontext(NullProgress()))()
    return recipe, folder, manifests


def by_stage(manifests):
    return {m.stage: m for m in manifests}


def test_every_stage_leaves_a_manifest_whose_checks_hold(finished):
    _, folder, manifests = finished
    assert [m.stage for m in manifests] == list(graph.STAGE_NAMES)
    for manifest in manifests:
        assert (folder / manifest.artifact.path / "manifest.json").is_file()
        assert all(check.ok for check in manifest.checks)
        assert not list((folder / manifest.artifact.path).glob(".work"))
    assert not list(folder.rglob("*.partial"))


def test_the_student_reaches_its_sparsity_and_later_stages_keep_it_exactly(finished):
    _, folder, manifests = finished
    from safetensors.torch import load_file

    from toolkit.sparsity.mask import SparsityMask

    student = SparsityMask.load(folder / "student/mask.safetensors")
    assert student.sparsity() == pytest.approx(0.8, abs=1e-3)
    weights = load_file(folder / "tasks/toy/transfer/model.safetensors")
    assert not student.violations(weights)
    quantized = load_file(folder / "tasks/toy/quantize/quantized.safetensors")
    assert not student.violations(quantized)
    for stage in ("student", "transfer", "quantize"):
        assert by_stage(manifests)[stage].metrics["sparsity"] == pytest.approx(student.sparsity())


def test_every_variant_answers_the_whole_dev_split_and_learns_the_task(finished):
    _, _, manifests = finished
    benchmark = by_stage(manifests)["benchmark"].metrics
    assert set(benchmark["variants"]) == set(VARIANTS)
    assert benchmark["dev_n"] == by_stage(manifests)["task_teacher"].metrics["dev_n"]
    for variant in VARIANTS:
        assert benchmark["variants"][variant]["accuracy"]["accuracy"] > 0.75, variant
        assert benchmark["variants"][variant]["performance"][0]["latency_ms_median"] > 0
        assert "benchmark_app" in benchmark["variants"][variant]["performance"][0]["command"]


def test_each_ir_is_asked_about_the_dev_split_once_for_all_checks_and_the_benchmark(finished):
    _, folder, _ = finished
    assert len(list((folder / ".cache").glob("answers-*.safetensors"))) == len(VARIANTS)


def test_a_second_run_does_nothing(finished):
    recipe, folder, manifests = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    again = Run(recipe, folder, lambda step: pytest.fail(f"{step.label} ran again"))()
    assert [m.key for m in again] == [m.key for m in manifests]
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_change_invalidates_only_what_depends_on_it(finished):
    recipe, folder, _ = finished
    longer = recipe.model_copy(update={"export": recipe.export.model_copy(update={"tolerance": 0.04})})
    todo = [s.stage.name for s in graph.plan(longer, folder, ResolvedInputs()) if s.manifest is None]
    assert todo == ["export", "benchmark"]
    other_seed = recipe.model_copy(update={"seed": 7})
    assert all(s.manifest is None for s in graph.plan(other_seed, folder, ResolvedInputs()))


def test_a_second_task_reuses_the_student(finished):
    recipe, folder, _ = finished
    two = recipe.model_copy(update={"tasks": recipe.tasks | {"again": recipe.tasks["toy"]}})
    todo = {s.label for s in graph.plan(two, folder, ResolvedInputs()) if s.manifest is None}
    assert todo == {f"again/{stage.name}" for stage in graph.STAGES if stage.per_task}


def test_what_was_made_of_an_input_that_came_out_otherwise_is_made_anew(
    tiny_bert, tiny_task_files, tiny_text, tmp_path, monkeypatch
):
    """`auto` is another precision on another machine: the teacher's key stays, its weights do not."""
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    short = {"train": {"steps": 3, "precision": "auto"}}
    left_out = dict.fromkeys(["student", "transfer", "quantize", "export", "benchmark"])
    recipe = tiny_recipe(tiny_bert, task, tiny_text, teacher=short, task_teacher=short, **left_out)

    def made(**options) -> dict:
        return by_stage(Run(recipe, tmp_path / "tiny", lambda step: nullcontext(NullProgress()))(**options))

    # Where the CPU has the instructions, the step would be timed instead.
    monkeypatch.setattr("toolkit.training.precision.has_bf16_instructions", lambda: False)
    monkeypatch.setattr(precision, "_bf16_is_faster", lambda: False)
    first = made()
    monkeypatch.setattr(precision, "_bf16_is_faster", lambda: True)
    made(only="teacher")
    cached = {
        step.stage.name: step.manifest is not None for step in graph.plan(recipe, tmp_path / "tiny", ResolvedInputs())
    }
    assert cached == {"teacher": True, "task_teacher": False}
    second = made()
    assert second["teacher"].key == first["teacher"].key
    assert second["teacher"].artifact.sha256 != first["teacher"].artifact.sha256
    assert second["task_teacher"].inputs["teacher"] == second["teacher"].artifact.sha256
    assert made() == second

    shutil.rmtree(tmp_path / "tiny/teacher")  # now it is gone when the run begins, and comes out as it was at first
    monkeypatch.setattr(precision, "_bf16_is_faster", lambda: False)
    third = made()
    assert third["task_teacher"].inputs == {"teacher": first["teacher"].artifact.sha256}


@pytest.mark.parametrize(
    ("gone", "stage", "need"),
    [
        (["task_teacher"], "transfer", "task_teacher"),
        (["transfer"], "quantize", "transfer"),
        (["task_teacher", "transfer", "quantize"], "export", "task_teacher"),
        (["export"], "benchmark", "export"),
    ],
)
def test_a_stage_without_what_it_needs_is_told_before_anything_runs(finished, tmp_path, gone, stage, need):
    recipe = finished[0].model_copy(update=dict.fromkeys(gone))
    words = f"stage `{stage}` of task 'toy' needs `{need}`, which no stage provides"
    with pytest.raises(UserError, match=re.escape(words)):
        Run(recipe, tmp_path, lambda step: pytest.fail(f"{step.label} has begun"))()


def test_an_export_of_variants_that_no_stage_made_a_model_for_is_refused(finished, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(finished[1], folder)
    dense = finished[0].model_copy(update=dict.fromkeys(["transfer", "quantize", "benchmark"]))
    only_sparse = dense.model_copy(update={"export": dense.export.model_copy(update={"variants": ("sparse-int8",)})})
    with pytest.raises(UserError, match="none of sparse-int8 has a model in this run") as caught:
        Run(only_sparse, folder, lambda step: nullcontext(NullProgress()))()
    assert "variants: [dense-fp32, dense-int8]" in caught.value.instead


def test_a_teacher_of_another_size_gets_no_encoder_figures_of_the_sparse_model(finished, tiny_bert, tmp_path):
    recipe, folder, _ = finished
    wide = load_task_model(folder / "tasks/toy/task_teacher", "classification", ("0", "1"), fitted=True)
    wide.bert.encoder.layer.extend(copy.deepcopy(list(wide.bert.encoder.layer)))
    wide.config.num_hidden_layers *= 2
    save_checkpoint(wide, load_tokenizer(tiny_bert), tmp_path / "teacher")
    for variant in ("dense-fp32", "sparse-fp32"):
        shutil.copytree(folder / f"tasks/toy/export/{variant}", tmp_path / "export" / variant)
    paths = {
        "export_artifact": tmp_path / "export",
        "task_teacher_artifact": tmp_path / "teacher",
        "transfer_artifact": folder / "tasks/toy/transfer",
    }
    inputs = benchmark.Inputs(
        transfer_tuning=None,
        **sections_of(recipe, ("task", "quantize", "benchmark"), "toy"),
        **{name: Artifact(kind="task", path=path, sha256=name) for name, path in paths.items()},
    )
    (tmp_path / "made").mkdir()
    made = benchmark.run(inputs, Context(tmp_path / "made", tmp_path, 0, "toy", cache=tmp_path))
    sizes = {variant: found["sizes"] for variant, found in made.metrics["variants"].items()}
    assert size.VALUES in sizes["sparse-fp32"]
    assert sizes["dense-fp32"].keys() == {size.FILE, size.GZIP, size.BUNDLE}


LAYER = "bert.encoder.layer.1"


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        ({"KnowledgeDistillationLoss": {}}, True),
        ({"KnowledgeDistillationLoss": {"loss_weights": [1, 0]}}, False),
        ({"IntermediateLayersKnowledgeDistillationLoss": {"layer_mappings": [[LAYER, LAYER]]}}, False),
    ],
)
def test_a_student_learns_words_from_a_teacher_that_knows_words_only(tiny_bert, tiny_text, tmp_path, criterion, words):
    encoder = tmp_path / "encoder"
    save_checkpoint(load_masked_lm(tiny_bert).bert, load_tokenizer(tiny_bert), encoder)
    left_out = dict.fromkeys(["teacher", "task_teacher", "transfer", "quantize", "export", "benchmark"])
    pruning = {"backend": "magnitude", "approach": {"weight_compression": {"target_sparsity": 0.8, "end_step": 2}}}
    student = {"pruning": pruning, "distillation": {"train": {"steps": 4, "criterion": criterion}}}
    recipe = tiny_recipe(encoder, {}, tiny_text, student=student, tasks={}, **left_out)
    run = Run(recipe, tmp_path / "tiny", lambda step: nullcontext(NullProgress()))
    if not words:
        assert [m.stage for m in run()] == ["student"]
        return
    with pytest.raises(UserError, match=r"it lacks cls\.predictions") as caught:
        run()
    assert "or a `teacher` section" in caught.value.instead


def test_a_damaged_artifact_is_named_and_nothing_is_lost(finished, tmp_path):
    recipe, folder, _ = finished
    copied = tmp_path / "tiny"
    shutil.copytree(folder, copied)
    weights = copied / "student/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(UserError, match="files differ from those that the stage wrote"):
        Run(recipe, copied, lambda step: nullcontext(NullProgress()))()
    assert (copied / "teacher/manifest.json").is_file()


def test_the_report_opens_by_itself_and_names_every_variant(finished):
    from toolkit import reporting

    _, folder, manifests = finished
    page = reporting.build([manifests], folder / "report")
    html = page.read_text()
    for variant in VARIANTS:
        assert variant in html
    assert not re.search(r"<(script|img|iframe)[^>]+src=.?https?:", html)
    assert "<link" not in html


def test_a_ready_sparse_checkpoint_without_a_mask_file_stands_in_for_the_student(finished, tmp_path):
    from toolkit.sparsity.mask import SparsityMask

    recipe, folder, _ = finished
    ready = tmp_path / "published"
    shutil.copytree(folder / "student", ready, ignore=shutil.ignore_patterns("mask.safetensors", "manifest.json"))
    start = recipe.model_copy(
        update={
            "ready": {"student": str(ready)},
            **dict.fromkeys(("student", "teacher", "corpus", "quantize", "export", "benchmark")),
        }
    )
    manifests = Run(start, tmp_path / "run", lambda step: nullcontext(NullProgress()))()
    assert [m.stage for m in manifests] == ["task_teacher", "transfer"]
    locked = SparsityMask.load(tmp_path / "run/tasks/toy/transfer/mask.safetensors")
    pruned = SparsityMask.load(folder / "student/mask.safetensors")
    assert locked.per_matrix() == pytest.approx(pruned.per_matrix(), abs=1e-3)


def test_a_dense_checkpoint_in_the_students_place_is_refused(finished, tmp_path):
    recipe, folder, _ = finished
    dense = recipe.model_copy(update={"ready": {"student": str(folder / "teacher")}, "student": None})
    with pytest.raises(UserError, match="dense"):
        Run(dense, tmp_path / "run", lambda step: nullcontext(NullProgress()))()


def test_an_ir_that_differs_from_its_torch_model_fails_the_run_and_keeps_what_is_finished(finished, tmp_path):
    from toolkit.core.errors import CheckFailed

    recipe, folder, _ = finished
    copied = tmp_path / "tiny"
    shutil.copytree(folder, copied)
    strict = recipe.model_copy(update={"export": recipe.export.model_copy(update={"tolerance": 1e-12})})
    with pytest.raises(CheckFailed, match=r"mean \|IR - torch\|"):
        Run(strict, copied, lambda step: nullcontext(NullProgress()))()
    assert (copied / "tasks/toy/export.partial").is_dir()
    assert (copied / "tasks/toy/quantize/manifest.json").is_file()
    assert (copied / "tasks/toy/export/manifest.json").is_file(), "the last good export stays until then"


def rendered(table) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table)
    return console.export_text()


def test_plan_inspect_and_bench_show_what_is_there(finished, tmp_path, monkeypatch):
    from toolkit.cli.bench import comparison, recommendation
    from toolkit.cli.inspect import inspection
    from toolkit.cli.plan_table import table_of
    from toolkit.pipeline.estimate.costs import estimate
    from toolkit.recipe import Performance

    recipe, folder, _ = finished
    changed = recipe.model_copy(update={"seed": 1})
    assert rendered(table_of(recipe, folder, estimate(recipe, folder))).count("yes") == len(graph.STAGES)
    assert "no" in rendered(table_of(changed, folder, estimate(changed, folder)))
    assert "toy" in rendered(inspection(folder).shown)
    assert "79.98%" in rendered(inspection(folder / "student").shown)
    ir = folder / "tasks/toy/export"
    assert "i8" in rendered(inspection(ir / "sparse-int8").shown)
    section = Performance(warmup=0, iteration=1, seconds=1, batch_sizes=(2,), sequence_length=8)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shown = rendered(comparison([ir / "dense-fp32", ir / "sparse-int8"], section, None).shown)
    assert "1.00x" in shown
    assert shown.count("benchmark_app -m") == 2
    assert "batch 2, 8 tokens: deploy" in rendered(recommendation(folder, section, None, within=1.0).shown)
    assert "no variant is accurate enough. Closest: " in rendered(
        recommendation(folder, section, None, within=-10.0).shown
    )
