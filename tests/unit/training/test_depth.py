"""The greedy choice of layers against the search written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

from toolkit.data.corpus.sequences import MixedSequences, Sequences
from toolkit.models.load import load_masked_lm
from toolkit.training.depth import choose_layers


@pytest.fixture
def model(tiny_bert):
    """The tiny BERT with four layers, of which number 1 hardly changes its input."""
    source = load_masked_lm(tiny_bert)
    torch.manual_seed(3)
    source.config.num_hidden_layers = 4
    made = type(source)(source.config).eval()
    with torch.no_grad():
        for name in ("attention.output.dense", "output.dense"):
            for parameter in made.bert.encoder.layer[1].get_submodule(name).parameters():
                parameter *= 0.01
        for number, layer in enumerate(made.bert.encoder.layer):
            layer.output.dense.weight *= 1 if number == 1 else 10 * (1 + number)
    return made


@pytest.fixture
def text():
    random = np.random.default_rng(0)
    lengths = random.integers(5, 20, 60)
    return Sequences(random.integers(5, 300, lengths.sum()).astype(np.uint16), np.cumsum(lengths))


def last_state(model, layers, ids):
    states = model.bert.embeddings(input_ids=ids)
    for number in layers:
        found = model.bert.encoder.layer[number](states)
        states = found if isinstance(found, torch.Tensor) else found[0]
    return states


def test_modernbert_keeps_its_first_layer_and_both_kinds_of_attention(text):
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    made = ModernBertForMaskedLM(ModernBertConfig(vocab_size=320, pad_token_id=0, initializer_range=0.2, **sizes))
    with torch.no_grad():
        for number in (0, 1, 2):  # the least needed layers; 1 and 2 are those that attend to a window
            for name in ("attn.Wo", "mlp.Wo"):
                made.model.layers[number].get_submodule(name).weight *= 0.01
    assert choose_layers(made, 2, text, 0) in ((0, 1), (0, 2))


@torch.no_grad()
def test_each_round_removes_the_layer_that_the_last_state_needs_least(model, text):
    kept, messages = list(range(4)), []
    while len(kept) > 2:
        distances = {}
        for number in kept:
            total = 0.0
            for index in range(len(text)):
                ids = torch.from_numpy(text[index])[None]
                whole, cut = (last_state(model, part, ids) for part in (range(4), [k for k in kept if k != number]))
                total += float((whole - cut).square().sum() / whole.square().sum())
            distances[number] = total
        kept.remove(min(kept, key=distances.__getitem__))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert choose_layers(model, 2, text, 0, messages.append) == tuple(kept)
    assert messages[0].startswith("layer 1 removed")
    assert len(messages) == 2
    assert len(model.bert.encoder.layer) == 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sources_of_a_mix_calibrate_together_though_only_pairs_have_token_types(model, text):
    paired = replace(text, seconds=text.lengths // 2)
    for parts in ((text, paired), (paired, text)):
        mix = MixedSequences(parts, ("one", "two"), np.array([0.5, 0.5]), 20)
        assert len(choose_layers(model, 3, mix, 0)) == 3


def test_all_layers_are_kept_without_a_search(model, text):
    assert choose_layers(model, 4, text, 0) == (0, 1, 2, 3)
