"""Several processes that train one model: `torchrun --nproc_per_node 2 -m toolkit run recipe.yaml`.

`accelerate launch --multi_gpu --num_processes 2` does the same (with `--cpu` it starts one process only). Each process
holds the whole model, on a GPU of its own where there are GPUs: there is no FSDP.

The first process runs the recipe as if it were alone. The others help: they wait for the name of a stage, train along
in it, write nothing, and wait again. Every process takes its share of each batch and adds its gradients to those of the
others, so a recipe gives the same model (up to rounding and dropout) whatever the number of processes. All of them see
the run folder.

The libraries must not know of it: a Trainer that finds itself in a group would wrap the model, which hides it from our
losses. So what the launcher said is taken out of the environment as soon as the group is there.
"""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import UserError

if TYPE_CHECKING:
    import torch

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK")
_PATIENCE = timedelta(days=30)  # helpers wait while the first process exports and measures
_TEXT = 256  # bytes
_BUCKET = 1 << 23  # numbers that are sent at once
_LARGE = 1 << 17  # a tensor of so many numbers is sent as it is: to copy it costs more than to send one thing more
_beside = 1  # processes of the group on this machine, as the launcher said


class WorkerDone(Exception):
    """A helper's part of a stage ends with its training: the rest is the first process's."""


def init() -> int:
    """Joins the group that a launcher has made, once; this process's number in it, 0 where it is alone.

    Raises:
        UserError: Some processes have a GPU, and others have none.
    """
    global _beside
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _beside = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        _see_one_gpu(int(os.environ.get("LOCAL_RANK", "0")))
        import torch
        from torch.distributed.rendezvous import rendezvous

        store, number, size = next(rendezvous("env://", timeout=_PATIENCE))
        store.set_timeout(_PATIENCE)
        backend = "cpu:gloo,cuda:nccl" if _all_have_a_gpu(store, number, size) else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=number, world_size=size, timeout=_PATIENCE)
        # Its threads give tensors back to Python. One that does so while the interpreter closes aborts the process.
        atexit.register(torch.distributed.destroy_process_group)
    for name in (*_LAUNCHER, *(name for name in os.environ if name.startswith("ACCELERATE_"))):
        os.environ.pop(name, None)
    return rank()


def _see_one_gpu(number: int) -> None:
    """Hides from this process all GPUs but one, the `number`-th of those that it may use.

    The libraries take the first GPU that they see, whatever `torch.cuda.set_device` said before. The driver reads the
    variable once, when it is first asked for anything, even for how many GPUs there are: so nothing is asked here.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = None if visible is None else [gpu.strip() for gpu in visible.split(",")]
    os.environ["CUDA_VISIBLE_DEVICES"] = str(number) if gpus is None else "".join(gpus[number : number + 1])


def _all_have_a_gpu(store: Any, number: int, size: int) -> bool:
    """Whether the processes train on GPUs.

    They tell each other before there is a group: one of some that do and some that do not would wait for good.

    Raises:
        UserError: Some do, and some do not.
    """
    import torch

    store.set(f"gpu/{number}", str(int(torch.cuda.is_available())))
    without = [other for other in range(size) if store.get(f"gpu/{other}") == b"0"]
    store.set(f"known/{number}", "")
    if number == 0:  # the store may be its own: it must not leave before the others know
        store.wait([f"known/{other}" for other in range(size)])
    if 0 < len(without) < size:
        raise UserError(
            f"{len(without)} of {size} processes have no GPU of their own (number {without[0]} is the first)",
            where="torchrun --nproc_per_node",
            instead="on each machine as many processes as it has GPUs; with CUDA_VISIBLE_DEVICES= all train on CPUs",
        )
    return not without


def _group() -> Any:
    """`torch.distributed` where there is a group; does not load torch to find out that there is none."""
    torch_ = sys.modules.get("torch")
    found = torch_ is not None and torch_.distributed.is_available() and torch_.distributed.is_initialized()
    return torch_.distributed if torch_ is not None and found else None


def rank() -> int:
    """Number of this process, from 0."""
    group = _group()
    return int(group.get_rank()) if group else 0


def world_size() -> int:
    """How many there are."""
    group = _group()
    return int(group.get_world_size()) if group else 1


def local_world_size() -> int:
    """How many of them share this machine's cores."""
    return _beside


def broadcast_text(text: str) -> None:
    """From the first process to the helpers, at most 256 bytes; nothing happens where there are none."""
    if group := _group():
        import torch

        data = text.encode().ljust(_TEXT)
        assert len(data) == _TEXT, text
        group.broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8), src=0)


def receive_text() -> str:
    """What the first process tells; waits for it.

    Raises:
        SystemExit: The first process is gone; it has said why.
    """
    import torch

    data = torch.zeros(_TEXT, dtype=torch.uint8)
    try:
        torch.distributed.broadcast(data, src=0)
    except RuntimeError:
        raise SystemExit(1) from None
    return bytes(data.tolist()).decode().strip()


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """The first process does what is in the `with` before the others: they find on disk what it has made."""
    import torch

    def wait() -> None:
        if group := _group():
            group.all_reduce(torch.zeros(1))  # a barrier, on the CPU whatever else there is

    if rank():
        wait()
    yield
    if not rank():
        wait()


def broadcast(tensors: "Iterable[torch.Tensor]") -> None:
    """The first process's values, in place, to all."""
    if group := _group():
        for tensor in tensors:
            group.broadcast(tensor, src=0)


def all_reduce_sum(tensors: "Iterable[torch.Tensor]") -> None:
    """The sum over all processes, in place, the same bits in each of them. All have tensors of the same shapes."""
    group = _group()
    if not group:
        return
    import torch

    sent = []
    for bucket in _buckets(tensors):
        in_place = len(bucket) == 1 and bucket[0].is_contiguous()
        flat = bucket[0].view(-1) if in_place else torch.cat([tensor.reshape(-1) for tensor in bucket])
        sent.append(([] if in_place else bucket, flat, group.all_reduce(flat, async_op=True)))
    for bucket, flat, work in sent:
        work.wait()
        if not bucket:
            continue
        for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: "Iterable[torch.Tensor]") -> "Iterator[list[torch.Tensor]]":
    """Large tensors alone; of the others a few megabytes each, of one type."""
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        if tensor.numel() >= _LARGE:
            yield [tensor]
            continue
        full = sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def assert_equal_across_ranks(digest: bytes, what: str) -> None:
    """Asserts that all processes have the same.

    Args:
        digest: Hash of it.
        what: Its name.
    """
    if group := _group():
        import torch

        own = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(torch.int32)
        least, most = own.clone(), own.clone()
        group.all_reduce(least, op=group.ReduceOp.MIN)
        group.all_reduce(most, op=group.ReduceOp.MAX)
        assert torch.equal(least, most), f"{what} differ between processes"
