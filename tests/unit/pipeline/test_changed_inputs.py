"""Data or a checkpoint that is changed while a stage runs: the stage fails, and nothing is kept under the old key."""

import shutil
from contextlib import nullcontext

import pytest
import torch

from tests.helpers.models import load_classifier
from toolkit.core.artifacts import NullProgress
from toolkit.core.errors import UserError
from toolkit.data import corpus, tasks
from toolkit.models.load import load_tokenizer, save_checkpoint
from toolkit.pipeline import run as pipeline_run
from toolkit.pipeline.run import Run
from toolkit.recipe import Corpus, Recipe
from toolkit.training import datasets

STEPS = {"train": {"steps": 2, "batch_size": 4, "checkpoint_every": 1}}


@pytest.fixture
def files(tiny_task_files, tiny_bert, tmp_path):
    """Copies of a task's files and of a model, which a test may change."""
    for name in ("train", "dev"):
        shutil.copy(getattr(tiny_task_files, name), tmp_path / f"{name}.tsv")
    shutil.copytree(tiny_bert, tmp_path / "model")
    return tmp_path


@pytest.fixture
def run(files):
    task = {"train": str(files / "train.tsv"), "dev": str(files / "dev.tsv"), "max_seq_length": 16}
    values = {"name": "r", "model": {"source": str(files / "model")}, "tasks": {"toy": task}, "task_teacher": STEPS}
    recipe = Recipe.model_validate(values)
    return lambda **changes: Run(
        recipe.model_copy(update=changes), files / "run", lambda step: nullcontext(NullProgress())
    )()


def edit(path):
    """Changes one label, and neither the size nor the time of the file."""
    text = path.read_bytes()
    path.write_bytes(text.replace(b"\t1\t", b"\t0\t", 1) if path.suffix == ".tsv" else text + b" ")
    return text


@pytest.mark.parametrize("name", ["train.tsv", "dev.tsv", "model/config.json"])
def test_a_file_that_is_changed_before_it_is_read_ends_the_stage_before_the_training(files, run, monkeypatch, name):
    real, before = tasks.task_rows.read_task, []

    def read(*args):
        if files.joinpath("run/tasks/toy/task_teacher.partial").exists() and not before:  # the check reads it as well
            before.append(edit(files / name))
        return real(*args)

    monkeypatch.setattr(tasks.task_rows, "read_task", read)
    with pytest.raises(UserError, match="changed since the run began: the result of `toy/task_teacher`") as caught:
        run()
    assert caught.value.where == str((files / name).parent if "model" in name else files / name)
    assert not (files / "run/tasks/toy/task_teacher").exists()
    assert not list(files.glob("run/tasks/toy/task_teacher.partial/.work/checkpoints/*"))
    (files / name).write_bytes(before[0])
    (manifest,) = run()
    assert manifest.stage == "task_teacher"


def test_a_file_that_is_changed_after_it_was_read_ends_the_stage_and_restored_resumes_it(files, run, monkeypatch):
    real, before, steps = datasets.task_data, [], []

    def data(*args):
        found = real(*args)
        collate = found.collate

        def changing(features):
            steps.append(features[0]["step"])
            if not before:
                before.append(edit(files / "train.tsv"))
            return collate(features)

        return datasets.TrainingData(found.stream, changing, found.steps)

    monkeypatch.setattr(datasets, "task_data", data)
    with pytest.raises(UserError, match="changed since the run began: the result of `toy/task_teacher`"):
        run()
    assert not (files / "run/tasks/toy/task_teacher").exists()
    (files / "train.tsv").write_bytes(before[0])
    count = len(steps)
    run()
    assert len(steps) == count, "the finished training is resumed, not repeated"


def test_an_export_of_a_checkpoint_that_is_changed_fails(files, run, monkeypatch):
    from toolkit.ir import convert

    real = convert.export_ir

    def export(*args):
        real(*args)
        edit(files / "classifier/config.json")

    monkeypatch.setattr(convert, "export_ir", export)
    torch.manual_seed(0)
    save_checkpoint(load_classifier(files / "model", ("0", "1")), load_tokenizer(files / "model"), files / "classifier")
    task = {"train": str(files / "train.tsv"), "dev": str(files / "dev.tsv"), "max_seq_length": 16}
    ready = {"ready": {"task_teacher": str(files / "classifier")}}
    values = {"name": "r", "model": {"source": str(files / "model")}, "tasks": {"toy": task | ready}}
    recipe = Recipe.model_validate(values | {"export": {"variants": ["dense-fp32"]}})
    with pytest.raises(UserError, match="changed since the run began: the result of `toy/export`") as caught:
        run(tasks=recipe.tasks, export=recipe.export, task_teacher=None)
    assert caught.value.where == str(files / "classifier")
    assert not (files / "run/tasks/toy/export").exists()


def test_a_corpus_that_is_changed_while_it_is_read_leaves_no_tokens_behind(tiny_bert, tiny_text, tmp_path, monkeypatch):
    text, real = tmp_path / "text.txt", corpus._write
    shutil.copy(tiny_text, text)

    def write(*args):
        real(*args)
        text.write_text(text.read_text() + "more .\n")

    monkeypatch.setattr(corpus, "_write", write)
    section = Corpus.model_validate({"files": [str(text)], "max_seq_length": 24})
    with pytest.raises(UserError, match="changed while it was read") as caught:
        corpus.load_corpus(section, {}, load_tokenizer(tiny_bert), tmp_path / "cache")
    assert caught.value.where == str(text)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".partial"]


def test_a_kill_after_the_training_keeps_its_checkpoints_until_the_result_is_complete(files, run, monkeypatch):
    folder, real = files / "run/tasks/toy/task_teacher", pipeline_run.artifact_hash
    partial = folder.with_name("task_teacher.partial")

    def killed_in(name, function):
        monkeypatch.setattr(pipeline_run, name, function)
        with pytest.raises(KeyboardInterrupt):
            run()
        monkeypatch.undo()

    def killed(*arguments):
        if arguments[-1] in (partial, folder):
            raise KeyboardInterrupt
        return real(*arguments)

    killed_in("artifact_hash", killed)
    assert (partial / ".work/checkpoints/checkpoint-2/whole.json").is_file()
    killed_in("promote", killed)
    (manifest,) = run()
    assert manifest.metrics["steps"] == 2
    assert not list(folder.parent.rglob(".work"))
