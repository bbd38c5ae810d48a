"""Sparse students of one dense encoder, made on a GPU: zeros chosen, kept weights distilled on hidden states.

python student.py check  MODEL --write losses.json    # five steps in float32 on a CPU
python student.py check  MODEL --against losses.json  # the same steps here
python student.py rates  MODEL TEXT OUT               # tokens per second; the best of some learning rates
python student.py make   MODEL TEXT OUT --until TIME  # all students of `STUDENTS` that end before this Unix time
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distillation import DEVICE, Block, Distillation, reconstructed
from encoder import Encoder
from text import CYCLE, Batch, Text, read_text
from torch import Tensor

from toolkit.models.kept_weights import read_kept, write_kept
from toolkit.sparsity.units import keep_units

TOKENS = 32_768  # of a step, padding included
PEAK = 989e12  # bf16 operations per second of an H100 or H200 (SXM), dense, by its data sheet
RAMP = (0.05, 0.5)  # of the steps: gradual pruning
UPDATES = 50  # of the mask in a ramp


@dataclass(frozen=True)
class Student:
    """One student. Its zeros are chosen at once by reconstruction and locked, or gradually while it is distilled.

    Attributes:
        name: Name of its file.
        sparsity: Fraction of zeros in each matrix; 0: dense.
        rows: Rows of a block, 1 or 4.
        start: `admm`, `gradual`, `layers` (dense, every second layer), `best` (of the first two, by their losses), or
            `after` (of a finished student of every second layer, reconstructed).
        tokens: Budget in millions of tokens, padding included; None: the budget of `make`.
        after: Name of that finished student.
    """

    name: str
    sparsity: float
    rows: int
    start: str
    tokens: float | None = None
    after: str | None = None


STUDENTS = (
    Student("80-4x1-admm", 0.8, 4, "admm"),
    Student("80-4x1-gradual", 0.8, 4, "gradual"),
    Student("80-1x1", 0.8, 1, "best"),
    Student("90-4x1", 0.9, 4, "best"),
    Student("80-4x1-admm-2m", 0.8, 4, "admm", 2.5),
    Student("80-4x1-admm-10m", 0.8, 4, "admm", 10),
    Student("80-4x1-admm-40m", 0.8, 4, "admm", 40),
    Student("80-4x1-gradual-2m", 0.8, 4, "gradual", 2.5),
    Student("80-4x1-gradual-10m", 0.8, 4, "gradual", 10),
    Student("80-4x1-gradual-40m", 0.8, 4, "gradual", 40),
    Student("dense-3-layers", 0.0, 1, "layers"),
    Student("3-layers-50-4x1", 0.5, 4, "after", after="dense-3-layers"),
    Student("90-1x1", 0.9, 1, "best"),
    Student("70-4x1", 0.7, 4, "best"),
)


def made(
    distillation: Distillation,
    spec: Student,
    steps: int,
    rate: float,
    batches: int,
    after: dict[str, Tensor] | None = None,
) -> tuple[Encoder, dict[str, Tensor], dict[str, Any]]:
    """Returns a student, its masks and its figures. `after`: parameters of the finished student that it starts from."""
    model = Encoder({n: t.clone() for n, t in distillation.dense.items()}, distillation.heads)
    pairs = [(i, i) for i in range(len(model.layers))]
    figures: dict[str, Any] = asdict(spec) | {
        "steps": steps,
        "learning_rate": rate,
        "tokens": steps * distillation.text.tokens,
    }
    if spec.start in ("layers", "after"):
        model = every_second_layer(model)
        pairs = [(i, 2 * i + 1) for i in range(len(model.layers))]
    if after:
        assert after.keys() <= model.parameters.keys()
        model = Encoder(model.parameters | after, model.heads)
    started = time.perf_counter()
    if spec.start in ("admm", "after"):
        reconstructed(distillation, model, spec.sparsity, spec.rows, batches)
        figures["reconstruction"] = distillation.measures(model, pairs) | {"seconds": time.perf_counter() - started}
    names = list(model.matrices()) if spec.sparsity else []
    weights = [model.parameters[n] for n in names]
    masks = [(w != 0).to(w.dtype) for w in weights]
    parameters = model.trained()
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.98), weight_decay=0.0, fused=DEVICE == "cuda")
    generator = torch.Generator(DEVICE).manual_seed(2)
    first, last = round(RAMP[0] * steps), round(RAMP[1] * steps)
    every = max(1, (last - first) // UPDATES)
    curve: list[list[float]] = []
    real = torch.zeros((), device=DEVICE)
    seconds = time.perf_counter()
    for step in range(steps):
        if spec.start == "gradual" and first <= step <= last and ((step - first) % every == 0 or step == last):
            now = spec.sparsity * (1 - (1 - (step - first) / max(1, last - first)) ** 3)
            for weight, mask in zip(weights, masks, strict=True):
                prune = int(now * weight.numel() / spec.rows)
                mask.copy_(keep_units(weight.detach().square(), Block(spec.rows), prune))
                weight.data.mul_(mask)
        warmup = max(1, steps // 20)
        scale = min(1.0, (step + 1) / warmup) * (1 - max(0, step - warmup) / max(1, steps - warmup))
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        batch = distillation.text.batch(CYCLE[step % len(CYCLE)], generator)
        real += batch.real().sum()
        loss, layers = distillation.loss(model, batch, pairs)
        loss.backward()
        if names:
            torch._foreach_mul_([w.grad for w in weights], masks)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if names:
            with torch.no_grad():
                torch._foreach_mul_(weights, masks)
        if step % max(1, steps // 40) == 0 or step == steps - 1:
            curve.append([step, round(float(layers), 5)])
            if not math.isfinite(curve[-1][1]):
                raise SystemExit(f"{spec.name}: the loss is {curve[-1][1]} at step {step}")
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - seconds
    for parameter in parameters:
        parameter.requires_grad_(False)
    figures["real_tokens"] = int(real)
    figures |= {"seconds": seconds, "tokens_per_second": figures["tokens"] / seconds, "curve": curve}
    figures |= distillation.measures(model, pairs)
    print(f"{spec.name}: " + json.dumps({k: v for k, v in figures.items() if k != "curve"}), flush=True)
    return model, dict(zip(names, (m.bool() for m in masks), strict=True)), figures


def every_second_layer(model: Encoder) -> Encoder:
    """Returns a dense encoder of layers 2, 4, 6, ..., renumbered."""
    kept = {n: t for n, t in model.parameters.items() if n.startswith("embeddings.")}
    for n, t in model.parameters.items():
        if n.startswith("encoder.layer.") and int(n.split(".")[2]) % 2:
            parts = n.split(".")
            kept[".".join([*parts[:2], str(int(parts[2]) // 2), *parts[3:]])] = t
    return Encoder(kept, model.heads)


def operations_per_token(layers: int = 6, hidden: int = 384, length: int = 128) -> float:
    """Operations of products of a step, per token: teacher forward, student forward and twice that backward."""
    return layers * (2 * 12 * hidden**2 + 4 * length * hidden) * 4.0


def check(options: argparse.Namespace) -> None:
    """Five steps of a reconstructed student on held-out text cut by a CPU generator, the same on any device."""
    on_gpu = DEVICE == "cuda"
    distillation = Distillation(
        options.model, None, compile=on_gpu, dtype=torch.bfloat16 if on_gpu else torch.float32, tokens=2048
    )
    ids, lengths = read_text(options.model / "valid.xz")
    text = Text(ids, lengths, None, "cpu", 2048)
    generator = torch.Generator().manual_seed(0)
    model = Encoder({n: t.clone() for n, t in distillation.dense.items()}, distillation.heads)
    reconstructed(distillation, model, 0.8, 4, 3)
    names, parameters = list(model.matrices()), model.trained()
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, 1e-4)
    masks = [(model.parameters[n] != 0).float() for n in names]
    losses = []
    for _ in range(5):
        batch = text.batch("packed", generator)
        batch = Batch(batch.ids.to(DEVICE), batch.types.to(DEVICE), None)
        loss, _layers = distillation.loss(model, batch, [(i, i) for i in range(len(model.layers))])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_mul_([model.parameters[n] for n in names], masks)
        losses.append(float(loss.detach()))
    print("losses of five steps:", losses)
    if options.write:
        options.write.write_text(json.dumps(losses))
    if options.against:
        expected = json.loads(options.against.read_text())
        worst = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
        print(f"CPU in float32: {expected}; largest relative difference {worst:.2%}")
        if worst > 0.1:
            raise SystemExit("the losses of this device are not those of the CPU")


def rates(options: argparse.Namespace) -> None:
    """Measures tokens per second, and the held-out loss at some learning rates; writes the best one."""
    distillation = distillation_of(options)
    spec = Student("rate", 0.8, 4, "admm")
    steps = max(8, int(options.tokens * 1e6 / options.step_tokens))
    made(distillation, spec, 16, 1e-3, options.batches)  # compiles
    found = {}
    for rate in options.rates:
        figures = made(distillation, spec, steps, rate, options.batches)[2]
        found[rate] = figures["held_out_packed"] + figures["held_out_sentences"]
    speed = figures["tokens_per_second"]
    share = speed * operations_per_token() / PEAK
    best = min(found, key=lambda rate: found[rate] if math.isfinite(found[rate]) else math.inf)
    result = {"learning_rate": best, "losses": found, "tokens_per_second": speed, "share_of_peak": share}
    (options.out / "rate.json").write_text(json.dumps(result))
    print(json.dumps(result))


def make(options: argparse.Namespace) -> None:
    """Makes the students in their order, each only if it ends in time."""
    distillation = distillation_of(options)
    rate = json.loads((options.out / "rate.json").read_text())
    speed, losses = rate["tokens_per_second"], {}
    # Transfers run beside it; a quarter of the time is for the students after the four large ones.
    budget = options.tokens or max(10.0, 0.7 * 0.75 * speed * (options.until - time.time()) / 4e6)
    dense = Encoder(distillation.dense, distillation.heads)
    print("dense:", json.dumps(distillation.measures(dense, [(i, i) for i in range(len(dense.layers))])))
    for spec in (s for s in STUDENTS if not options.only or s.name in options.only):
        steps = max(8, int((spec.tokens or budget) * 1e6 / options.step_tokens))
        needed = steps * options.step_tokens / speed + 5
        if time.time() + needed > options.until:
            print(f"{spec.name}: left out, {needed:.0f} s needed, {options.until - time.time():.0f} s left", flush=True)
            continue
        if spec.start == "best":
            if not losses:
                continue
            spec = Student(spec.name, spec.sparsity, spec.rows, min(losses, key=lambda k: losses[k]), spec.tokens)
        after = None
        if spec.after:
            finished = options.out / f"{spec.after}.safetensors"
            if not finished.is_file():
                continue
            after = {n: torch.from_numpy(t).to(DEVICE) for n, t in read_kept(finished)[0].items()}
        model, masks, figures = made(distillation, spec, steps, rate["learning_rate"], options.batches, after)
        if spec.tokens is None and spec.start in ("admm", "gradual") and spec.start not in losses:
            losses[spec.start] = figures["held_out_packed"] + figures["held_out_sentences"]
        speed = min(speed, figures["tokens_per_second"])
        trained = {n: t for n, t in model.parameters.items() if n.startswith("encoder.")}
        partial = options.out / f"{spec.name}.partial"
        if spec.tokens is None:
            write_kept(partial, arrays(trained), arrays(masks), figures)
            partial.rename(options.out / f"{spec.name}.safetensors")
        with (options.out / "students.jsonl").open("a") as file:
            file.write(json.dumps(figures) + "\n")


def arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def distillation_of(options: argparse.Namespace) -> Distillation:
    on_gpu = DEVICE == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    started = time.perf_counter()
    found = Distillation(options.model, options.text, compile=on_gpu, dtype=dtype, tokens=options.step_tokens)
    print(f"text and model are on the device after {time.perf_counter() - started:.1f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, function in (("check", check), ("rates", rates), ("make", make)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("model", type=Path)
        if name == "check":
            command.add_argument("--write", type=Path)
            command.add_argument("--against", type=Path)
            continue
        command.add_argument("text", type=Path)
        command.add_argument("out", type=Path)
        command.add_argument("--tokens", type=float, help="millions per student; default of make: by the time there is")
        command.add_argument("--step-tokens", type=int, default=TOKENS)
        command.add_argument("--batches", type=int, default=8, help="of calibration")
        command.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
        command.add_argument("--only", nargs="+", help="names of students; default: all")
        command.add_argument("--until", type=float, default=math.inf, help="Unix time at which the last one has ended")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")  # of the moments; training computes in bfloat16
    options.function(options)


if __name__ == "__main__":
    main()
