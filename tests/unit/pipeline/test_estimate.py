"""Estimates of `pruneofa plan` from given step costs, and the data volumes that they are based on."""

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.cli.plan_table import table_of
from toolkit.core import machine, paths
from toolkit.core.artifacts import Artifact, Manifest, write_manifest
from toolkit.core.errors import UserError
from toolkit.data.corpus import load_corpus
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.load import load_tokenizer
from toolkit.pipeline import cache_keys as sections
from toolkit.pipeline import graph
from toolkit.pipeline.estimate import costs, data_volume
from toolkit.pipeline.estimate.step_cost import StepCost
from toolkit.recipe import Corpus, Recipe, Task
from toolkit.recipe.load import load_recipe

GIGA = 1e9
COST = StepCost(
    pass_seconds=0.5,
    teacher_seconds=0.25,
    update_seconds=0.125,
    forward_seconds=0.32,
    state_bytes=2 * GIGA,
    teacher_bytes=0.5 * GIGA,
    fixed_bytes=0.25 * GIGA,
    example_bytes=0.25 * GIGA,
    parameters=100_000_000,
    batch=32,
)
SLOW = {"batch_size": 32, "gradient_accumulation_steps": 2}


class Measured:
    """Replaces the measurement: records the shapes and returns `COST`."""

    def __init__(self) -> None:
        self.shapes: list[Any] = []

    def __call__(self, shape: Any, seconds: float) -> StepCost:
        self.shapes.append(shape)
        return COST


@pytest.fixture
def values(tiny_bert, tiny_task_files, tiny_text) -> dict[str, Any]:
    return {
        "name": "planned",
        "model": {"source": str(tiny_bert)},
        "corpus": {"files": [str(tiny_text)], "max_seq_length": 32},
        "tasks": {"toy": {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}},
        "teacher": {"train": {"steps": 10, **SLOW}},
        "student": {"distillation": {"train": {"steps": 20, **SLOW}}},
        "task_teacher": {"train": {"epoch": 3}},
        "transfer": {"distillation": {"train": {"epoch": 2}}},
        "quantize": {"distillation": {"train": {"steps": 5}}},
        "export": {},
        "benchmark": {},
    }


def planned(values: dict[str, Any], folder: Path, available: float = 1e15) -> tuple[dict[str, Any], Measured]:
    measured = Measured()
    rows = costs.estimate(Recipe.model_validate(values), folder, measured, available)
    return {row.step.label: row for row in rows}, measured


def planned_table(values: dict[str, Any], folder: Path, available: float) -> str:
    from rich.console import Console

    recipe, console = Recipe.model_validate(values), Console(width=200)
    with console.capture() as capture:
        console.print(table_of(recipe, folder, costs.estimate(recipe, folder, Measured(), available)))
    return capture.get()


def test_a_step_costs_its_passes_and_one_update_and_a_taught_one_the_teacher_too(values, tmp_path):
    rows, _ = planned(values, tmp_path)
    start = 5.0
    # The injected cost is that of a shape: pre-training without a teacher was measured without one.
    assert rows["student"].seconds == pytest.approx(20 * (2 * (0.5 + 0.25) + 0.125) + start)
    assert rows["teacher"].seconds == pytest.approx(10 * (2 * 0.5 + 0.125) + start)
    assert rows["toy/task_teacher"].memory == pytest.approx((2 + 0.25 + 32 * 0.25 + 1) * GIGA)
    assert rows["student"].memory == pytest.approx((2 + 0.5 + 0.25 + 32 * 0.25 + 1) * GIGA)


def test_a_student_that_is_only_reconstructed_takes_no_steps_and_time_for_its_text(values, tmp_path):
    values["student"] = {"pruning": {"reconstruction": {"calibration": {"sequences": 64}}}}
    row = planned(values, tmp_path)[0]["student"]
    assert (row.steps, row.exact) == (0, True)
    assert row.seconds == pytest.approx(5.0 + 9 * 64 / 32 * 0.32)


