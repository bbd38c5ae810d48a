"""Local folders in place of hub references: recorded, and never counted as the published experiment."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.data import resolved_inputs
from toolkit.data.hub import HubSplit
from toolkit.models.sources import local_model
from toolkit.recipe.load import load_recipe, parse_recipe
from toolkit.reporting.scoreboard.board import Measurement, PublishedResult, measurement_of
from toolkit.reporting.scoreboard.provenance import reduced

RECIPE = """
name: mine
model: {source: google-bert/bert-base-uncased}
tasks:
  sst2: {preset: sst2}
ready: {student: "Intel/bert-base-uncased-sparse-90-unstructured-pruneofa@refs/pr/1"}
task_teacher: {train: {epoch: 3}}
transfer: {distillation: {train: {epoch: 9}}}
export: {}
benchmark: {}
"""
ROW = PublishedResult(
    model="BERT-Base", sparsity=0.9, precision="fp32", task="sst2", source="card", claimed={"accuracy": 92.0}
)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current directory, with a recipe in another folder; the hub provides models and complete splits."""
    snapshot = tmp_path / "cache" / "snapshots" / "86b5e0934494"
    snapshot.mkdir(parents=True)
    whole = tmp_path / "cache" / "whole.parquet"
    whole.write_bytes(b"whole")
    local = local_model
    monkeypatch.setattr(resolved_inputs, "cached_model", lambda source: local(source) or snapshot)
    monkeypatch.setattr(HubSplit, "file", whole)
    (tmp_path / "here").mkdir()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def record(recipes: Path, n: int = 872, row: PublishedResult = ROW) -> Measurement:
    path = recipes / "mine.yaml"
    recipe, written = load_recipe(path), parse_recipe(path.read_text(), str(path))
    scores = {"accuracy": dict.fromkeys(row.claimed, 0.93)}
    metrics = {"variants": {"sparse-fp32": scores}, "counts": dict.fromkeys(row.claimed, n)}
    benchmark = SimpleNamespace(
        stage="benchmark", task=row.task, metrics=metrics, machine={}, versions={}, commit="abc", started="2031"
    )
    return measurement_of("row", row, [benchmark], recipe, written, (), False)


def data_set(folder: Path) -> None:
    (folder / "nyu-mll" / "glue" / "sst2").mkdir(parents=True)
    (folder / "nyu-mll" / "glue" / "sst2" / "train-0.parquet").write_bytes(b"a few rows")


def model(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "config.json").write_text(json.dumps({"model_type": "bert"}))


def test_what_the_hub_gave_is_recorded_with_its_revision_and_is_the_published_experiment(here):
    found = record(here.parent / "recipes")
    assert found.as_published
    assert found.setting == "pre-training"
    assert found.origins["model.source"] == "google-bert/bert-base-uncased@86b5e0934494"
    assert found.origins["ready.student"] == "Intel/bert-base-uncased-sparse-90-unstructured-pruneofa@86b5e0934494"
    assert found.origins["tasks.sst2.dev"].startswith("hub:nyu-mll/glue:sst2:validation, sha256:")
    assert found.origins.keys() == {"model.source", "ready.student", "tasks.sst2.train", "tasks.sst2.dev"}


@pytest.mark.parametrize("where", ["here", "recipes"])
def test_a_data_set_in_a_local_folder_is_another_setting_though_a_preset_names_it(here, where):
    data_set(here.parent / where)
    text = (here.parent / "recipes" / "mine.yaml").read_text()
    named = "{preset: sst2, train: hub:nyu-mll/glue:sst2:train, dev: hub:nyu-mll/glue:sst2:validation}"
    (here.parent / "recipes" / "mine.yaml").write_text(
        text if where == "here" else text.replace("{preset: sst2}", named)
    )
    found = record(here.parent / "recipes")
    assert not found.as_published
    (reason,) = found.differs
    assert reason.startswith("nyu-mll/glue from a local folder (")
    assert reason in found.setting
    assert found.origins["tasks.sst2.train"].startswith("local, sha256:")
    assert str(here.parent) not in found.model_dump_json()


@pytest.mark.parametrize("where", ["here", "recipes"])
@pytest.mark.parametrize(
    "name",
    ["google-bert/bert-base-uncased", "Intel/bert-base-uncased-sparse-90-unstructured-pruneofa@refs/pr/1"],
)
def test_a_model_in_a_local_folder_of_the_hubs_name_is_another_setting(here, where, name):
    model(here.parent / where, name)
    found = record(here.parent / "recipes")
    assert not found.as_published
    assert [reason.partition(" from ")[0] for reason in found.differs] == [name]


def test_other_local_data_is_yet_another_setting(here):
    data_set(here)
    before = record(here.parent / "recipes").setting
    (here / "nyu-mll" / "glue" / "sst2" / "train-0.parquet").write_bytes(b"other rows")
    assert record(here.parent / "recipes").setting != before


def test_local_files_and_models_that_a_recipe_names_as_such_are_what_it_means(here):
    (here / "train.tsv").write_text("sentence\tlabel\n")
    model(here.parent / "recipes", "model")
    data_set(here)
    text = RECIPE.replace("{preset: sst2}", "{preset: sst2, train: train.tsv, dev: hub:./nyu-mll/glue:sst2:validation}")
    text = text.replace("google-bert/bert-base-uncased}", "./model}")
    (here.parent / "recipes" / "mine.yaml").write_text(text)
    found = record(here.parent / "recipes", n=20)
    assert found.as_published
    assert found.origins["model.source"].startswith("local, sha256:")


def test_another_number_of_rows_than_the_public_dev_split_has_is_another_setting(here):
    found = record(here.parent / "recipes", n=20)
    assert found.differs == ("20 of 872 dev rows",)
    assert not found.as_published


@pytest.mark.parametrize(
    ("preset", "counts", "expected"),
    [
        ("mnli", {"accuracy": 9_815, "accuracy (mismatched)": 9_832}, ()),
        ("mnli", {"accuracy": 9_815, "accuracy (mismatched)": 9_815}, ("9,815 of 9,832 dev rows (mismatched)",)),
        ("qqp", {"accuracy": 40_430, "f1": 40_430}, ()),
        ("qqp", {"accuracy": 40_429, "f1": 40_429}, ()),  # a pair with an empty question is left out
        ("qqp", {"accuracy": 1_000, "f1": 1_000}, ("1,000 of 40,430 dev rows",)),
        ("squad", {"f1": 10_570, "exact_match": 10_570}, ()),
        ("sst2", {"accuracy": 871}, ("871 of 872 dev rows",)),
    ],
)
def test_rows_are_counted_for_each_split_and_without_the_empty_ones(preset, counts, expected):
    recipe = parse_recipe(f"{{name: a, model: {{source: b}}, tasks: {{t: {{preset: {preset}}}}}}}", "text")
    assert reduced(recipe.tasks["t"], counts) == expected
