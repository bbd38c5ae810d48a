"""The benchmarks of pruning run with the toolkit as it is: one step of each, on a tiny model."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from toolkit.data.corpus import CorpusData
from toolkit.data.corpus.sequences import Sequences
from toolkit.models.load import load_masked_lm
from toolkit.recipe.load import load_recipe

FOLDER = Path(__file__).parents[3] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_shot_prunes_by_each_method(tiny_bert):
    one_shot, random = script("one_shot"), np.random.default_rng(0)
    text = Sequences(random.integers(5, 300, 64 * 20).astype(np.uint16), np.arange(20, 64 * 20 + 1, 20))
    settings = {"compression": {"target_sparsity": 0.5}, "sequences": 64, "seed": 0}
    for method in one_shot.METHODS:
        model, _ = one_shot.prune(load_masked_lm(tiny_bert).eval(), CorpusData(text, text), 0, method, settings)
        assert float((model.bert.encoder.layer[1].output.dense.weight == 0).float().mean()) == 0.5, method


@pytest.mark.parametrize("point", script("frontier").POINTS)
def test_every_point_of_the_frontier_is_a_recipe(point):
    frontier = script("frontier")
    recipe = load_recipe(FOLDER / "frontier.yaml", frontier.POINTS[point])
    assert ("student" in recipe.ready) == point.endswith(" M")  # made with a budget of many million tokens
    if "student" not in recipe.ready:
        assert (recipe.student.pruning is None) == ("%" not in point)
        assert recipe.student.layers == (int(point[0]) if "layers" in point else None)


def test_points_of_the_frontier_share_the_teacher_and_the_text_of_the_first_one(tmp_path, monkeypatch):
    frontier, made = script("frontier"), []

    def run(command, **_):
        folder = tmp_path / next(word for word in command if word.startswith("name=")).removeprefix("name=")
        made.append((folder.name, (folder / ".cache" / "tokens").exists()))
        for shared in (".cache/tokens", "tasks/reviews/task_teacher/model"):
            (folder / shared).parent.mkdir(parents=True, exist_ok=True)
            (folder / shared).touch()
        return frontier.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(frontier.subprocess, "run", run)
    monkeypatch.setattr(frontier, "write_sentences", lambda data, target: target)
    frontier.train(tmp_path, tmp_path, ["80 % 4x1", "3 layers", "2 layers"], [])
    assert sorted(made) == [("2-layers", True), ("3-layers", True), ("80-4x1", False)]


def test_the_frontier_distils_embeddings_on_sentences_of_wikipedia_and_of_training_pairs(tmp_path):
    frontier = script("frontier")
    (tmp_path / "wikipedia").mkdir()
    (tmp_path / "stsb").mkdir()
    paragraphs = [f"Paragraph {n} begins with a sentence of fair length. Then follows another." for n in range(6)]
    with frontier.lzma.open(tmp_path / "wikipedia/train_50mb.txt.xz", "wt") as file:
        file.write("\n".join(paragraphs))
    (tmp_path / "stsb/train.tsv").write_text('sentence1\tsentence2\tscore\nA "quoted plane.\tA train.\t5.0\n')
    made = frontier.write_sentences(tmp_path, tmp_path / "sentences.txt").read_text().splitlines()
    first = [f"Paragraph {n} begins with a sentence of fair length" for n in (0, 3)]
    assert made == [*first, 'A "quoted plane.', "A train."]
