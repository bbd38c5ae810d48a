"""The dense encoder as teacher: loss of a student, its measures on held-out text, and its start by reconstruction.

Loss: for each layer the squared difference of the hidden states divided by the teacher's square (SquareHead; Kurtic et
al., 2023, arXiv 2310.06927), plus squared distance of the pooled embeddings and of their similarities in the batch.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from encoder import Compiled, Encoder, after_attention, after_feed_forward, attend, embed, encode, inner, mean_pooled
from encoder import project as project_now
from safetensors.torch import load_file
from text import Batch, Text, read_text
from torch import Tensor

from toolkit.sparsity.reconstruction import Moments, corrected_target, solve


class Block(NamedTuple):
    """The pattern of blocks of some rows of a column: `toolkit.recipe.Tile`, on a machine without pydantic."""

    rows: int
    columns: int = 1
    zeros: None = None


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIMILARITY_WEIGHT = 10.0


class Distillation:
    """A dense encoder as teacher, its text, and the measures on held-out text."""

    def __init__(self, model: Path, text: Path | None, *, compile: bool, dtype: torch.dtype, tokens: int) -> None:
        stored = load_file(model / "dense.safetensors")
        self.dense = {n: t.float().to(DEVICE) for n, t in stored.items() if n.startswith(("embeddings.", "encoder."))}
        self.heads = json.loads((model / "config.json").read_text())["num_attention_heads"]
        self.dtype, self.functions = dtype, Compiled(compile)
        self.teacher = Encoder({n: t.to(dtype) for n, t in self.dense.items()}, self.heads)
        self.loss_of_layer = torch.compile(square_head, fullgraph=True, dynamic=False) if compile else square_head
        held_out = read_text(model / "valid.xz")
        self.text = Text(*(read_text(text / "train.xz") if text else held_out), model, DEVICE, tokens)
        self._held_out = Text(*held_out, None, DEVICE, tokens)
        self._pairs = np.load(model / "stsb.npz")

    def embeddings(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return embed(self.teacher.parameters, batch.ids, batch.types)

    def states(self, model: Encoder, x: Tensor, batch: Batch) -> list[Tensor]:
        return encode(self.functions, model, x, batch.length, batch.mask)

    def loss(self, student: Encoder, batch: Batch, pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Returns the loss, and the part of the layers (summed over them)."""
        x = self.embeddings(batch)
        with torch.no_grad():
            targets = self.states(self.teacher, x, batch)
            target = mean_pooled(targets[-1], batch.length, batch.mask)
        states = self.states(student, x, batch)
        real = batch.real()
        layers = sum(
            (self.loss_of_layer(states[i], targets[j], real) for i, j in pairs), torch.zeros((), device=DEVICE)
        )
        pooled = mean_pooled(states[-1], batch.length, batch.mask)
        distance = (pooled - target).square().sum(1).mean()
        similarity = (pooled @ pooled.T - target @ target.T).square().mean()
        return layers + distance + SIMILARITY_WEIGHT * similarity, layers.detach()

    @torch.no_grad()
    def measures(self, student: Encoder, pairs: list[tuple[int, int]]) -> dict[str, float]:
        """Returns the layers' loss on held-out text, the cosine of embeddings to the dense ones, and STS-B dev."""
        generator = torch.Generator(DEVICE).manual_seed(0)
        losses, cosines = [], []
        for kind in ("packed", "sentences"):
            batch = self._held_out.batch(kind, generator)
            x = self.embeddings(batch)
            targets, states = self.states(self.teacher, x, batch), self.states(student, x, batch)
            losses.append(float(sum(square_head(states[i], targets[j], batch.real()) for i, j in pairs)))
            pooled = (mean_pooled(s[-1], batch.length, batch.mask) for s in (targets, states))
            cosines.append((next(pooled) * next(pooled)).sum(1))
        found = {"held_out_packed": losses[0], "held_out_sentences": losses[1]}
        found |= {"cosine": float(cosines[1].mean()), "cosine_p1": float(cosines[1].quantile(0.01))}
        return found | {"stsb_dev": self.spearman(student)}

    @torch.no_grad()
    def spearman(self, model: Encoder) -> float:
        """Returns the rank correlation of cosine and score on STS-B's dev split."""
        from scipy.stats import spearmanr

        ids = torch.from_numpy(self._pairs["dev_ids"].astype(np.int64)).to(DEVICE)
        total, first = (
            torch.from_numpy(self._pairs[f"dev_{k}"].astype(np.int64)).to(DEVICE) for k in ("total", "first")
        )
        places = torch.arange(ids.shape[1], device=DEVICE)
        functions, sides = Compiled(False), []
        second = torch.gather(ids, 1, (places + first[:, None] - 1).clamp(max=ids.shape[1] - 1))
        second[:, 0] = ids[:, 0]
        for rows, length in ((ids, first), (second, total - first + 1)):
            mask = places < length[:, None]
            rows, mask = (rows * mask)[:, :64], mask[:, None, None, :64]
            x = embed(self.teacher.parameters, rows, torch.zeros_like(rows))
            sides.append(mean_pooled(encode(functions, model, x, 64, mask)[-1], 64, mask))
        return float(spearmanr((sides[0] * sides[1]).sum(1).cpu(), self._pairs["dev_labels"])[0])


