"""`pruneofa` from Python, `pruneofa compress` and docs/api.md: a tiny model from two tables to an IR that opens."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

import pruneofa
from tests.helpers.cards import run_code
from tests.helpers.examples import EXAMPLES
from toolkit.cli import terminal
from toolkit.core import machine, paths
from toolkit.core.files import file_hash
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.pipeline.graph import plan
from toolkit.pipeline.short_recipe import TASK, Compression
from toolkit.recipe.load import parse_recipe

FAST = (
    *("student.distillation.train.epoch=1", "task_teacher.train.steps=80", "transfer.steps=80", "quantize.steps=2"),
    *("task_teacher.AdamW.learning_rate=3e-3", "transfer.distillation.train.optimizer.AdamW.learning_rate=3e-3"),
    *("performance.iteration=1", "performance.seconds=1", "performance.warmup=0", "batch_sizes=[1]"),
    *("performance.sequence_length=16", "sampling_size=8", "tasks.task.max_seq_length=16"),
    "export.variants=[dense-fp32, sparse-int8, sparse-engine-int8]",
)
VARIANTS = ["dense-fp32", "sparse-int8", "sparse-engine-int8"]


@pytest.fixture(scope="module")
def made(tiny_bert, tiny_task_files, tmp_path_factory):
    """A finished compression, and the folder that holds its runs."""
    runs = tmp_path_factory.mktemp("api")
    splits = {"train": tiny_task_files.train, "dev": tiny_task_files.dev}
    return pruneofa.compress(tiny_bert, **splits, runs=runs, name="tiny", overrides=FAST, quiet=True), runs


def test_five_lines_compress_a_model(made):
    result, runs = made
    assert result.folder == runs / "tiny"
    assert result.best.folder == runs / "tiny/tasks/task/export" / result.best.name
    assert 0.4 < result.best.scores["accuracy"] <= 1
    assert result.report.read_text().startswith("<!")
    assert result.best.name in repr(result)


def test_the_table_has_a_row_of_numbers_for_each_variant(made):
    frame = pandas.DataFrame(made[0].table())
    assert list(frame["variant"]) == VARIANTS
    assert (frame[["n", "file_bytes", "gzip_bytes", "latency_ms", "speed_up"]] > 0).all(axis=None)
    assert frame["accuracy"].between(0, 1).all()
    assert [Path(folder).is_dir() for folder in frame["folder"]] == [True] * 3


def test_the_recipe_repeats_what_was_done(made):
    result, runs = made
    steps = plan(parse_recipe(result.recipe, "again"), runs / "tiny", ResolvedInputs())
    assert all(step.manifest for step in steps)
    assert steps[0].stage.name == "student"


@pytest.mark.parametrize("variant", ["sparse-int8", "sparse-engine-int8"])
def test_an_ir_opens_with_its_kernels_and_scores_as_measured(variant, made, tiny_task_files):
    folder = made[0].folder / "tasks/task/export" / variant
    model, tokenizer = pruneofa.load(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "OVModelForSequenceClassification"
    rows = [line.split("\t") for line in tiny_task_files.dev.read_text().splitlines()[1:]]
    encoded = tokenizer([r[0] for r in rows], truncation=True, max_length=16, padding=True, return_tensors="pt")
    found = model(**encoded).logits.argmax(-1).tolist()
    right = sum(model.config.id2label[n] == r[1] for n, r in zip(found, rows, strict=True)) / len(rows)
    scores = {row["variant"]: row["accuracy"] for row in made[0].table()}
    assert right == pytest.approx(scores[variant])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_card_has_code_that_runs_and_figures_as_measured(variant, made, tiny_task_files, monkeypatch):
    folder = made[0].folder / "tasks/task/export" / variant
    card = ModelCard.load(folder / "README.md")
    row = next(row for row in made[0].table() if row["variant"] == variant)
    (result,) = card.data.eval_results
    assert (result.metric_value, result.metric_args["n"]) == (round(row["accuracy"], 4), row["n"])
    assert machine.describe()["cpu"] in card.text
    runs = run_code(folder / "README.md", monkeypatch)
    assert len(runs) == (1 if "engine" in variant else 2)
    assert all(names["label"] in names["model"].config.id2label.values() for names in runs)
    assert ("in blocks of 4×1" in card.text or ", single ones" in card.text) == variant.startswith("sparse")
    papers = card.content + (folder / "manifest.json").read_text()
    assert str(made[1]) not in papers
    assert str(tiny_task_files.train.parent) not in papers
    audit = json.loads((folder / "manifest.json").read_text())
    assert all(file_hash(folder / name) == known["sha256"] for name, known in audit["files"].items())


def test_what_is_no_ir_is_refused(made, tmp_path):
    with pytest.raises(pruneofa.UserError, match="no such folder"):
        pruneofa.load(tmp_path / "none")
    with pytest.raises(pruneofa.UserError, match=r"no openvino_model.xml in this folder"):
        pruneofa.load(made[0].folder / "student")


def test_folders_are_timed_side_by_side(made):
    folders = [row["folder"] for row in made[0].table()][:2]
    rows = pruneofa.benchmark(folders, batch=[1], length=16, rounds=1, seconds=1)
    assert [row["model"] for row in rows] == VARIANTS[:2]
    assert [row["folder"] for row in rows] == folders
    assert rows[0]["speed_up"] == 1
    with pytest.raises(pruneofa.UserError, match="rounds: must be at least 1"):
        pruneofa.benchmark(folders, rounds=0)


def test_an_error_has_what_where_and_instead(tiny_bert, tmp_path):
    (tmp_path / "a.tsv").write_text("one\ttwo\nx\ty\n")
    with pytest.raises(pruneofa.UserError) as caught:
        pruneofa.compress(tiny_bert, train=tmp_path / "a.tsv", dev=tmp_path / "a.tsv", runs=tmp_path)
    assert caught.value.where == str(tmp_path / "a.tsv")
    assert "label=<one of one, two>" in caught.value.instead
    assert not terminal.SETTINGS.quiet


def test_the_command_is_the_same_code_and_finds_every_stage_finished(made, tiny_bert, tiny_task_files):
    result, runs = made
    words = ["compress", tiny_bert, *FAST, "--train", tiny_task_files.train, "--dev", tiny_task_files.dev]
    command = [sys.executable, "-m", "toolkit", *words, "--runs", runs, "--name", "tiny", "--json"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=os.environ.copy())
    found = json.loads(done.stdout)
    assert (done.returncode == 0) == (not result.failure), done.stderr
    assert found["best"]["name"] == result.best.name
    assert found["variants"] == result.table()
    assert "task_teacher ..." not in done.stderr


def test_the_examples_of_the_document_run(made, tiny_bert, tiny_task_files, tmp_path, monkeypatch):
    """As written, but for the model: each `compress` checks its recipe, and has the result of the run above."""
    text = (paths.REPOSITORY / "docs" / "api.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    for split in ("train", "dev"):
        rows = getattr(tiny_task_files, split).read_text()
        (tmp_path / f"{split}.tsv").write_text(rows)

    def compress(model, **arguments):
        recipe = Compression(str(model), **arguments).recipe()
        assert set(recipe.tasks) == {TASK}
        return made[0]

    benchmark = pruneofa.benchmark
    monkeypatch.setattr(pruneofa, "compress", compress)
    monkeypatch.setattr(
        pruneofa, "benchmark", lambda folders, **given: benchmark(folders, **given, rounds=1, seconds=1)
    )
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert names["logits"].shape == (1, 2)
    assert parse_recipe((tmp_path / "mine.yaml").read_text(), "mine.yaml").tasks


def test_the_notebook_compresses_and_opens_a_classifier(made, tiny_bert, tiny_task_files):
    """Its code cells in order, all but the parameters as they are; every stage is finished already."""
    cells = json.loads((EXAMPLES / "compress_your_classifier.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)
    (parameters,) = [cell for cell in code if "parameters" in cell["metadata"].get("tags", ())]
    names: dict = {}
    exec("".join(parameters["source"]), names)
    given = {"MODEL": tiny_bert, "TRAIN": tiny_task_files.train, "DEV": tiny_task_files.dev}
    given |= {"NAME": "tiny", "RUNS": made[1], "CHANGES": FAST}
    assert given.keys() == names.keys() - {"__builtins__"}
    names |= given
    for cell in code:
        if cell is not parameters:
            exec(compile("".join(cell["source"]), "the notebook", "exec"), names)
    assert names["result"].best == made[0].best
    assert list(names["table"]["variant"]) == VARIANTS
    assert names["logits"].shape == (2, 2)
