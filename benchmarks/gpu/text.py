"""Batches of prepared text, cut on the GPU: every batch has the same number of tokens, padding included."""

import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CLS, SEP = 101, 102
PAIRS = ("mnli", "qqp")  # tasks whose train texts are batches of their own; no labels are read
SENTENCES, COPIES = ("sst2",), 3  # tasks whose train texts are among the sentences, and how often

# Kind of batch -> length of its sequences.
LENGTHS = {"packed": 128, "sentences": 32, "tasks": 64, "long": 256}
CYCLE = ("packed", "sentences", "packed", "tasks", "sentences", "packed", "long", "sentences")


@dataclass(frozen=True)
class Batch:
    """Sequences. `mask`: bool [b, 1, 1, length], True at real tokens; None: all are real."""

    ids: Tensor
    types: Tensor
    mask: Tensor | None

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def real(self) -> Tensor:
        """1 at real tokens, else 0: float32 [tokens, 1]."""
        if self.mask is None:
            return torch.ones(self.ids.numel(), 1, device=self.ids.device)
        return self.mask.reshape(-1, 1).float()


class Text:
    """Text and the tasks' train texts on a device, without labels.

    Args:
        ids: Tokens of all sentences, in order, [n].
        lengths: Tokens of each sentence.
        tasks: Folder of the tasks' files; None: batches of kind `tasks` contain sentences.
        device: Where batches are cut.
        tokens: Tokens of a batch, padding included.
    """

    def __init__(self, ids: np.ndarray, lengths: np.ndarray, tasks: Path | None, device: str, tokens: int) -> None:
        self.tokens = tokens
        if tasks is not None:
            for found in COPIES * [np.load(tasks / f"{name}.npz") for name in SENTENCES]:
                counts = found["train_total"].astype(np.int64) - 2  # without [CLS] and [SEP]
                places = np.arange(found["train_ids"].shape[1])
                ids = np.concatenate([ids, found["train_ids"][(places >= 1) & (places <= counts[:, None])]])
                lengths = np.concatenate([lengths, counts])
        self._ids = torch.from_numpy(ids.astype(np.int32)).to(device)
        self._lengths = torch.from_numpy(lengths.astype(np.int64)).to(device)
        self._starts = self._lengths.cumsum(0) - self._lengths
        self._rows = self._totals = self._firsts = None
        if tasks is not None:
            found = [np.load(tasks / f"{name}.npz") for name in PAIRS]
            width = LENGTHS["tasks"]
            rows = np.concatenate([_padded(f["train_ids"], width) for f in found])
            totals = np.concatenate([f["train_total"] for f in found]).astype(np.int64)
            firsts = np.concatenate([f["train_first"] for f in found]).astype(np.int64)
            fits = totals <= width
            self._rows = torch.from_numpy(rows[fits].astype(np.int32)).to(device)
            self._totals, self._firsts = (torch.from_numpy(x[fits]).to(device) for x in (totals, firsts))

    def batch(self, kind: str, generator: torch.Generator) -> Batch:
        """Returns a random batch of a kind."""
        length = LENGTHS[kind]
        count = self.tokens // length
        if kind == "sentences":
            return self._sentences(count, length, generator)
        if kind == "tasks" and self._rows is not None:
            return self._tasks(count, length, generator)
        return self._packed(count, length, generator)

    def _draw(self, high: int, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(high, (count,), generator=generator, device=self._ids.device)

    def _packed(self, count: int, length: int, generator: torch.Generator) -> Batch:
        """Text cut anywhere; every second sequence is a pair of segments, separated anywhere in its middle half."""
        places = torch.arange(length, device=self._ids.device)
        ids = self._ids[self._draw(len(self._ids) - length, count, generator)[:, None] + places].long()
        border = length // 4 + self._draw(length // 2, count, generator)
        border[::2] = length - 1
        ids[:, 0] = CLS
        ids.scatter_(1, border[:, None], SEP)
        ids[:, -1] = SEP
        return Batch(ids, (places > border[:, None]).long(), None)

    def _sentences(self, count: int, length: int, generator: torch.Generator) -> Batch:
        places = torch.arange(length, device=self._ids.device)
        chosen = self._draw(len(self._starts) - length, count, generator)  # the last ones: reading beyond the end
        total = self._lengths[chosen].clamp(max=length - 2)[:, None]
        ids = self._ids[self._starts[chosen][:, None] + (places - 1).clamp(min=0)].long()
        ids[:, 0] = CLS
        ids = torch.where(places == total + 1, SEP, ids) * (places <= total + 1)
        return Batch(ids, torch.zeros_like(ids), (places <= total + 1)[:, None, None])

    def _tasks(self, count: int, length: int, generator: torch.Generator) -> Batch:
        assert self._rows is not None
        assert self._totals is not None
        assert self._firsts is not None
        places = torch.arange(length, device=self._ids.device)
        chosen = self._draw(len(self._rows), count, generator)
        real = places < self._totals[chosen][:, None]
        types = ((places >= self._firsts[chosen][:, None]) & real).long()
        return Batch(self._rows[chosen].long(), types, real[:, None, None])


def _padded(rows: np.ndarray, width: int) -> np.ndarray:
    return np.pad(rows, ((0, 0), (0, max(0, width - rows.shape[1]))))[:, :width]


def write_text(path: Path, ids: np.ndarray, lengths: np.ndarray) -> None:
    """Writes the tokens of all sentences (uint16), and the tokens of each sentence (uint8), compressed."""
    header = np.array([len(ids), len(lengths)], np.int64).tobytes()
    path.write_bytes(lzma.compress(header + ids.tobytes() + lengths.tobytes(), preset=2))


def read_text(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens and the lengths of a file that `write_text` wrote."""
    data = lzma.decompress(path.read_bytes())
    tokens, sentences = np.frombuffer(data, np.int64, 2)
    ids = np.frombuffer(data, np.uint16, int(tokens), 16)
    return ids, np.frombuffer(data, np.uint8, int(sentences), 16 + 2 * int(tokens))
