"""Data-parallel training in several processes: `torchrun --nproc_per_node 2 -m toolkit run recipe.yaml`.

`accelerate launch --multi_gpu --num_processes 2` works too (with `--cpu` it starts one process only). Each process
holds the complete model, on its own GPU if there are GPUs: there is no FSDP.

Rank 0 runs the recipe like a single process. The other ranks are workers: they wait for the name of a stage, take part
in its training, write nothing, and wait again. Every process computes a part of each batch and gradients are summed
over the processes, so a recipe gives the same model (up to rounding and dropout) whatever their number. All processes
need access to the run folder.

The libraries must not detect the group: a Trainer that does would wrap the model, which hides it from our losses.
The launcher's environment variables are therefore removed once the group exists.
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
_TIMEOUT = timedelta(days=30)  # workers wait while rank 0 exports and measures
_TEXT = 256  # bytes of a broadcast text
_BUCKET = 1 << 23  # elements per all-reduce of small tensors
_LARGE = 1 << 17  # elements; larger tensors get their own all-reduce, which costs less than copying them
_local_world_size = 1  # processes of the group on this machine


class WorkerDone(Exception):
    """Raised in a worker when the training of a stage ends: rank 0 runs the rest of the stage."""


def init() -> int:
    """Joins the process group of a launcher, once; returns this process's rank, 0 without a group.

    Raises:
        UserError: Some processes have a GPU, and others have none.
    """
    global _local_world_size
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        _see_one_gpu(int(os.environ.get("LOCAL_RANK", "0")))
        import torch
        from torch.distributed.rendezvous import rendezvous

        store, number, size = next(rendezvous("env://", timeout=_TIMEOUT))
        store.set_timeout(_TIMEOUT)
        backend = "cpu:gloo,cuda:nccl" if _all_have_a_gpu(store, number, size) else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=number, world_size=size, timeout=_TIMEOUT)
        # The group's threads release Python tensors; doing so while the interpreter shuts down aborts the process.
        atexit.register(torch.distributed.destroy_process_group)
    for name in (*_LAUNCHER, *(name for name in os.environ if name.startswith("ACCELERATE_"))):
        os.environ.pop(name, None)
    return rank()


def _see_one_gpu(number: int) -> None:
    """Hides all GPUs but one from this process: the `number`-th of those that it may use.

    The libraries use the first visible GPU, whatever `torch.cuda.set_device` has selected. The driver reads the
    variable once, at its first call, even one that only counts GPUs: so there must be no such call here.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = None if visible is None else [gpu.strip() for gpu in visible.split(",")]
    os.environ["CUDA_VISIBLE_DEVICES"] = str(number) if gpus is None else "".join(gpus[number : number + 1])


def _all_have_a_gpu(store: Any, number: int, size: int) -> bool:
    """Whether the processes train on GPUs.

    They exchange this through the store before the group exists: a group of both kinds would wait forever.

    Raises:
        UserError: Some processes have a GPU, and others have none.
    """
    import torch

    store.set(f"gpu/{number}", str(int(torch.cuda.is_available())))
    without = [other for other in range(size) if store.get(f"gpu/{other}") == b"0"]
    store.set(f"known/{number}", "")
    if number == 0:  # rank 0 may host the store: it must not exit before the others have read it
        store.wait([f"known/{other}" for other in range(size)])
    if 0 < len(without) < size:
        raise UserError(
            f"{len(without)} of {size} processes have no GPU (the first is rank {without[0]})",
            where="torchrun --nproc_per_node",
            instead="at most one process per GPU on each machine; or CUDA_VISIBLE_DEVICES= to train on CPUs",
        )
    return not without


def _group() -> Any:
    """`torch.distributed` if there is a group, else None; does not load torch to find out."""
    torch_ = sys.modules.get("torch")
    found = torch_ is not None and torch_.distributed.is_available() and torch_.distributed.is_initialized()
    return torch_.distributed if torch_ is not None and found else None