def test_a_tasks_teacher_is_asked_once_about_each_example_and_is_gone_when_training_begins(values, tmp_path):
    rows, _ = planned(values, tmp_path)
    steps, asked, over_dev = 2 * 14, 432 / 32 * 0.25, 120 * 0.32 / 32
    assert rows["toy/transfer"].seconds == pytest.approx(steps * (0.5 + 0.125) + asked + over_dev + 5.0)
    assert rows["toy/transfer"].memory == rows["toy/task_teacher"].memory
    over_tune = 48 * 0.32 / 32
    assert rows["toy/quantize"].seconds == pytest.approx(5 * (0.5 + 0.125) + over_dev + 2 * over_tune + 20.0)


@pytest.mark.parametrize(
    "train",
    [
        {"steps": 5},
        {"epoch": 2, "criterion": {"IntermediateLayersKnowledgeDistillationLoss": {"layer_mappings": [["a", "a"]]}}},
    ],
    ids=["sees some examples only", "compares layers"],
)
def test_a_tasks_teacher_is_asked_at_each_step_where_its_logits_are_not_kept(values, tmp_path, train):
    values["transfer"]["distillation"]["train"] = train
    rows, _ = planned(values, tmp_path)
    steps, over_dev = train.get("steps", 2 * 14), 120 * 0.32 / 32
    assert rows["toy/transfer"].seconds == pytest.approx(steps * (0.5 + 0.25 + 0.125) + over_dev + 5.0)
    assert rows["toy/transfer"].memory - rows["toy/task_teacher"].memory == pytest.approx(0.5 * GIGA)


def test_logits_of_a_teacher_in_another_precision_are_asked_for_again(values, tmp_path):
    before = planned(values, tmp_path)[0]["toy/quantize"].seconds
    values["quantize"]["distillation"]["train"] = {"epoch": 1, "teacher_precision": "bf16"}
    after = planned(values, tmp_path)[0]["toy/quantize"].seconds
    assert after - before == pytest.approx((14 - 5) * (0.5 + 0.125) + 432 / 32 * 0.25)


def test_what_is_measured_recomputes_and_compiles_as_the_training_will(values, tmp_path):
    values["student"]["distillation"]["train"]["recompute"] = True
    values["teacher"]["train"]["compile"] = True
    _, measured = planned(values, tmp_path)
    assert [(s.train.compile, s.train.recompute) for s in measured.shapes[:3]] == [
        (True, False),
        (False, True),
        (False, False),
    ]


