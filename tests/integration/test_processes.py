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

from tests.integration.test_whole import WEIGHTS
from toolkit.core.artifacts import NullProgress
from toolkit.pipeline.run import Run
from toolkit.recipe.load import load_recipe

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")


def start(
    recipe: Path,
    runs: Path,
    launcher: tuple[str, ...] = TORCHRUN,
    changes: tuple[str, ...] = (),
    machine: tuple[str, ...] = (),
) -> Popen:
    return Popen(
        [*machine, sys.executable, *launcher, "-m", "toolkit", "run", str(recipe), *changes, "--runs", str(runs)],
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


@pytest.fixture
def machines():
    """Two network namespaces joined by a cable, as (prefix of a command in it, address): all that two machines share
    is the disk. Where this user may not make namespaces, two addresses of the loopback interface.
    """
    names = [f"pruneofa-{os.getpid()}-{end}" for end in "ab"]
    links, addresses = ("pofa0", "pofa1"), ("10.213.7.1", "10.213.7.2")

    def ip(*arguments: str) -> bool:
        return not subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode

    ends = list(zip(names, links, addresses, strict=True))
    steps = [("netns", "add", name) for name in names]
    steps += [("link", "add", links[0], "netns", names[0], "type", "veth", "peer", "name", links[1], "netns", names[1])]
    steps += [("-n", name, "address", "add", f"{address}/24", "dev", link) for name, link, address in ends]
    steps += [("-n", name, "link", "set", each, "up") for name, link, _ in ends for each in (link, "lo")]
    try:
        if shutil.which("ip") and all(ip(*step) for step in steps):
            inside = ("ip", "netns", "exec")
            yield [((*inside, name, "env", f"GLOO_SOCKET_IFNAME={link}"), address) for name, link, address in ends]
        else:
            yield [((), "127.0.0.1"), ((), "127.0.0.2")]
    finally:
        for name in names if shutil.which("ip") else ():
            ip("netns", "delete", name)


# Launcher -> its command on machine RANK, where HOST is the address of machine 0; as in docs/distributed.md.
ON_TWO_MACHINES = {
    "torchrun": "-m torch.distributed.run --nnodes 2 --node_rank RANK --nproc_per_node 1 --master_addr HOST "
    "--master_port 29500",
    "accelerate": "-m accelerate.commands.launch --multi_gpu --num_machines 2 --machine_rank RANK --num_processes 2 "
    "--main_process_ip HOST --main_process_port 29500",
}


@pytest.mark.parametrize("command", ON_TWO_MACHINES.values(), ids=ON_TWO_MACHINES)
def test_two_machines_with_networks_of_their_own_are_as_one(finished, recipe_file, tmp_path, machines, command):
    host = machines[0][1]
    nodes = [
        start(
            recipe_file,
            tmp_path,
            tuple(command.replace("RANK", str(rank)).replace("HOST", host).split()),
            PRETRAINING,
            prefix,
        )
        for rank, (prefix, _) in enumerate(machines)
    ]
    for node in nodes:
        finish(node)
    assert_same_student(tmp_path / "tiny", finished[2])