def square_head(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """Squared difference over the real tokens, divided by the teacher's square."""
    student, teacher = student.float(), teacher.float()
    return ((student - teacher).square() * real).sum() / (teacher.square() * real).sum()


@torch.no_grad()
def reconstructed(distillation: Distillation, student: Encoder, sparsity: float, rows: int, batches: int) -> None:
    """Prunes a dense encoder in place, matrix after matrix, each on its inputs in the model as pruned so far.

    Its outputs before any pruning are the target, so that it may have fewer layers than the teacher.
    """
    generator = torch.Generator(DEVICE).manual_seed(1)
    kinds = ("sentences", "tasks", "packed")
    texts = [distillation.text.batch(kinds[i % len(kinds)], generator) for i in range(batches)]
    real = [batch.real().squeeze(1).bool() for batch in texts]
    dense = [distillation.embeddings(batch).float() for batch in texts]
    now = list(dense)
    heads = distillation.heads
    before_pruning = Encoder({n: t.clone() for n, t in student.parameters.items()}, heads)

    def prune(layer: list[Tensor], numbers: tuple[int, ...], before: list[Tensor], after: list[Tensor]) -> None:
        moments = Moments(before[0].shape[1], DEVICE)
        for x, y, keep in zip(before, after, real, strict=True):
            moments.add(x[keep], y[keep])
        for n in numbers:
            dense_mean, mean, cross, second = moments.centred()
            weight, bias = layer[n].float(), layer[n + 1].float()
            blocks = int(sparsity * weight.numel() / rows)
            found, mask = solve("admm", corrected_target(weight, cross, second), second, blocks, Block(rows))
            layer[n + 1].copy_(bias + weight @ dense_mean - found @ mean)
            layer[n].copy_(found)
            assert bool(((layer[n] != 0) <= mask).all())

    for old, new in zip(before_pruning.layers, student.layers, strict=True):
        prune(new, (0, 2, 4), dense, now)
        context = [
            [attend(project_now(x, layer), b.length, b.mask, heads) for x, b in zip(inputs, texts, strict=True)]
            for layer, inputs in ((old, dense), (new, now))
        ]
        prune(new, (6,), *context)
        middle = [[after_attention(c, x, old) for c, x in zip(context[0], dense, strict=True)]]
        middle += [[after_attention(c, x, new) for c, x in zip(context[1], now, strict=True)]]
        prune(new, (10,), *middle)
        active = [[inner(x, layer) for x in inputs] for layer, inputs in ((old, middle[0]), (new, middle[1]))]
        prune(new, (12,), *active)
        dense = [after_feed_forward(a, x, old) for a, x in zip(active[0], middle[0], strict=True)]
        now = [after_feed_forward(a, x, new) for a, x in zip(active[1], middle[1], strict=True)]