def test_epochs_become_the_steps_that_the_run_takes(values, tmp_path):
    rows, _ = planned(values, tmp_path)
    per_epoch = -(-(480 - 48) // 32)  # a tenth is set aside for tuning
    assert (rows["toy/task_teacher"].steps, rows["toy/task_teacher"].exact) == (3 * per_epoch, True)
    assert rows["toy/transfer"].steps == 2 * per_epoch
    assert rows["toy/quantize"].steps == 5


def test_benchmark_takes_a_run_for_each_variant_batch_and_round(values, tmp_path):
    values["benchmark"] = {
        "evaluation": {"performance": {"warmup": 1, "iteration": 2, "seconds": 10, "batch_sizes": [1, 8, 32]}}
    }
    values["export"] = {"variants": ["dense-fp32", "sparse-int8"]}
    rows, _ = planned(values, tmp_path)
    runs = 2 * 3 * (1 + 2)
    assert rows["toy/benchmark"].seconds == pytest.approx(runs * 10.6)
    export = next(
        step
        for step in graph.plan(Recipe.model_validate(values), tmp_path, ResolvedInputs())
        if step.label == "toy/export"
    )
    record(export, export.key, {}, cpu="another")
    rows, _ = planned(values, tmp_path)
    over_dev = 120 * 0.32 / 32
    assert rows["toy/benchmark"].seconds == pytest.approx(runs * 10.6 + 2 * over_dev)


def test_stages_with_steps_alike_are_measured_once(values, tmp_path):
    values["transfer"]["distillation"]["train"]["optimizer"] = {"AdamW": {"learning_rate": 1e-3}}
    _, measured = planned(values, tmp_path)
    kinds = [(s.kind, s.teacher is not None, s.quantized) for s in measured.shapes]
    assert kinds == [
        (None, False, False),
        (None, True, False),
        ("classification", True, False),
        ("classification", True, True),
    ]


def test_time_is_measured_at_the_length_of_real_batches_and_memory_at_the_longest(values, tmp_path):
    values["tasks"]["toy"]["max_seq_length"] = 100
    _, measured = planned(values, tmp_path)
    task = measured.shapes[2]
    assert task.longest == 100
    assert task.length == 16  # the sentences have at most twelve tokens


def test_a_task_of_its_own_sections_is_measured_with_them(values, tmp_path):
    values["tasks"]["toy"]["transfer"] = {"distillation": {"train": {"steps": 7, "batch_size": 4}}}
    rows, measured = planned(values, tmp_path)
    assert rows["toy/transfer"].steps == 7
    assert {s.train.batch_size for s in measured.shapes if s.kind and not s.quantized} == {32, 4}


@pytest.mark.parametrize("layers", [1, [1]])
def test_a_student_of_fewer_layers_is_measured_with_these_in_every_stage_after_it(values, tmp_path, layers):
    values["student"]["layers"] = layers
    _, measured = planned(values, tmp_path)
    depths = [
        tuple(json.loads(c)["num_hidden_layers"] if c else None for c in (s.config, s.teacher)) for s in measured.shapes
    ]
    # teacher; student; the task teacher, which is measured with a teacher of its own size; transfer; quantize
    assert depths == [(2, None), (1, 2), (2, 2), (1, 2), (1, 2)]


def test_what_does_not_fit_says_which_batch_does(values, tmp_path):
    rows, _ = planned(values, tmp_path, available=6e9)
    # 2 state + 0.5 teacher + 0.25 fixed + 1 libraries leave 2.25 GB: 9 examples, and 8 divides 32.
    assert "batch_size: 8 and gradient_accumulation_steps: 8" in rows["student"].remark
    table = planned_table(values, tmp_path, 6e9)
    assert "student needs about 11.8 GB, but only 6.0 GB are available" in " ".join(table.split())


def test_what_fits_with_no_batch_says_so(values, tmp_path):
    rows, _ = planned(values, tmp_path, available=1e9)
    assert "another machine" in rows["student"].remark


def record(step: graph.Step, key: str, config: dict[str, Any], cpu: str = "", layers: int = 2, **metrics: Any) -> None:
    step.folder.mkdir(parents=True)
    if base := step.inputs.get("base"):
        sizes = json.loads((base.path / "config.json").read_text()) | {"num_hidden_layers": layers}
        (step.folder / "config.json").write_text(json.dumps(sizes))
    manifest = Manifest(
        stage=step.stage.name,
        task=step.task,
        key=key,
        config=config,
        inputs={},
        seed=1,
        artifact=Artifact(kind="dense", path=Path(), sha256="0"),
        metrics={"steps": 4, "seconds_per_step": 3.0} | metrics,
        machine={"cpu": cpu or machine.describe()["cpu"]},
        started="2026-01-01T00:00:00+00:00",
        seconds=19.0,
    )
    write_manifest(step.folder, manifest)


@pytest.mark.parametrize(("batch_size", "seconds"), [(32, 10 * 3.0 + (19 - 4 * 3.0)), (16, None)])
def test_a_stage_that_ran_before_with_the_same_batches_keeps_its_own_seconds(values, tmp_path, batch_size, seconds):
    step = graph.plan(Recipe.model_validate(values), tmp_path, ResolvedInputs())[0]
    config = {name: sections.section_values(name, section) for name, section in step.sections.items()}
    config["teacher"]["train"] |= {"batch_size": batch_size, "steps": 4}
    record(step, "another key", config)
    row = planned(values, tmp_path)[0]["teacher"]
    assert row.source == ("=" if seconds else "~")
    assert row.seconds == pytest.approx(seconds or 10 * (2 * 0.5 + 0.125) + 5.0)


@pytest.mark.parametrize(
    ("train", "other", "source"),
    [
        ({"log_every": 1, "optimizer": {"AdamW": {"learning_rate": 1e-3}}}, {}, "="),
        ({}, {"cpu": "another"}, "~"),
        ({}, {"bf16": True}, "~"),
        ({}, {"layers": 12}, "~"),
        ({"recompute": True}, {}, "~"),
        ({"optimizer": {"SGD": {"learning_rate": 1e-3}}}, {}, "~"),
    ],
)
def test_a_run_whose_steps_took_other_work_or_another_cpu_says_nothing_of_this_one(
    values, tmp_path, train, other, source
):
    earlier = values | {"teacher": {"train": {"steps": 4, **SLOW} | train}}
    step = graph.plan(Recipe.model_validate(earlier), tmp_path, ResolvedInputs())[0]
    config = {name: sections.section_values(name, section) for name, section in step.sections.items()}
    record(step, "another key", config, **other)
    assert planned(values, tmp_path)[0]["teacher"].source == source


def test_a_finished_stage_is_not_measured_again(values, tmp_path):
    step = graph.plan(Recipe.model_validate(values), tmp_path, ResolvedInputs())[0]
    record(step, step.key, {})
    rows, measured = planned(values, tmp_path)
    assert (rows["teacher"].steps, rows["teacher"].seconds, rows["teacher"].source) == (4, 19.0, "=")
    assert all(shape.teacher for shape in measured.shapes)


def test_models_and_data_on_the_hub_are_planned_by_what_is_published(values, tmp_path, monkeypatch):
    monkeypatch.setattr("toolkit.data.hub.HubSplit.file", tmp_path / "none.parquet")
    values |= {"model": {"source": "google-bert/bert-large-uncased"}, "tasks": {"mnli": {"preset": "mnli"}}}
    values["corpus"] = {"files": ["hub:wikimedia/wikipedia:20231101.en:train"]}
    values["teacher"] = {"train": {"epoch": 1}}
    rows, measured = planned(values, tmp_path)
    assert rows["teacher"].steps is None  # the number of sequences is unknown
    assert rows["student"].steps == 20
    assert rows["mnli/task_teacher"].steps == 3 * -(-(392_702 - 1000) // 32)
    assert rows["mnli/task_teacher"].source == "≤"
    assert json.loads(measured.shapes[0].config)["num_hidden_layers"] == 24
    assert measured.shapes[2].length == 128
    assert "?" in planned_table(values, tmp_path, 1e15)


def test_of_a_model_that_nobody_knows_only_the_steps_are_said(values, tmp_path):
    values["model"] = {"source": "nobody/knows-this-model"}
    rows, measured = planned(values, tmp_path)
    assert not measured.shapes
    assert rows["student"].steps == 20
    assert (rows["student"].seconds, rows["student"].memory) == (None, None)
    assert rows["student"].remark.count("nobody/knows-this-model") == 1  # it is the teacher's root too


def test_of_a_teacher_that_nobody_knows_its_own_name_is_said_and_not_the_students(values, tmp_path):
    values["tasks"]["toy"]["ready"] = {"task_teacher": "nobody/knows-this-teacher"}
    rows, _ = planned(values, tmp_path)
    remark = rows["toy/transfer"].remark
    assert remark.startswith("nobody/knows-this-teacher: size unknown before the download")
    assert values["model"]["source"] not in remark
    assert rows["toy/transfer"].seconds is None


TRANSFERS = sorted(paths.RECIPES.glob("*/transfer_*.yaml"))


@pytest.mark.parametrize("path", TRANSFERS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_all_stages_of_the_published_sparse_models_are_estimated_without_a_network(path, tmp_path, monkeypatch):
    monkeypatch.setattr("toolkit.data.hub.HubSplit.file", tmp_path / "none.parquet")
    found = costs.estimate(load_recipe(path), tmp_path, Measured(), 1e15)
    assert {row.step.task for row in found} == {"sst2", "mnli", "qqp", "qnli", "squad"}
    assert [(row.step.label, row.remark) for row in found if row.seconds is None] == []


def test_a_length_that_the_model_cannot_take_is_refused(values, tmp_path):
    values["corpus"]["max_seq_length"] = 4000
    with pytest.raises(UserError, match="128 positions"):
        planned(values, tmp_path)


def questions(folder: Path, words: int, rows: int) -> Path:
    context = " ".join(["word"] * words)
    row = {"question": "what is it ?", "context": context, "answers": {"text": ["word"], "answer_start": [0]}}
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(rows)))
    return path


def test_long_contexts_are_counted_as_the_windows_that_they_become(tmp_path, tiny_bert):
    from toolkit.data.tasks import load_task
    from toolkit.models.load import load_tokenizer

    file = str(questions(tmp_path, 300, 20))
    section = Task.model_validate(
        {
            "kind": "question_answering",
            "train": file,
            "dev": file,
            "columns": ["question", "context"],
            "label": "answers",
            "max_seq_length": 100,
            "windows": {"stride": 20, "max_question_length": 16},
            "tuning_examples": 0,
        }
    )
    tokenizer = load_tokenizer(tiny_bert)
    truth = load_task("toy", section, tokenizer)
    found = data_volume.task_volume(section, tokenizer)
    assert found.examples == len(truth.train)
    assert found.dev == len(truth.dev)
    assert sorted(found.lengths) == sorted(truth.train.lengths)


def test_sequences_of_a_corpus_are_told_from_a_sample(tmp_path, tiny_bert, tiny_text):
    section = Corpus(files=(str(tiny_text),), max_seq_length=32)
    tokenizer = load_tokenizer(tiny_bert)
    truth = load_corpus(section, {}, tokenizer, tmp_path)
    found = data_volume.corpus_volume(section, {}, tokenizer)
    assert found.examples == pytest.approx(len(truth.train), rel=0.1)
    assert data_volume.corpus_volume(section.model_copy(update={"limit": 7}), {}, tokenizer).examples == 7
    apart = data_volume.corpus_volume(section.model_copy(update={"pack": False}), {})
    assert apart.examples == pytest.approx(300 * 19 / 20, abs=1)


@pytest.mark.parametrize("length", [32, 64])
def test_segment_pairs_are_counted_as_pairs_and_not_as_packed_sequences(tmp_path, tiny_bert, tiny_text, length):
    section = Corpus(files=(str(tiny_text),), max_seq_length=length, pairs={})
    tokenizer = load_tokenizer(tiny_bert)
    truth = len(load_corpus(section, {}, tokenizer, tmp_path).train)
    packed = data_volume.corpus_volume(section.model_copy(update={"pairs": None}), {}, tokenizer).examples
    assert packed != pytest.approx(truth, rel=0.08)  # more at one length, fewer at the other
    assert data_volume.corpus_volume(section, {}, tokenizer).examples == pytest.approx(truth, rel=0.05)


def test_a_batch_of_groups_costs_its_pairs_and_is_advised_in_groups(values, tmp_path):
    file = tmp_path / "pairs.tsv"
    rows = [f"query {n // 4}\tpassage {n}\t{int(n % 4 == 0)}" for n in range(400)]
    file.write_text("\n".join(["query\tpassage\tlabel", *rows]) + "\n")
    task = {"kind": "reranking", "train": str(file), "dev": str(file), "max_seq_length": 16, "tuning_examples": 0}
    values["tasks"] = {"toy": task | {"ranking": {"group": 4}}}
    values["task_teacher"] = {"train": {"steps": 6, "batch_size": 8}}
    rows, measured = planned(values, tmp_path)
    teacher = rows["toy/task_teacher"]
    assert 32 in {shape.train.batch_size for shape in measured.shapes if shape.kind}
    assert (teacher.memory, teacher.steps) == (pytest.approx((2 + 0.25 + 32 * 0.25 + 1) * GIGA), 6)
    assert teacher.groups == 100
    by_epoch = values | {"task_teacher": {"train": {"epoch": 1, "batch_size": 8}}}
    assert planned(by_epoch, tmp_path)[0]["toy/task_teacher"].steps == 13  # of 100 groups, not of 400 pairs
    fewer = planned(values, tmp_path, available=8 * GIGA)[0]["toy/task_teacher"].remark
    assert "write batch_size: 4 and gradient_accumulation_steps: 2" in fewer
