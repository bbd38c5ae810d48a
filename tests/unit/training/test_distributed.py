"""What processes of one run say to each other, tried by two of them; and that one alone needs no group."""

import hashlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toolkit.core.artifacts import Context
from toolkit.core.errors import UserError
from toolkit.data.sampler import LengthGroupedDataset
from toolkit.pipeline.stages import quantize
from toolkit.recipe import Train
from toolkit.training import distributed
from toolkit.training.distillation import TaskLoss
from toolkit.training.hardware import device
from toolkit.training.loop import fit
from toolkit.training.trainer import training_arguments


def test_one_process_is_the_first_of_one_and_loads_no_torch_to_know():
    code = (
        "import sys; from toolkit.training import distributed as d; d.broadcast_text('x')\n"
        "print(d.init(), d.rank(), d.world_size(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0", "1", "False"]


def test_alone_nothing_is_changed_and_nobody_is_waited_for():
    values = [torch.ones(3), torch.zeros(2)]
    distributed.all_reduce_sum(values)
    distributed.broadcast(values)
    distributed.assert_equal_across_ranks(b"any", "things")
    with distributed.main_process_first():
        pass
    assert values[0].tolist() == [1, 1, 1]


def test_shares_of_a_batch_are_the_batch():
    lengths = np.random.default_rng(0).integers(3, 60, size=50)
    stream = LengthGroupedDataset(
        lengths, lambda i, rng: {"i": i, "draw": rng.random()}, batch_size=6, steps=5, accumulation=2, seed=1
    )
    shares = [stream.shard(rank, 3) for rank in range(3)]
    assert {len(share) for share in shares} == {20}
    for batch in range(10):
        seen = [shares[k % 3][batch * 2 + k // 3] for k in range(6)]
        assert seen == [stream[batch * 6 + k] for k in range(6)]


def test_a_batch_that_cannot_be_divided_is_the_user_s_error(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    context = Context(tmp_path / "transfer.partial", tmp_path, 0)
    data = SimpleNamespace(steps=1)
    with pytest.raises(UserError, match="a batch of 6 cannot be divided among 4 processes") as error:
        fit(torch.nn.Linear(2, 2), data, Train(steps=1, batch_size=6), TaskLoss("classification"), context)
    assert error.value.instead == "batch_size: 8"
    assert "transfer" in error.value.where


def test_trials_that_are_trained_again_want_one_process(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    inputs = SimpleNamespace(quantize=SimpleNamespace(tuning=SimpleNamespace(retrain_steps=3)))
    with pytest.raises(UserError, match="not supported in distributed runs"):
        quantize.run(inputs, None)


def test_an_embedding_task_is_trained_by_one_process(monkeypatch):
    distributed.require_one_process_for_embeddings("transfer")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="compare all texts of a batch"):
        distributed.require_one_process_for_embeddings("transfer")


def test_buckets_hold_every_tensor_once_in_order_and_one_type_each(monkeypatch):
    monkeypatch.setattr(distributed, "_BUCKET", 10)
    sizes = [4, 5, 2, 30, 1, 1]
    tensors = [
        torch.full((n,), float(i), dtype=torch.float64 if i == 5 else torch.float32) for i, n in enumerate(sizes)
    ]
    found = list(distributed._buckets(tensors))
    assert [[t.numel() for t in bucket] for bucket in found] == [[4, 5], [2], [30], [1], [1]]


def of_two(rank: int, port: int, folder: str) -> None:
    """What each of two processes does; run by the test below."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    assert distributed.init() == rank
    assert "RANK" not in os.environ, "the libraries must not know"
    assert distributed.init() == distributed.rank() == rank
    assert distributed.world_size() == distributed.local_world_size() == 2

    values = [torch.full((3, 2), rank + 1.0), torch.tensor(10.0 * (rank + 1)), torch.zeros(0)]
    distributed.all_reduce_sum(values)
    assert values[0].tolist() == [[3.0, 3.0]] * 3
    assert float(values[1]) == 30
    mine = torch.full((2, 2), float(rank))
    distributed.broadcast([mine])
    assert mine.tolist() == [[0, 0], [0, 0]]

    with distributed.main_process_first():
        if rank == 0:
            time.sleep(0.2)
            open(f"{folder}/made", "w").close()  # noqa: PTH123
        assert os.path.exists(f"{folder}/made")  # noqa: PTH110
    distributed.assert_equal_across_ranks(hashlib.sha256(b"same").digest(), "masks")
    with pytest.raises(AssertionError, match="masks differ between processes"):
        distributed.assert_equal_across_ranks(hashlib.sha256(bytes([rank])).digest(), "masks")

    if rank == 0:
        distributed.broadcast_text("toy/transfer")
        distributed.broadcast_text("")
    else:
        assert distributed.receive_text() == "toy/transfer"
        assert distributed.receive_text() == ""
    torch.distributed.destroy_process_group()


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_two_processes_add_up_share_wait_agree_and_talk(port, tmp_path):
    torch.multiprocessing.spawn(of_two, (port, str(tmp_path)), nprocs=2)


def test_a_process_leaves_the_group_before_the_interpreter_closes_down(port):
    """One that still has the group's threads then is aborted now and then, its work done."""
    code = (
        "import atexit, torch; from toolkit.training import distributed as d\n"
        "atexit.register(lambda: print(torch.distributed.is_initialized()))\n"  # called after what `init` registers
        "d.init(); d.receive_text() if d.rank() else d.broadcast_text('x'); print(torch.distributed.is_initialized())"
    )
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | group | {"RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [process.communicate(timeout=120)[0].split() for process in both] == [[b"True", b"False"]] * 2
    assert [process.returncode for process in both] == [0, 0]


def pretend(gpus: list[str]) -> None:
    """A machine with these GPUs, of which CUDA shows what CUDA_VISIBLE_DEVICES says when it is first asked."""
    seen: list[str] = []

    def visible() -> list[str]:
        if not seen:
            wanted = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(gpus)).split(",")
            seen.append(",".join(gpu for gpu in wanted if gpu in gpus))
        return [gpu for gpu in seen[0].split(",") if gpu]

    torch.cuda.is_available = lambda: bool(visible())
    torch.cuda.device_count = lambda: len(visible())
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    current = [0]
    torch.cuda.set_device = lambda device: current.append(
        device if isinstance(device, int) else torch.device(device).index or 0
    )
    torch.cuda.gpu_of = lambda device: visible()[current[-1] if device.index is None else device.index]
    torch.distributed.init_process_group = lambda *_, **__: None  # there is no NCCL without a GPU
    distributed.atexit.register = lambda *_: None


def of_two_gpus(rank: int, port: int, folder: str) -> None:
    """Where the Trainer and we put things in each of two processes; run by the test below."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "3,1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pretend(["0", "1", "2", "3"])
    distributed.init()
    ours = device()
    arguments = training_arguments(Train(steps=1), 1, Path(folder), 0)
    used = [torch.cuda.gpu_of(device) for device in (ours, arguments.device, device())]
    assert used == [["3", "1"][rank]] * 3


def test_each_process_trains_on_a_gpu_of_its_own(port, tmp_path):
    torch.multiprocessing.spawn(of_two_gpus, (port, str(tmp_path)), nprocs=2)


@pytest.mark.parametrize(
    ("visible", "of_both"),
    [(None, ["0", "1"]), ("5, 3", ["5", "3"]), ("GPU-b,GPU-a", ["GPU-b", "GPU-a"]), ("6", ["6", ""]), ("", ["", ""])],
)
def test_a_process_may_use_one_of_the_gpus_that_its_launcher_may(monkeypatch, visible, of_both):
    for number, expected in enumerate(of_both):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        distributed._see_one_gpu(number)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def of_one_gpu(rank: int, port: int) -> None:
    """Two processes on a machine with one GPU; run by the test below."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pretend(["0"])
    with pytest.raises(UserError, match=r"1 of 2 processes have no GPU .the first is rank 1"):
        distributed.init()


def test_more_processes_than_gpus_are_told_in_each_of_them_and_none_waits(port):
    torch.multiprocessing.spawn(of_one_gpu, (port,), nprocs=2)
