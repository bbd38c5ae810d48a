"""Killed with SIGKILL in the middle of every training stage, a run ends with the same weights, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.test_whole import WEIGHTS, trained_recipe
from toolkit.recipe.load import dump_recipe


@pytest.fixture(scope="module")
def recipe_file(tiny_bert, tiny_task_files, tiny_text, tmp_path_factory):
    """The tiny recipe up to `quantize`, with a checkpoint every few of many steps."""
    train = {"steps": 40, "batch_size": 8, "log_every": 4, "checkpoint_every": 5, "gradient_accumulation_steps": 2}
    ramp = {"end_step": 30, "update_frequency_on_step": 3}
    recipe = trained_recipe(tiny_bert, tiny_task_files, tiny_text, train, "inc", ramp)
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    return path


def start(recipe: Path, runs: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "toolkit", "run", str(recipe), "--runs", str(runs)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def kill_in(stage: str, recipe: Path, runs: Path) -> None:
    """Runs until the stage has written a checkpoint that it did not have before, then kills the process."""
    folder = (runs / "tiny" / WEIGHTS[stage]).parent
    partial = folder.with_name(folder.name + ".partial")
    process = start(recipe, runs)
    deadline = time.monotonic() + 120
    while not list(partial.glob(".work/checkpoints/checkpoint-*/whole.json")):
        assert process.poll() is None, f"{stage} ended before it could be killed: {process.stderr.read().decode()}"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert partial.is_dir(), f"{stage} was finished already"
    assert not folder.exists()


def test_killed_in_each_training_stage_and_resumed_gives_identical_weights(recipe_file, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reference = start(recipe_file, whole)
    for stage in WEIGHTS:
        kill_in(stage, recipe_file, killed)
    last = start(recipe_file, killed)
    assert last.wait() == 0, last.stderr.read().decode()
    assert reference.wait() == 0, reference.stderr.read().decode()
    for stage, weights in WEIGHTS.items():
        assert (whole / "tiny" / weights).read_bytes() == (killed / "tiny" / weights).read_bytes(), stage
