"""A corpus of several sources: shares in tokens, shapes as the tokenizer makes them, no text of a dev split."""

import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import GOOD, sentence
from tests.helpers.mix import PLANTED, corpus_of
from toolkit.core.artifacts import Context, NullProgress
from toolkit.data.corpus import load_corpus
from toolkit.data.corpus.segment_pairs import sentences
from toolkit.data.corpus.sequences import draw, epoch_items, in_proportion
from toolkit.data.question_answering import windows_of
from toolkit.data.sampler import turns
from toolkit.data.task_kinds import EXAMPLES
from toolkit.data.task_rows import read_task
from toolkit.models.load import load_masked_lm, load_tokenizer
from toolkit.models.mlm_heads import mlm_head
from toolkit.recipe import Corpus, Train
from toolkit.training.datasets import mlm_data
from toolkit.training.distillation import MlmLoss, Teacher
from toolkit.training.evaluation import mlm_metrics
from toolkit.training.loop import fit, seed_everything


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return load_tokenizer(tiny_bert)


def data_of(mix, tasks, tokenizer, folder, steps=200, seed=3, **train):
    text = load_corpus(mix, tasks, tokenizer, folder)
    section = Train.model_validate({"steps": steps, "batch_size": 4} | train)
    return text, mlm_data(text.train, tokenizer, mix, "masked", section, seed)


