"""Transfer of sparse students to tasks on a GPU: a dense task teacher for each, then every student as it appears.

    python transfer.py TASK MODEL OUT --until TIME

Students are the files that `student.py` writes into OUT. Each is fine-tuned with its zeros locked, on the teacher's
logits and, in the first setting of `SETTINGS`, also on its hidden states. Embeddings are not trained, in the teacher
neither, so that all models of a task share them. Scores of classification are those of the dev split; of questions the
best span of each window is written, and `finish.py` scores the answers by their texts.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distillation import DEVICE, square_head
from encoder import Compiled, Encoder, embed, encode
from safetensors.torch import load_file
from student import arrays
from torch import Tensor
from torch.nn import functional as F

from toolkit.models.kept_weights import read_kept, write_kept

DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
TEMPERATURE = 2.0
DROPOUT = 0.1  # of the teacher; students learn from its outputs without
_LONGEST_ANSWER, _BEST = 30, 20

# (name, weight of the hidden states, seed) of the transfers of each student.
SETTINGS = (("hidden", 1.0, 0), ("logits", 0.0, 0), ("hidden", 1.0, 1))


@dataclass(frozen=True)
class Task:
    """Budget of a task; equal for the teacher and the students, but for their rates."""

    classes: int
    epochs: int
    batch: int = 64
    teacher_rate: float = 1e-4
    student_rate: float = 2e-4


TASKS = {
    "sst2": Task(2, 3, 128, 1.5e-4, 3e-4),
    "mnli": Task(3, 5),
    "qqp": Task(2, 5),
    "squad": Task(0, 4, 32),
}


class Data:
    """A split on the device; batches are cut to their longest row."""

    def __init__(self, arrays: Any, split: str) -> None:
        self.total = arrays[f"{split}_total"].astype(np.int64)
        self.ids = torch.from_numpy(arrays[f"{split}_ids"].astype(np.int32)).to(DEVICE)
        self.first = torch.from_numpy(arrays[f"{split}_first"].astype(np.int64)).to(DEVICE)
        self._totals = torch.from_numpy(self.total).to(DEVICE)
        self.labels = torch.from_numpy(arrays[f"{split}_labels"].astype(np.int64)).to(DEVICE)

    def __len__(self) -> int:
        return len(self.total)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns ids, types, mask [b, length] and labels."""
        length = min(self.ids.shape[1], -(-int(self.total[rows].max()) // 8) * 8)
        at = torch.from_numpy(rows).to(DEVICE)
        places = torch.arange(length, device=DEVICE)
        real = places < self._totals[at][:, None]
        types = ((places >= self.first[at][:, None]) & real).long()
        return self.ids[at, :length].long(), types, real, self.labels[at]


class Model:
    """An encoder with the head of a task: pooler and classifier, or start and end of the answer."""

    def __init__(self, parameters: dict[str, Tensor], heads: int, classes: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        width = parameters["embeddings.LayerNorm.weight"].shape[0]
        own = {n: t for n, t in parameters.items() if n.startswith(("classifier.", "qa_outputs."))}
        if not own:
            name = "classifier" if classes else "qa_outputs"
            weight = torch.randn(classes or 2, width, generator=generator) * 0.02
            own = {f"{name}.weight": weight.to(DEVICE), f"{name}.bias": torch.zeros(classes or 2, device=DEVICE)}
        pooler = {n: t for n, t in parameters.items() if n.startswith("pooler.")} if classes else {}
        self.head = {n: t.clone() for n, t in (own | pooler).items()}
        names = ("embeddings.", "encoder.")
        self.encoder = Encoder({n: t.clone() for n, t in parameters.items() if n.startswith(names)}, heads)
        self.trained = [*self.encoder.trained(), *self.head.values()]

    def __call__(self, ids: Tensor, types: Tensor, real: Tensor, drop: float = 0.0) -> tuple[list[Tensor], Tensor]:
        """Returns the hidden states of all layers, and logits [b, classes] or [b, 2, length]."""
        with torch.no_grad():
            x = embed(self.encoder.parameters, ids, types)
        x = F.dropout(x, drop, drop > 0).to(DTYPE)
        length = ids.shape[1]
        states = encode(FUNCTIONS, self.encoder, x, length, real[:, None, None], drop)
        last = states[-1].view(len(ids), length, -1)
        if "qa_outputs.weight" in self.head:
            logits = F.linear(last.float(), self.head["qa_outputs.weight"], self.head["qa_outputs.bias"])
            return states, logits.transpose(1, 2).masked_fill(~real[:, None], -1e4)
        pooled = torch.tanh(
            F.linear(last[:, 0].float(), self.head["pooler.dense.weight"], self.head["pooler.dense.bias"])
        )
        pooled = F.dropout(pooled, drop, drop > 0)
        return states, F.linear(pooled, self.head["classifier.weight"], self.head["classifier.bias"])


FUNCTIONS = Compiled(False)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.dim() == 2:
        return F.cross_entropy(logits, labels)
    return (F.cross_entropy(logits[:, 0], labels[:, 0]) + F.cross_entropy(logits[:, 1], labels[:, 1])) / 2


def distance(logits: Tensor, teacher: Tensor) -> Tensor:
    """T^2 KL(teacher || student), mean over the distributions."""
    student, target = (F.log_softmax(x.flatten(0, -2) / TEMPERATURE, dim=-1) for x in (logits, teacher))
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * TEMPERATURE**2


def fit(
    model: Model, task: Task, data: Data, seed: int, masks: list[Tensor], teacher: Model | None, hidden: float
) -> float:
    """Trains a model in place; returns the seconds. `masks` belong to the encoder's matrices; empty: dense."""
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    rate = task.student_rate if teacher else task.teacher_rate
    for parameter in model.trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.trained, rate, weight_decay=0.01, fused=DEVICE == "cuda")
    weights = list(model.encoder.matrices().values()) if masks else []
    per_epoch = len(data) // task.batch
    steps, started = task.epochs * per_epoch, time.perf_counter()
    order = np.concatenate([grouped(data.total, task.batch, generator) for _ in range(task.epochs)])
    for step in range(steps):
        scale = min(1.0, (step + 1) / max(1, steps // 10)) * (1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        ids, types, real, labels = data.batch(order[step])
        states, logits = model(ids, types, real, 0.0 if teacher else DROPOUT)
        if teacher is None:
            loss = label_loss(logits, labels)
        else:
            with torch.no_grad():
                targets, teacher_logits = teacher(ids, types, real)
            loss = distance(logits, teacher_logits)
            if hidden:
                column = real.reshape(-1, 1).float()
                layers = [square_head(s, t, column) for s, t in zip(states, targets, strict=True)]
                loss = loss + hidden * sum(layers) / len(layers)
        loss.backward()
        if weights:
            torch._foreach_mul_([w.grad for w in weights], masks)
        torch.nn.utils.clip_grad_norm_(model.trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if weights:
            with torch.no_grad():
                torch._foreach_mul_(weights, masks)
    for parameter in model.trained:
        parameter.requires_grad_(False)
    return time.perf_counter() - started


def grouped(total: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Rows of an epoch in batches of similar length, in random order: [batches, size]."""
    order = generator.permutation(len(total))
    chunks = [order[i : i + 50 * size] for i in range(0, len(order), 50 * size)]
    order = np.concatenate([chunk[np.argsort(total[chunk], kind="stable")] for chunk in chunks])
    batches = order[: len(order) // size * size].reshape(-1, size)
    return batches[generator.permutation(len(batches))]


@torch.no_grad()
def score(model: Model, data: Data, size: int = 256) -> dict[str, Any]:
    """Returns accuracy and F1 of class 1 on a split; for questions score, start and end of each window's best span."""
    order = np.argsort(data.total, kind="stable")
    found: dict[int, Any] = {}
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        ids, types, real, _ = data.batch(rows)
        logits = model(ids, types, real)[1]
        if logits.dim() == 2:
            values = logits.argmax(1).cpu().tolist()
        else:
            context = (types == 1) & real
            context &= torch.roll(context, -1, 1)  # not the last [SEP]
            values = [spans(*pair) for pair in zip(logits.cpu().numpy(), context.cpu().numpy(), strict=True)]
        found |= dict(zip(rows.tolist(), values, strict=True))
    predicted = [found[i] for i in range(len(order))]
    if data.labels.dim() == 2:
        return {"spans": predicted}
    truth, guess = data.labels.cpu().numpy(), np.array(predicted)
    true = int(((guess == 1) & (truth == 1)).sum())
    f1 = 2 * true / max(1, int((guess == 1).sum() + (truth == 1).sum()))
    return {"accuracy": float((guess == truth).mean()), "f1": f1}


def spans(logits: np.ndarray, context: np.ndarray) -> tuple[float, int, int]:
    """Score, first and last token of the best span of the best starts and ends within the context."""
    rows = np.where(context, logits.astype(np.float32), -np.inf)
    starts, ends = (np.argsort(-row, kind="stable")[:_BEST] for row in rows)
    sums = rows[0][starts][:, None] + rows[1][ends][None]
    lengths = ends[None] - starts[:, None] + 1
    sums = np.where((lengths >= 1) & (lengths <= _LONGEST_ANSWER), sums, -np.inf)
    a, b = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(max(sums[a, b], -1e9)), int(starts[a]), int(ends[b])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--until", type=float, required=True, help="Unix time after which no transfer begins")
    parser.add_argument("--rows", type=int, help="of the train split; default: all")
    parser.add_argument("--settings", type=int, default=len(SETTINGS))
    options = parser.parse_args()
    task = TASKS[options.task]
    loaded = np.load(options.model / f"{options.task}.npz")
    train, dev = Data(loaded, "train"), Data(loaded, "dev")
    if options.rows:
        train.total = train.total[: options.rows]
    heads = json.loads((options.model / "config.json").read_text())["num_attention_heads"]
    dense = {n: t.float().to(DEVICE) for n, t in load_file(options.model / "dense.safetensors").items()}

    def record(name: str, setting: str, seed: int, seconds: float, found: dict[str, Any]) -> None:
        row = {"task": options.task, "model": name, "setting": setting, "seed": seed, "seconds": seconds} | found
        print({k: v for k, v in row.items() if k != "spans"}, flush=True)
        with (options.out / f"transfer-{options.task}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    teacher = Model(dense, heads, task.classes, 0)
    seconds = fit(teacher, task, train, 0, [], None, 0.0)
    record("dense", "labels", 0, seconds, score(teacher, dev))
    write_kept(options.out / f"{options.task}-dense.safetensors", arrays(trained_of(teacher)), {}, {})
    done: set[tuple[str, int]] = set()
    while True:
        ready = [p.stem for p in sorted(options.out.glob("*x1*.safetensors"), key=lambda p: p.stat().st_mtime)]
        ready = [name for name in ready if not name.startswith(tuple(TASKS))]
        left = [(name, n) for n in range(options.settings) for name in ready if (name, n) not in done]
        if not left:
            if time.time() + 5 > options.until or (options.out / "students.done").exists():
                return
            time.sleep(0.5)
            continue
        name, number = left[0]
        setting, hidden, seed = SETTINGS[number]
        if time.time() + 1.1 * seconds > options.until:
            return
        parameters, masks = read_kept(options.out / f"{name}.safetensors")
        own = dense | {n: torch.from_numpy(t).to(DEVICE) for n, t in parameters.items()}
        model = Model(own, heads, task.classes, seed)
        kept = [torch.from_numpy(masks[n]).float().to(DEVICE) for n in model.encoder.matrices()]
        spent = fit(model, task, train, seed, kept, teacher, hidden)
        seconds = max(seconds, spent)
        record(name, setting, seed, spent, score(model, dev))
        done.add((name, number))
        if number == 0:
            partial = options.out / f"{options.task}-{name}.partial"
            write_kept(partial, arrays(trained_of(model)), masks, {"setting": setting, "seed": seed})
            partial.rename(options.out / f"{options.task}-{name}.safetensors")


def trained_of(model: Model) -> dict[str, Tensor]:
    layers = {n: t for n, t in model.encoder.parameters.items() if n.startswith("encoder.")}
    return layers | model.head


if __name__ == "__main__":
    main()
