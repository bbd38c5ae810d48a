"""The GPU scripts' own encoder and batches, on a CPU."""

import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel

from toolkit.core import paths

GPU = paths.REPOSITORY / "benchmarks" / "gpu"
NAMES = ("encoder", "text", "distillation", "student", "transfer")


@pytest.fixture
def scripts(monkeypatch):
    """The modules of benchmarks/gpu, imported as its scripts import them, and forgotten afterwards."""
    monkeypatch.syspath_prepend(str(GPU))
    monkeypatch.syspath_prepend(str(paths.REPOSITORY))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    __import__("transfer")
    yield {name: sys.modules[name] for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def words(scripts, tmp_path):
    """40 sentences of 1 to 40 tokens, and the files of tasks whose texts are added to them."""
    lengths = np.arange(1, 41, dtype=np.uint8)
    ids = np.arange(1000, 1000 + int(lengths.sum()), dtype=np.uint16)
    one, two = [101, 7, 8, 9, 102], [101, 7, 8, 9, 102, 5, 6, 102]
    for name, row in (("sst2", one), ("mnli", two), ("qqp", two)):
        rows = np.zeros((30, 64), np.uint16)
        rows[:, : len(row)] = row
        sizes = {"train_ids": rows, "train_total": np.full(30, len(row)), "train_first": np.full(30, 5)}
        np.savez(tmp_path / f"{name}.npz", **sizes)
    return scripts["text"].Text(ids, lengths, tmp_path, "cpu", 1024)


def test_the_encoder_is_that_of_transformers(scripts, tiny_bert):
    encoder = scripts["encoder"]
    reference = AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False).eval()
    model = encoder.Encoder({n: p.detach() for n, p in reference.named_parameters()}, heads=2)
    ids = torch.randint(5, 40, (3, 16), generator=torch.Generator().manual_seed(0))
    types, real = (torch.arange(16) >= 7).long().expand(3, 16), torch.arange(16) < torch.tensor([[16], [9], [12]])
    x = encoder.embed(model.parameters, ids, types)
    states = encoder.encode(encoder.Compiled(False), model, x, 16, real[:, None, None])
    with torch.no_grad():
        expected = reference(ids, real.long(), types, output_hidden_states=True).hidden_states
    for found, wanted in zip([x, *states], expected, strict=True):
        torch.testing.assert_close(found.view(3, 16, -1)[real], wanted[real], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["packed", "sentences", "tasks", "long"])
def test_batches_have_their_tokens_and_whole_sequences(scripts, words, kind):
    batch = words.batch(kind, torch.Generator().manual_seed(0))
    assert batch.ids.numel() == 1024
    assert batch.length == scripts["text"].LENGTHS[kind]
    real = batch.real().view_as(batch.ids).bool()
    assert (batch.ids[:, 0] == 101).all()
    assert not batch.ids[~real].any()
    assert not batch.types[~real].any()
    last = batch.ids.gather(1, real.sum(1, keepdim=True) - 1)
    assert (last == 102).all()
    separators = (batch.ids == 102).sum(1)
    segments = batch.types.max(1).values + 1
    assert torch.equal(separators, segments), "each segment ends with [SEP]"
    assert (batch.types.diff(dim=1)[real[:, 1:]] >= 0).all()


def test_sentences_are_whole_or_cut_at_the_end(words):
    batch = words.batch("sentences", torch.Generator().manual_seed(1))
    starts = {1000 + n * (n + 1) // 2: n + 1 for n in range(40)}  # first token -> length of the sentence
    seen = 0
    for row, mask in zip(batch.ids, batch.real().view_as(batch.ids).bool(), strict=True):
        inside = row[mask][1:-1].tolist()
        if inside == [7, 8, 9]:  # a task's text
            continue
        assert inside == list(range(inside[0], inside[0] + min(30, starts[inside[0]])))
        seen += 1
    assert seen >= 5


def test_the_best_span_is_within_the_context(scripts):
    logits = np.zeros((2, 8), np.float32)
    logits[0, [1, 4]], logits[1, [2, 6]] = (9, 3), (9, 4)
    context = np.array([0, 0, 0, 1, 1, 1, 1, 0], bool)
    assert scripts["transfer"].spans(logits, context) == (7.0, 4, 6)
