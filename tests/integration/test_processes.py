"""Two processes over gloo: the same models as one process with the same batches, whoever takes over after a kill."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from subprocess import Popen

import pytest
from safetensors.torch import load_file

from tests.integration.test_whole import WEIGHTS, tiny_recipe
from toolkit.core.artifacts import NullProgress
from toolkit.pipeline.run import Run
from toolkit.recipe.load import dump_recipe, load_recipe


@pytest.fixture(scope="module")
def recipe_file(tiny_bert, tiny_task_files, tiny_text, tmp_path_factory):
    """The tiny recipe up to `quantize`, of a model without dropout: each process draws its own."""
    folder = tmp_path_factory.mktemp("recipe")
    model = folder / "model"
    shutil.copytree(tiny_bert, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    # Adam turns rounding of gradients that are nearly zero into whole steps; SGD shows what was really different.
    optimizer = {"SGD": {"learning_rate": 0.02, "momentum": 0.9}}
    train = {"steps": 30, "batch_size": 8, "log_every": 4, "checkpoint_every": 5, "optimizer": optimizer}
    lesson = {"train": train | {"gradient_accumulation_steps": 2}}
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    compression = {"target_sparsity": 0.7, "end_step": 20, "update_frequency_on_step": 4}
    recipe = tiny_recipe(
        model,
        task,
        tiny_text,
        teacher={"train": train},
        student={
            "pruning": {"backend": "magnitude", "approach": {"weight_compression": compression}},
            "distillation": lesson | {"positions": {"sample": 0.4}},
        },
        task_teacher={"train": train},
        transfer={"distillation": lesson},
        quantize={"quantization": {"calibration": {"sampling_size": 8}}, "distillation": lesson},
        export=None,
        benchmark=None,
    )
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    return path


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")


def start(recipe: Path, runs: Path, launcher: tuple[str, ...] = TORCHRUN, changes: tuple[str, ...] = ()) -> Popen:
    return Popen(
        [sys.executable, *launcher, "-m", "toolkit", "run", str(recipe), *changes, "--runs", str(runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def finish(process: Popen) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    return said.decode()


def alone(recipe: Path, runs: Path) -> None:
    Run(load_recipe(recipe, []), runs / "tiny", lambda step: nullcontext(NullProgress()))()


def kill_in(stage: str, recipe: Path, runs: Path, launcher: tuple[str, ...] = TORCHRUN) -> None:
    """Runs until the stage has written a checkpoint; then kills the launcher and its processes, all at once."""
    process, deadline = start(recipe, runs, launcher), time.monotonic() + 120
    partial = (runs / "tiny" / WEIGHTS[stage]).parent.with_suffix(".partial")
    while not list(partial.glob(".work/checkpoints/checkpoint-*/whole.json")):
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert partial.is_dir(), f"{stage} was finished already"


@pytest.fixture(scope="module")
def finished(recipe_file, tmp_path_factory):
    """Number of processes -> the run that they made."""
    one, two = (tmp_path_factory.mktemp(f"by {processes}") for processes in (1, 2))
    process = start(recipe_file, two)
    alone(recipe_file, one)
    said = finish(process)
    assert said.count("computing teacher logits for 432 training examples") == 1
    return {1: one / "tiny", 2: two / "tiny"}


def assert_alike(one: Path, other: Path, tolerance: float) -> None:
    for stage, file in WEIGHTS.items():
        ours, theirs = load_file(one / file), load_file(other / file)
        assert ours.keys() == theirs.keys()
        largest = max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)
        assert largest <= tolerance, f"{stage}: {largest}"


def manifest(run: Path, stage: str) -> dict:
    return json.loads(((run / WEIGHTS[stage]).parent / "manifest.json").read_text())


def test_two_processes_make_the_models_that_one_makes(finished):
    assert_alike(finished[1], finished[2], 2e-5)
    for stage in WEIGHTS:
        one, two = manifest(finished[1], stage), manifest(finished[2], stage)
        assert one["key"] == two["key"]
        assert two["metrics"]["processes"] == 2
        assert [row["loss"] for row in two["history"]] == pytest.approx(
            [row["loss"] for row in one["history"]], rel=1e-4
        )
    assert len(list((finished[2] / ".cache").glob("corpus-*"))) == 1
    assert not list(finished[2].rglob("*.partial"))


def test_a_killed_run_goes_on_with_any_number_of_processes(finished, recipe_file, tmp_path):
    kill_in("student", recipe_file, tmp_path)
    kill_in("transfer", recipe_file, tmp_path)
    weights = WEIGHTS["student"]
    assert (tmp_path / "tiny" / weights).read_bytes() == (finished[2] / weights).read_bytes(), "killed, and made by two"
    alone(recipe_file, tmp_path)
    assert_alike(finished[2], tmp_path / "tiny", 2e-5)


def test_a_run_of_one_process_killed_while_it_pruned_goes_on_with_two(finished, recipe_file, tmp_path):
    kill_in("student", recipe_file, tmp_path, launcher=())
    assert "resuming from step" in finish(start(recipe_file, tmp_path))
    assert manifest(tmp_path / "tiny", "student")["metrics"]["processes"] == 2
    assert_alike(finished[1], tmp_path / "tiny", 2e-5)


PRETRAINING = ("tasks={}", "task_teacher=null", "transfer=null", "quantize=null")


def assert_same_student(run: Path, finished: Path) -> None:
    assert json.loads((run / "student" / "manifest.json").read_text())["metrics"]["processes"] == 2
    assert (run / WEIGHTS["student"]).read_bytes() == (finished / WEIGHTS["student"]).read_bytes()


def test_accelerate_launches_the_same_processes(finished, recipe_file, tmp_path):
    finish(start(recipe_file, tmp_path, ACCELERATE, PRETRAINING))
    assert_same_student(tmp_path / "tiny", finished[2])


def test_two_nodes_of_one_process_each_are_as_one_node_of_two(finished, recipe_file, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = ("--master_addr", "127.0.0.1", "--master_port", str(free.getsockname()[1]))
    launchers = [
        ("-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", rank, "--nproc_per_node", "1", *where)
        for rank in "01"
    ]
    nodes = [start(recipe_file, tmp_path, launcher, PRETRAINING) for launcher in launchers]
    for node in nodes:
        finish(node)
    assert_same_student(tmp_path / "tiny", finished[2])
