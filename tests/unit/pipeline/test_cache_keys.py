"""Cache keys of stages: the role of each data file is part of them, its path is not."""

import shutil

import pytest

from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.pipeline import graph
from toolkit.pipeline.run import _by_name
from toolkit.recipe import Recipe

CONFIG = '{"model_type": "bert"}'


@pytest.fixture
def keys(tmp_path):
    """Makes the keys of a task's stages, and of the pre-training, for files."""
    for name in "abcd":
        (tmp_path / f"{name}.tsv").write_text(f"sentence\tlabel\n{name}\t0\n")
        (tmp_path / f"{name}.txt").write_text(f"text {name}\n")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(CONFIG)

    def make(train, dev, more=None, corpus=("a.txt", "b.txt"), folder=tmp_path):
        task = {"train": str(folder / train), "dev": str(folder / dev), "columns": ["sentence"], "label": "label"}
        task |= {"more_dev": {name: str(folder / file) for name, file in (more or {}).items()}} if more else {}
        values = {
            "name": "x",
            "model": {"source": str(model)},
            "corpus": {"files": [str(folder / file) for file in corpus]},
            "tasks": {"t": task},
            "teacher": {"train": {"steps": 1}},
            "task_teacher": {"train": {"steps": 1}},
        }
        return [step.key for step in graph.plan(Recipe.model_validate(values), tmp_path / "runs", ResolvedInputs())]

    return make


def test_keys_change_when_files_change_places(keys):
    pretraining, task = keys("a.tsv", "b.tsv")
    assert keys("b.tsv", "a.tsv")[0] == pretraining
    assert keys("b.tsv", "a.tsv")[1] != task
    assert keys("a.tsv", "b.tsv", corpus=("b.txt", "a.txt"))[0] != pretraining
    more = keys("a.tsv", "b.tsv", {"x": "c.tsv", "y": "d.tsv"})[1]
    assert keys("a.tsv", "b.tsv", {"x": "d.tsv", "y": "c.tsv"})[1] != more


def test_keys_stay_when_files_are_moved(keys, tmp_path):
    before = keys("a.tsv", "b.tsv")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("a.tsv", "b.tsv", "a.txt", "b.txt"):
        shutil.copy(tmp_path / name, elsewhere / f"other_{name}")
    moved = keys("other_a.tsv", "other_b.tsv", corpus=("other_a.txt", "other_b.txt"), folder=elsewhere)
    assert moved == before


def test_data_files_of_one_name_are_told_apart_in_the_manifest_by_their_folders():
    assert _by_name({"/d/train/data.tsv": "1", "/d/dev/data.tsv": "2"}) == {
        "train/data.tsv": {"sha256": "1"},
        "dev/data.tsv": {"sha256": "2"},
    }
    assert _by_name({"/d/train.tsv": "1", "/e/dev.tsv": "2"}).keys() == {"train.tsv", "dev.tsv"}
    assert _by_name({}) == {}


def test_what_zeros_may_cost_is_part_of_the_benchmarks_key_alone(tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na\t0\n")
    (tmp_path / "config.json").write_text(CONFIG)
    values = {
        "name": "x",
        "model": {"source": str(tmp_path)},
        "ready": {"student": str(tmp_path)},
        "tasks": {"t": {"train": str(tmp_path / "a.tsv"), "dev": str(tmp_path / "a.tsv")}},
        "export": {},
        "benchmark": {},
    }

    def keys_with(**changes):
        recipe = Recipe.model_validate(values | {"transfer": {"pruning": {"train": {"steps": 1}}} | changes})
        return {s.stage.name: s.key for s in graph.plan(recipe, tmp_path / "runs", ResolvedInputs())}

    default, same = keys_with(), keys_with(tuning={"accuracy_criterion": {"relative": 0.02}})
    other = keys_with(tuning={"accuracy_criterion": {"absolute": 0.5}})
    assert same == default
    assert {stage for stage in default if other[stage] != default[stage]} == {"benchmark"}
