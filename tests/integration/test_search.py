"""`pruneofa search` on a tiny BERT: latency, scores, the recipe that it writes, and what a second search reads."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.integration.test_whole import tiny_recipe
from toolkit.cli.search import search
from toolkit.core.artifacts import NullProgress
from toolkit.core.errors import UserError
from toolkit.measure import latency
from toolkit.models import architectures
from toolkit.models.load import load_task_model, load_tokenizer
from toolkit.pipeline.preflight import check_recipe
from toolkit.pipeline.run import Run
from toolkit.pipeline.search import points, scores
from toolkit.pipeline.search.search import FRONTIER
from toolkit.recipe.load import dump_recipe, load_recipe

TYPES = architectures.ARCHITECTURES.items()


@pytest.fixture(autouse=True)
def small_grid(monkeypatch):
    monkeypatch.setattr(points, "_ZEROS", {1: (0.8,), 4: (0.8,)})


@pytest.fixture
def recipe(tiny_bert, tiny_task_files, tiny_text):
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    return tiny_recipe(tiny_bert, task, tiny_text, teacher=None)


@pytest.fixture
def file(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    return path


MS = {"2-layers-dense": 4.0, "1-layer-dense": 2.1, "2-layers-80-1x1": 3.0, "2-layers-80-4x1": 2.0}
MS |= {"1-layer-80-1x1": 1.6, "1-layer-80-4x1": 1.1}


@pytest.fixture
def made_up_latency(monkeypatch):
    """Every size has the latency of the table; the IRs are made."""

    def measure(models, examples, pad_id, section, folder, each):
        assert all(path.is_dir() for path in models.values())
        assert len(examples[0]["input_ids"]) == section.sequence_length
        rounds = range(section.iteration)
        return [SimpleNamespace(model=n, rounds=[SimpleNamespace(median_ms=MS[n]) for _ in rounds]) for n in models]

    monkeypatch.setattr(latency, "measure", measure)


def unavailable(*_, **__):
    raise AssertionError("a second search measures nothing")


def test_a_search_measures_chooses_and_writes_a_recipe_and_a_second_one_reads_its_results(file, monkeypatch, capsys):
    search(file, loss="99.9%", length=16)
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 layers, dense" in printed
    assert "without training" in printed
    assert "Next: pruneofa run tiny-found.yaml" in printed
    first = json.loads((file.parent / "runs/tiny/search" / FRONTIER).read_text())
    assert len(first["points"]) == 6
    assert all(len(point["samples_ms"]) == 3 for point in first["points"])
    assert first["score"].startswith("1 - relative error of the last hidden states")
    known = {point["label"]: point["score"] for point in first["points"]}
    assert known["2 layers, dense"] == pytest.approx(1.0)
    found = load_recipe(file.parent / "tiny-found.yaml")
    assert (found.name, found.student.pruning is None) == ("tiny-found", "dense" in first["chosen"])
    assert dict(check_recipe(found))["task toy"]

    monkeypatch.setattr(latency, "measure", unavailable)
    monkeypatch.setattr(scores, "reconstruct_layers", unavailable)
    capsys.readouterr()
    search(file, loss="99.9%", length=16, output=file.parent / "new" / "again.yaml", as_json=True)
    printed = "\n" + capsys.readouterr().out
    assert json.loads(printed[printed.rindex("\n{\n") :])["chosen"] == first["chosen"]
    assert load_recipe(file.parent / "new" / "again.yaml") == found
    assert json.loads((file.parent / "runs/tiny/search" / FRONTIER).read_text()) == first
    text = (file.parent / "tiny-found.yaml").read_text()
    with pytest.raises(UserError, match="file already exists"):
        search(file, loss="99%", length=16)
    assert (file.parent / "tiny-found.yaml").read_text() == text
    with pytest.raises(AssertionError, match="measures nothing"):  # of another length
        search(file, loss="99.9%", length=24, output=file.parent / "other.yaml")


def test_a_trained_task_teacher_scores_on_training_rows_that_are_held_out(recipe, file, made_up_latency, capsys):
    Run(recipe, file.parent / "runs/tiny", lambda step: nullcontext(NullProgress()))(only="task_teacher")
    search(file, speedup="1.5")
    found = json.loads((file.parent / "runs/tiny/search" / FRONTIER).read_text())
    assert found["score"] == "accuracy of toy on 48 training rows held out"
    known = {point["label"]: point["score"] for point in found["points"]}
    assert known["2 layers, dense"] > 0.8
    # 1 layer, 80 % 4x1 keeps less than what is fast enough too.
    assert {label for label, score in known.items() if score is not None} == {
        *("2 layers, dense", "1 layer, dense", "2 layers, 80 % 4x1"),
    }
    assert known[found["chosen"]] == max(known["1 layer, dense"], known["2 layers, 80 % 4x1"])
    assert "score before training" in (file.parent / "tiny-found.yaml").read_text()


def test_the_score_of_a_ready_teacher_and_the_layers_kept_are_in_the_recipe(recipe, file, made_up_latency, tmp_path):
    folder = tmp_path / "teacher"
    task = recipe.tasks["toy"]
    model = load_task_model(Path(recipe.model.source), task.kind, ("0", "1"), fitted=False)
    model.save_pretrained(folder)
    load_tokenizer(Path(recipe.model.source)).save_pretrained(folder)
    search(file, [f"tasks.toy.ready={{task_teacher: {folder}}}", "tasks.toy.tuning_examples=0"], latency="1.2ms")
    found = load_recipe(tmp_path / "tiny-found.yaml")
    assert len(found.student.layers) == 1
    (pruner,) = found.student.pruning.approach.weight_compression.resolve(0)
    assert (pruner.target_sparsity, pruner.pattern, pruner.end_step) == (0.8, "tile_pattern_4x1", 0)
    stored = json.loads((tmp_path / "runs/tiny/search" / FRONTIER).read_text())
    assert "may have been trained on the rows" in stored["remarks"][0]


def test_a_goal_that_no_size_meets_is_refused_with_the_nearest(file, made_up_latency):
    for goal, what, nearest in (
        ({"latency": "1ms"}, "no size that was tried", "1 layer, 80 % 4x1: 1.10 ms, 3.64 times as fast"),
        ({"speedup": "9"}, "no size that was tried", "1 layer, 80 % 4x1: 1.10 ms"),
        ({"loss": "0.000001%"}, "no size that was tried", "score"),
        ({"latency": "5ms"}, "nothing to prune", "dense-int8"),
    ):
        with pytest.raises(UserError, match=what) as caught:
            search(file, **goal)
        assert nearest in caught.value.instead
        assert caught.value.where == f"--{next(iter(goal))}"
        assert not (file.parent / "tiny-found.yaml").exists()


def test_a_student_without_distillation_cannot_be_dense(file, made_up_latency, capsys):
    pruning = "student={pruning: {reconstruction: {}}}"
    search(file, [pruning], latency="2.5ms")
    printed = " ".join(capsys.readouterr().out.split())
    assert "Left out: 1 layer, dense" in printed
    assert load_recipe(file.parent / "tiny-found.yaml").student.distillation is None


@pytest.mark.parametrize(
    ("changes", "task", "what"),
    [
        (["ready={student: some/model}", "student=null"], None, "the student is ready"),
        (["student=null", "transfer=null", "quantize=null", "export=null", "benchmark=null"], None, "makes no student"),
        ([], "toy", "has no task teacher"),
        ([], "other", "no task 'other'"),
    ],
)
def test_a_recipe_without_a_size_to_search_for_is_refused_before_anything_is_measured(
    file, monkeypatch, changes, task, what
):
    monkeypatch.setattr(latency, "measure", unavailable)
    with pytest.raises(UserError, match=what):
        search(file, changes, latency="4ms", task=task)


def test_encoders_that_cannot_be_reconstructed_are_refused(file, monkeypatch):
    monkeypatch.setattr(architectures, "ARCHITECTURES", {k: replace(v, each_matrix_runs_once=False) for k, v in TYPES})
    monkeypatch.setattr(latency, "measure", unavailable)
    with pytest.raises(UserError, match="runs a matrix several times"):
        search(file, latency="4ms")


def test_an_embedding_model_is_scored_by_the_cosine_to_its_dense_embeddings(
    tiny_bert, tiny_text, tmp_path, monkeypatch, made_up_latency
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.tsv").write_text("text\n" + "".join(f"{line}\n" for line in ("it is very warm .", "a dull")))
    (tmp_path / "r.yaml").write_text(
        f"name: tiny\nmodel: {{source: {tiny_bert}}}\ncorpus: {{files: [{tiny_text}], max_seq_length: 24}}\n"
        "tasks: {toy: {kind: embedding, train: texts.tsv, dev: texts.tsv, columns: [text], pooling: cls}}\n"
        "student: {distillation: {train: {steps: 5}}}\n"
    )
    search(tmp_path / "r.yaml", speedup="1.8")
    found = json.loads((tmp_path / "runs/tiny/search" / FRONTIER).read_text())
    assert found["score"].startswith("cosine of embeddings to the dense ones, on ")
    known = {point["label"]: point["score"] for point in found["points"]}
    assert known["2 layers, dense"] == pytest.approx(1.0, abs=1e-6)
    assert 0 < known["2 layers, 80 % 4x1"] < 1
    assert "needs a `quantize` section" in found["remarks"][0]
    assert "export" not in (tmp_path / "tiny-found.yaml").read_text()