def rank() -> int:
    """Returns the rank of this process; 0 without a group."""
    group = _group()
    return int(group.get_rank()) if group else 0


def world_size() -> int:
    """Returns the number of processes; 1 without a group."""
    group = _group()
    return int(group.get_world_size()) if group else 1


def local_world_size() -> int:
    """Returns the number of processes that share this machine's cores."""
    return _local_world_size


def broadcast_text(text: str) -> None:
    """Sends a text of at most 256 bytes from rank 0 to the workers; does nothing without a group."""
    if group := _group():
        import torch

        data = text.encode().ljust(_TEXT)
        assert len(data) == _TEXT, text
        group.broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8), src=0)


def receive_text() -> str:
    """Waits for a text from rank 0 and returns it.

    Raises:
        SystemExit: Rank 0 has exited; it has reported the reason.
    """
    import torch

    data = torch.zeros(_TEXT, dtype=torch.uint8)
    try:
        torch.distributed.broadcast(data, src=0)
    except RuntimeError:
        raise SystemExit(1) from None
    return bytes(data.tolist()).decode().strip()


def require_divisible(batch_size: int, stage: str) -> None:
    """Checks that a batch can be divided among the processes.

    Raises:
        UserError: It cannot.
    """
    processes = world_size()
    if batch_size % processes:
        raise UserError(
            f"a batch of {batch_size} cannot be divided among {processes} processes",
            where=f"train.batch_size of {stage}",
            instead=f"batch_size: {processes * (batch_size // processes + 1)}",
        )


def require_one_process_to_retrain(retrain_steps: int) -> None:
    """Checks that trials of a quantized model are not retrained in a distributed run, which is not supported.

    Raises:
        UserError: They are.
    """
    if world_size() > 1 and retrain_steps:
        raise UserError(
            "retraining of trials is not supported in distributed runs",
            where="quantize.tuning.retrain_steps",
            instead="retrain_steps: 0, or run the command without torchrun (finished stages are kept)",
        )


def require_one_process_for_embeddings(stage: str) -> None:
    """Checks that an embedding task is not trained in a distributed run: its losses compare all texts of a batch.

    Raises:
        UserError: It is.
    """
    if world_size() > 1:
        raise UserError(
            "the losses of an embedding task compare all texts of a batch, which several processes would split",
            where=stage,
            instead="run the command without torchrun",
        )


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Runs the `with` block in rank 0 before the other ranks, which then find its files on disk."""
    import torch

    def wait() -> None:
        if group := _group():
            group.all_reduce(torch.zeros(1))  # a barrier; on the CPU, with any back end

    if rank():
        wait()
    yield
    if not rank():
        wait()


def broadcast(tensors: "Iterable[torch.Tensor]") -> None:
    """Copies the values of rank 0 to all processes, in place."""
    if group := _group():
        for tensor in tensors:
            group.broadcast(tensor, src=0)


def all_reduce_sum(tensors: "Iterable[torch.Tensor]") -> None:
    """Sums tensors over all processes, in place and with identical bits. Shapes must be equal in all processes."""
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


def in_any_process(value: bool) -> bool:
    """Returns whether a value is true in at least one process; all processes must call this, and get the same."""
    if not (group := _group()):
        return value
    import torch

    found = torch.tensor(int(value))  # on the CPU: a GPU's work is not waited for
    group.all_reduce(found, op=group.ReduceOp.MAX)
    return bool(found)


def _buckets(tensors: "Iterable[torch.Tensor]") -> "Iterator[list[torch.Tensor]]":
    """Yields large tensors alone, and the others in buckets of a few megabytes and of one dtype."""
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
    """Asserts that a value is equal in all processes.

    Args:
        digest: Hash of the value.
        what: Name of the value, in the plural.
    """
    if group := _group():
        import torch

        own = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(torch.int32)
        least, most = own.clone(), own.clone()
        group.all_reduce(least, op=group.ReduceOp.MIN)
        group.all_reduce(most, op=group.ReduceOp.MAX)
        assert torch.equal(least, most), f"{what} differ between processes"
