"""The student's stage with reconstruction: alone, before and during distillation, resumed, and in two processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.encoders import tiny_encoders
from toolkit.core.artifacts import NullProgress
from toolkit.core.errors import UserError
from toolkit.models.architectures import split_layer
from toolkit.pipeline.run import Run
from toolkit.recipe import Recipe
from toolkit.recipe.load import dump_recipe

TRAIN = {"steps": 12, "batch_size": 8, "log_every": 4, "checkpoint_every": 3, "gradient_accumulation_steps": 2}
RAMP = {"target_sparsity": 0.75, "end_step": 8, "update_frequency_on_step": 4}


@pytest.fixture(scope="module")
def folders(tiny_bert, tiny_text, tmp_path_factory):
    return tiny_encoders(tiny_bert, tiny_text, tmp_path_factory)


def recipe(model, text, *, compression=None, reconstruction=None, train=None) -> Recipe:
    pruning = {
        "approach": {"weight_compression": {"target_sparsity": 0.75} | (compression or {})},
        "reconstruction": {"calibration": {"sequences": 64}} | (reconstruction or {}),
    }
    distillation = {} if train is None else {"distillation": {"train": train}}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "model": {"source": str(model)},
            "corpus": {"files": [str(text)], "max_seq_length": 24},
            "student": {"pruning": pruning} | distillation,
        }
    )


def run(section: Recipe, folder):
    (manifest,) = Run(section, folder, lambda step: nullcontext(NullProgress()))()
    return manifest, load_file(folder / "student" / "model.safetensors")


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "electra", "mpnet", "modernbert"])
def test_a_student_is_made_without_training(architecture, folders, tiny_text, tmp_path):
    manifest, weights = run(recipe(folders[architecture], tiny_text), tmp_path)
    before = load_file(folders[architecture] / "model.safetensors")
    found = manifest.metrics
    assert found["steps"] == 0
    assert found["sparsity"] == 0.75
    assert found["reconstruction"]["tokens"] > 64 * 20
    assert len(found["per_matrix"]) == len(found["reconstruction"]["matrices"])
    assert len(found["per_matrix"]) == (8 if architecture == "modernbert" else 12)
    for name, sparsity in found["per_matrix"].items():
        assert sparsity == 0.75
        assert float((weights[name] == 0).float().mean()) == 0.75
        assert not torch.equal(weights[name][weights[name] != 0], before[name][weights[name] != 0])
        errors = found["reconstruction"]["matrices"][name]
        assert 0 < errors["after"] < errors["before"]
    layers = found["reconstruction"]["layers"]
    assert [split_layer(f"{name}.x")[1] for name in layers] == [0, 1]
    assert all(0 < errors["after"] < errors["before"] for errors in layers.values())
    changed = {name for name in weights if name in before and not torch.equal(weights[name], before[name])}
    biases = {n.removesuffix("weight") + "bias" for n in found["per_matrix"]}
    assert changed == found["per_matrix"].keys() | (biases & before.keys())  # ModernBERT has none


@pytest.mark.parametrize("method", ["admm", "obs"])
@pytest.mark.parametrize("pattern", ["tile_pattern_4x1", "tile_pattern_2x2", "2:4", "1:2"])
def test_the_pattern_and_the_method_of_the_recipe_are_used(method, pattern, tiny_bert, tiny_text, tmp_path):
    compression = {"pattern": pattern, "target_sparsity": 0.5}
    manifest, _ = run(
        recipe(tiny_bert, tiny_text, compression=compression, reconstruction={"method": method}), tmp_path
    )
    assert set(manifest.metrics["per_matrix"].values()) == {0.5}
    assert manifest.metrics["backend"] == manifest.metrics["reconstruction"]["method"] == method
    assert all(e["after"] < e["before"] for e in manifest.metrics["reconstruction"]["matrices"].values())


def test_error_correction_brings_the_last_layer_nearer_to_the_dense_one(tiny_bert, tiny_text, tmp_path):
    def error(correct):
        manifest, _ = run(
            recipe(tiny_bert, tiny_text, reconstruction={"error_correction": correct}), tmp_path / str(correct)
        )
        return list(manifest.metrics["reconstruction"]["layers"].values())[-1]["after"]

    assert error(True) < error(False)


def test_a_global_budget_is_spent_where_it_costs_least(tiny_bert, tiny_text, tmp_path):
    compression = {"prune_domain": "global", "max_sparsity_ratio_per_layer": 0.8}
    manifest, _ = run(recipe(tiny_bert, tiny_text, compression=compression), tmp_path)
    sparsities = manifest.metrics["per_matrix"].values()
    assert manifest.metrics["sparsity"] == pytest.approx(0.75, abs=1e-4)
    assert max(sparsities) <= 0.8
    assert min(sparsities) < 0.74


def test_excluded_and_locked_matrices_stay_as_they_are(tiny_bert, tiny_text, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    compression = {"exclude_names": [r"layer\.1\."]}
    _, sparse = run(recipe(tiny_bert, tiny_text, compression=compression), first)
    shutil.copytree(first / "student", tmp_path / "model")
    pruners = [{"prune_type": "pattern_lock", "names": [r"layer\.0\."]}, {"exclude_names": ["query"], "pattern": "2:4"}]
    compression = {"pruners": pruners, "target_sparsity": 0.5}
    manifest, weights = run(recipe(tmp_path / "model", tiny_text, compression=compression), second)
    matrices = manifest.metrics["reconstruction"]["matrices"]
    assert {split_layer(name)[1] for name in matrices} == {1}
    assert len(matrices) == 5
    for name in weights:
        assert torch.equal(weights[name], sparse[name]) == (name.rpartition(".")[0] + ".weight" not in matrices), name


def test_distillation_starts_from_the_reconstructed_weights_and_keeps_the_pattern(tiny_bert, tiny_text, tmp_path):
    _, start = run(recipe(tiny_bert, tiny_text), tmp_path / "start")
    manifest, weights = run(recipe(tiny_bert, tiny_text, train=TRAIN), tmp_path / "distilled")
    for name in manifest.metrics["per_matrix"]:
        assert torch.equal(weights[name] == 0, start[name] == 0)
        assert not torch.equal(weights[name], start[name])
    assert {row["sparsity"] for row in manifest.history} == {0.75}


def test_a_ramp_is_reconstructed_at_each_update(tiny_bert, tiny_text, tmp_path):
    manifest, weights = run(recipe(tiny_bert, tiny_text, compression=RAMP, train=TRAIN), tmp_path)
    sparsities = [row["sparsity"] for row in manifest.history]
    assert 0 < sparsities[0] < sparsities[1] == sparsities[2] == 0.75 or sparsities[-1] == 0.75
    for name, sparsity in manifest.metrics["per_matrix"].items():
        assert sparsity == float((weights[name] == 0).float().mean()) == 0.75
    assert all(e["after"] < e["before"] for e in manifest.metrics["reconstruction"]["layers"].values())


def test_fewer_tokens_than_columns_are_refused(tiny_bert, tiny_text, tmp_path):
    with pytest.raises(UserError, match="64 columns of the widest matrix") as raised:
        run(recipe(tiny_bert, tiny_text, reconstruction={"calibration": {"sequences": 2}}), tmp_path)
    assert raised.value.instead == "at least 3 sequences"


def test_layers_that_share_their_weights_are_refused(tiny_bert, tiny_text, tmp_path):
    from transformers import AlbertConfig, AlbertForMaskedLM

    shutil.copytree(tiny_bert, tmp_path / "model", ignore=shutil.ignore_patterns("model.*", "config.json"))
    words = len(json.loads((tiny_bert / "tokenizer.json").read_text())["model"]["vocab"])
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "embedding_size": 16}
    config = AlbertConfig(vocab_size=words, num_hidden_layers=2, max_position_embeddings=128, **sizes)
    AlbertForMaskedLM(config).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="do not form a chain"):
        run(recipe(tmp_path / "model", tiny_text), tmp_path / "run")


def start(file, runs, *launcher) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "toolkit", "run", str(file), "--runs", str(runs)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def finish(process) -> None:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()


@pytest.fixture(scope="module")
def ramp(tiny_bert, tiny_text, tmp_path_factory):
    """A recipe file of a ramp in many steps of a model without dropout, and the run that one process made of it."""
    folder = tmp_path_factory.mktemp("ramp")
    shutil.copytree(tiny_bert, folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    optimizer = {"SGD": {"learning_rate": 0.02, "momentum": 0.9}}
    train = TRAIN | {"steps": 30, "optimizer": optimizer}
    section = recipe(folder / "model", tiny_text, compression=RAMP | {"end_step": 20}, train=train)
    (folder / "recipe.yaml").write_text(dump_recipe(section))
    return folder / "recipe.yaml", run(section, folder / "run")


def test_killed_during_and_after_reconstruction_and_resumed_it_gives_the_same_weights(ramp, tmp_path):
    file, (manifest, weights) = ramp
    partial = tmp_path / "tiny" / "student.partial" / ".work" / "checkpoints"
    for wanted in ("checkpoint-3", "checkpoint-15"):  # after the first update, and between later ones
        process, deadline = start(file, tmp_path), time.monotonic() + 120
        while not (partial / wanted / "whole.json").is_file():
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(start(file, tmp_path))
    resumed = load_file(tmp_path / "tiny" / "student" / "model.safetensors")
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)
    stored = json.loads((tmp_path / "tiny" / "student" / "manifest.json").read_text())["metrics"]["reconstruction"]
    for table in ("matrices", "layers"):
        assert stored[table] == manifest.metrics["reconstruction"][table]


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def test_two_processes_make_as_good_a_student_of_a_ramp_as_one(ramp, tmp_path):
    file, (manifest, _) = ramp
    finish(start(file, tmp_path, *TORCHRUN))
    found = json.loads((tmp_path / "tiny" / "student" / "manifest.json").read_text())["metrics"]
    assert found["per_matrix"] == manifest.metrics["per_matrix"]
    # Not the same masks: a difference of 1e-7 in a weight moves others across the threshold of each later update.
    for name, errors in manifest.metrics["reconstruction"]["layers"].items():
        assert found["reconstruction"]["layers"][name]["after"] == pytest.approx(errors["after"], rel=0.1)


@pytest.mark.parametrize("train", [None, TRAIN])
def test_two_processes_make_the_student_that_one_makes(train, ramp, tiny_text, tmp_path):
    optimizer = {"SGD": {"learning_rate": 0.02, "momentum": 0.9}}
    model = ramp[0].with_name("model")
    section = recipe(model, tiny_text, train=train and train | {"optimizer": optimizer})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(section))
    _, weights = run(section, tmp_path / "one")
    finish(start(tmp_path / "recipe.yaml", tmp_path, *TORCHRUN))
    both = load_file(tmp_path / "tiny" / "student" / "model.safetensors")
    assert max(float((both[name].double() - weights[name].double()).abs().max()) for name in weights) < 2e-5