def ids_in(sequences) -> list[list[int]]:
    return [sequences.example(n)["input_ids"].tolist() for n in range(len(sequences))]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_each_source_has_its_share_of_the_tokens_and_batches_are_about_equal(
    mix, tasks, tokenizer, tmp_path, accumulation
):
    _, data = data_of(mix, tasks, tokenizer, tmp_path, steps=400, gradient_accumulation_steps=accumulation)
    seen = list(data.by_source().values())
    assert [part["share_seen"] for part in seen] == pytest.approx([0.5, 0.2, 0.1, 0.2], abs=0.02)
    assert sum(part["tokens_seen"] for part in seen) == data.tokens_seen()
    counted = np.zeros(4)
    for k in range(0, len(data.stream), 4):
        batch = data.collate([data.stream[n] for n in range(k, k + 4)])
        tokens = int(batch["attention_mask"].sum())
        counted[data.stream._source[k // 4]] += tokens
        assert 0.6 < tokens / (4 * 48) < 1.4
    assert counted.tolist() == [part["tokens_seen"] for part in seen]


def test_a_source_shorter_than_its_share_is_repeated_and_the_run_says_how_often(mix, tasks, tokenizer, tmp_path):
    text, data = data_of(mix, tasks, tokenizer, tmp_path, steps=400)
    lines = data.passes()
    assert [line.rpartition(":")[0] for line in lines] == [
        "text.txt",
        "text.txt (sentences)",
        "one (texts)",
        "pair (pairs)",
    ]
    for part, line, found in zip(text.train.parts, lines, list(data.by_source().values()), strict=True):
        assert found["passes"] == pytest.approx(found["tokens_seen"] / part.tokens, rel=0.02)
        assert line.endswith(f": {found['passes']:.1f} passes")
    assert list(data.by_source())[3] == "corpus source 3: pair (pairs)"
    assert text.summary()["train_tokens"] == sum(source["train_tokens"] for source in data.by_source().values())


def test_an_item_is_a_function_of_seed_and_position(mix, tasks, tokenizer, tmp_path):
    _, long = data_of(mix, tasks, tokenizer, tmp_path)
    _, short = data_of(mix, tasks, tokenizer, tmp_path, steps=120)
    _, other = data_of(mix, tasks, tokenizer, tmp_path, seed=4)

    def same(one, two):
        a, b = one["examples"], two["examples"]
        return len(a) == len(b) and all(np.array_equal(x["labels"], y["labels"]) for x, y in zip(a, b, strict=True))

    for k in (400, 3, 399, 17, 0):  # in any order, and whatever the length of the run
        assert same(long.stream[k], short.stream[k])
    assert not all(same(long.stream[k], other.stream[k]) for k in range(20))


def test_a_batch_is_the_same_however_many_processes_share_it(mix, tasks, tokenizer, tmp_path):
    _, data = data_of(mix, tasks, tokenizer, tmp_path, steps=30)
    shares = [data.stream.shard(rank, 2) for rank in range(2)]
    for batch in range(30):
        found = [shares[k % 2][batch * 2 + k // 2]["examples"] for k in range(4)]
        wanted = [data.stream[batch * 4 + k]["examples"] for k in range(4)]
        for one, same in zip(found, wanted, strict=True):
            assert [e["input_ids"].tolist() for e in one] == [e["input_ids"].tolist() for e in same]


def test_every_example_of_a_source_is_seen_once_in_a_pass(mix, tasks, tokenizer, tmp_path):
    text, data = data_of(mix, tasks, tokenizer, tmp_path, steps=400)
    counts = np.bincount(
        np.concatenate([data.stream.step_indices(step) for step in range(400)]), minlength=len(text.train)
    )
    for part, passes, start in zip(text.train.parts, data.stream.passes(), text.train.starts, strict=False):
        own = counts[start : start + len(part)]
        assert own.min() >= int(passes) - 1
        assert own.max() <= int(passes) + 2


def test_the_counts_of_a_step_are_those_of_its_batches(mix, tasks, tokenizer, tmp_path):
    _, data = data_of(mix, tasks, tokenizer, tmp_path, steps=10, gradient_accumulation_steps=3)
    for step in range(10):
        batches = [data.collate([data.stream[k + n] for n in range(4)]) for k in range(step * 12, step * 12 + 12, 4)]
        assert {batch["items"] for batch in batches} == {float(sum((b["labels"] != -100).sum() for b in batches))}
        assert {batch["examples"] for batch in batches} == {float(sum(len(b["input_ids"]) for b in batches))}


def test_turns_keep_the_rates_at_every_point():
    rates = np.array([0.7, 0.05, 0.25])
    sources, numbers = turns(rates, 1000)
    for count in (1, 10, 100, 1000):
        assert np.abs(np.bincount(sources[:count], minlength=3) - rates * count).max() <= 1.5
    for source in range(3):
        assert numbers[sources == source].tolist() == list(range(int((sources == source).sum())))
    assert turns(rates, 50)[0].tolist() == sources[:50].tolist()


def test_sentences_and_texts_are_encoded_as_the_tokenizer_does(tiny_text, tasks, tokenizer, tmp_path):
    mix = corpus_of(
        {"files": [str(tiny_text)], "shape": "sentences", "max_seq_length": 12},
        {"tasks": ["one", "pair"], "shape": "texts", "max_seq_length": 16},
    )
    text = load_corpus(mix, tasks, tokenizer, tmp_path)
    lines = [line for line in tiny_text.read_text().splitlines() if line]
    wanted = tokenizer([s for line in lines for s in sentences(line)], truncation=True, max_length=12)["input_ids"]
    assert sorted(ids_in(text.train.parts[0]) + ids_in(text.valid.parts[0])) == sorted(wanted)
    rows = [row for name in ("one", "pair") for row in read_task(name, tasks[name]).train]
    wanted = tokenizer([t for row in rows for t in row.texts], truncation=True, max_length=16)["input_ids"]
    assert sorted(ids_in(text.train.parts[1]) + ids_in(text.valid.parts[1])) == sorted(wanted)


def test_pairs_are_encoded_as_the_tokenizer_does_with_token_types(tasks, tokenizer, tmp_path):
    mix = corpus_of({"tasks": ["pair", "one"], "shape": "pairs", "max_seq_length": 16})
    text = load_corpus(mix, tasks, tokenizer, tmp_path)
    wanted = []
    for name in ("pair", "one"):
        columns = zip(*(row.texts for row in read_task(name, tasks[name]).train), strict=True)
        encoded = tokenizer(*map(list, columns), truncation=True, max_length=16)
        wanted += list(zip(encoded["input_ids"], encoded["token_type_ids"], strict=True))
    parts = (text.train, text.valid)
    examples = [split.example(n) for split in parts for n in range(len(split))]
    found = [(e["input_ids"].tolist(), e["token_type_ids"].tolist()) for e in examples]
    assert sorted(found) == sorted(wanted)
    assert {tuple(sorted(e)) for e in examples} == {("input_ids", "token_type_ids")}
    pair = [
        ids.tolist().count(tokenizer.sep_token_id) == 2
        for ids in map(text.train.parts[0].__getitem__, range(len(text.train)))
    ]
    assert set(pair) == {True, False}
    assert text.train.specials.tolist() == [3 if two else 2 for two in pair]


def test_pairs_of_question_answering_are_the_windows_of_the_task(tasks, tokenizer, tmp_path):
    task = tasks["qa"]
    mix = corpus_of({"tasks": ["qa"], "shape": "pairs", "max_seq_length": 60})
    text = load_corpus(mix, tasks, tokenizer, tmp_path)
    rows = read_task("qa", task).train
    windows = windows_of(EXAMPLES[task.kind].targets(rows, ()), tokenizer, 60, task.windows)
    assert len(windows) > len(rows)
    assert sorted(ids_in(text.train) + ids_in(text.valid)) == sorted(windows.inputs["input_ids"])


def test_packed_windows_are_full(tiny_text, tokenizer, tmp_path):
    text = load_corpus(corpus_of({"files": [str(tiny_text)], "max_seq_length": 24}), {}, tokenizer, tmp_path)
    plain = load_corpus(Corpus(files=(str(tiny_text),), max_seq_length=24), {}, tokenizer, tmp_path)
    assert ids_in(text.train) == ids_in(plain.train)
    assert set(text.train.lengths[:-1]) == {24}


def test_no_text_of_a_dev_or_tune_split_is_read(tasks, tokenizer, tmp_path):
    """`zebra` is spelt in letters, and no other word of these texts has a z."""
    mix = corpus_of(
        *({"tasks": ["pair", "one"], "shape": shape} for shape in ("packed", "sentences", "texts", "pairs"))
    )
    text = load_corpus(mix, tasks, tokenizer, tmp_path)
    z = tokenizer.convert_tokens_to_ids("z")
    assert z in tokenizer(PLANTED)["input_ids"]
    for split in (text.train, text.valid):
        assert not any((part.ids == z).any() for part in split.parts)
    assert len(text.train) > 1000


def test_no_document_is_in_the_train_split_of_one_source_and_the_validation_split_of_another(
    tiny_text, tasks, tokenizer, tmp_path
):
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"{sentence(random.Random(n), GOOD)} {n}" for n in range(100, 150)))
    mix = corpus_of(
        {"files": [str(other), str(tiny_text)], "shape": "texts"},
        {"files": [str(tiny_text)], "shape": "texts", "max_seq_length": 64},
        {"tasks": ["qa", "one"], "shape": "texts"},
        {"tasks": ["one", "qa"], "shape": "texts", "max_seq_length": 120},
    )
    text = load_corpus(mix, tasks, tokenizer, tmp_path / "cache")

    def beginnings(split):
        return {tuple(ids[1:40]) for part in split.parts for ids in ids_in(part)}

    train, valid = beginnings(text.train), beginnings(text.valid)
    assert train
    assert valid
    assert not train & valid


def test_validation_and_draws_have_the_shares_of_the_sources(mix, tasks, tokenizer, tmp_path, tiny_bert):
    text = load_corpus(mix, tasks, tokenizer, tmp_path)
    for count in (60, 200):
        drawn = draw(text.train, count, seed=1)
        assert 0.9 * count <= len(drawn) <= count
        ranges = in_proportion(text.train, count)
        assert len(drawn) == sum(map(len, ranges))
        bounds = np.cumsum([0, *map(len, ranges)])
        tokens = [sum(len(e["input_ids"]) for e in drawn[a:b]) for a, b in itertools.pairwise(bounds)]
        assert np.array(tokens) / sum(tokens) == pytest.approx([0.5, 0.2, 0.1, 0.2], abs=0.06)
    again = draw(text.train, 60, seed=1)
    assert all(
        np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(draw(text.train, 60, 1), again, strict=True)
    )
    model = load_masked_lm(tiny_bert)
    assert mlm_metrics(model, MlmLoss(mlm_head), text.valid, tokenizer, 0.15)["mlm_loss"] > 0
    plain = load_corpus(Corpus(tasks=("one",), pack=False), tasks, tokenizer, tmp_path)
    assert len(draw(plain.train, 10, seed=0)) == 10


def test_an_epoch_has_the_tokens_of_all_sources(mix, tasks, tokenizer, tmp_path):
    text, data = data_of(mix, tasks, tokenizer, tmp_path, steps=None, epoch=2)
    assert epoch_items(text.train) == -(-text.train.tokens // 48)
    assert data.tokens_seen() == pytest.approx(2 * text.train.tokens, rel=0.05)


class Killed(BaseException):
    """What no code catches, as SIGKILL."""


def test_training_on_a_mix_resumes_with_the_same_weights(mix, tasks, tokenizer, tmp_path, tiny_bert):
    class KilledAt(NullProgress):
        def __init__(self, last):
            self.last = last

        def update(self, step, **_):
            if step == self.last:
                raise Killed

    def train(folder, last=99):
        seed_everything(0)
        model = load_masked_lm(tiny_bert)
        section = Train(steps=10, batch_size=2, gradient_accumulation_steps=2, log_every=1, checkpoint_every=4)
        text = load_corpus(mix, tasks, tokenizer, tmp_path / "cache")
        data = mlm_data(text.train, tokenizer, mix, "all", section, seed=3)
        context = Context(tmp_path / folder, tmp_path / folder / "work", 0, progress=KilledAt(last))
        fitted = fit(model, data, section, MlmLoss(mlm_head, Teacher(load_masked_lm(tiny_bert))), context)
        return SimpleNamespace(weights=model.state_dict(), fitted=fitted)

    through = train("through")
    with pytest.raises(Killed):
        train("killed", last=6)
    resumed = train("killed")
    assert resumed.fitted.history == through.fitted.history
    for name, weight in through.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name
