"""Segment pairs: BERT's proportions, nothing from where it should not be, and next-sentence prediction's loss."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.helpers.models import load_classifier
from toolkit.core.errors import UserError
from toolkit.data.corpus import load_corpus
from toolkit.data.corpus.segment_pairs import sentences, write_pairs
from toolkit.models.load import load_masked_lm, load_tokenizer, save_checkpoint
from toolkit.models.mlm_heads import mlm_head, next_sentence_head
from toolkit.recipe import Corpus, KDLossSettings, Train
from toolkit.recipe.corpus import Pairs
from toolkit.training.datasets import mlm_data
from toolkit.training.distillation import MlmLoss, Teacher
from toolkit.training.evaluation import mlm_metrics
from toolkit.training.loop import seed_everything


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return load_tokenizer(tiny_bert)


def section(tiny_text, **values) -> Corpus:
    return Corpus(files=(str(tiny_text),), **({"max_seq_length": 32, "pairs": Pairs()} | values))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Spans of 400 documents of 20 sentences of 5 to 12 tokens: (spans, token -> document, sentence ends)."""
    rng = np.random.default_rng(1)
    ends = np.cumsum(rng.integers(5, 13, 8000))
    documents = np.arange(20, 8001, 20)
    path = tmp_path_factory.mktemp("pairs") / "pairs"
    wanted = Corpus(files=("any",), max_seq_length=64, pairs=Pairs())
    count = write_pairs(path, ends, documents, wanted, seed=3)
    spans = np.fromfile(path, dtype=np.int64).reshape(-1, 5)
    assert len(spans) == count
    owner = np.searchsorted(ends[documents - 1], np.arange(ends[-1]), side="right")
    return spans, owner, ends


def test_half_of_the_second_segments_are_from_another_document_and_the_rest_follow(made):
    spans, owner, _ = made
    assert 0.45 < spans[:, 4].mean() < 0.6  # a last sentence left alone has only elsewhere to go
    for a0, a1, b0, b1, random in spans:
        assert owner[a0] == owner[a1 - 1]
        assert owner[b0] == owner[b1 - 1]
        assert (owner[a0] == owner[b0]) == (not random)
        if not random:
            assert a1 <= b0  # trimmed ends may leave a gap, never an overlap


def test_pairs_fill_the_sequence_but_for_the_short_ones_and_ends_of_documents(made):
    spans, _, _ = made
    lengths = spans[:, 1] - spans[:, 0] + spans[:, 3] - spans[:, 2] + 3
    assert lengths.max() == 64
    assert lengths.min() >= 5
    assert (spans[:, [1, 3]] > spans[:, [0, 2]]).all()
    assert np.mean(lengths == 64) > 0.5


def test_sentences_behind_a_are_not_lost_when_b_is_from_elsewhere(made):
    spans, owner, _ = made
    first = spans[owner[spans[:, 0]] == owner[spans[0, 0]]]  # of one document, in their order
    for (_, a1, _, b1, random), (next_a0, *_) in itertools.pairwise(first):
        assert next_a0 >= (a1 if random else b1)
        assert next_a0 - (a1 if random else b1) < 64  # what was trimmed, no more


def test_short_pairs_are_as_many_as_asked_for(tmp_path):
    ends, documents = np.arange(1, 200_001), np.arange(1000, 200_001, 1000)  # sentences of one token: targets are met

    def share(probability: float) -> float:
        wanted = Corpus(files=("any",), max_seq_length=64, pairs=Pairs(short_sequence_probability=probability))
        write_pairs(tmp_path / "pairs", ends, documents, wanted, seed=0)
        spans = np.fromfile(tmp_path / "pairs", dtype=np.int64).reshape(-1, 5)
        return float(np.mean(spans[:, 1] - spans[:, 0] + spans[:, 3] - spans[:, 2] < 55))

    assert share(0.0) < 0.06  # ends of documents
    assert 0.04 < share(0.1) - share(0.0) < 0.12  # 54 of 60 short targets are below 55
    assert share(1.0) > 0.8


def test_pairs_are_the_same_for_the_same_seed_and_others_for_another(made, tmp_path):
    spans, _, ends = made
    documents = np.arange(20, 8001, 20)
    wanted = Corpus(files=("any",), max_seq_length=64, pairs=Pairs())
    write_pairs(tmp_path / "again", ends, documents, wanted, seed=3)
    write_pairs(tmp_path / "other", ends, documents, wanted, seed=4)
    assert np.array_equal(np.fromfile(tmp_path / "again", dtype=np.int64).reshape(-1, 5), spans)
    assert (tmp_path / "again").read_bytes() != (tmp_path / "other").read_bytes()


def test_a_pair_is_framed_and_its_second_segment_has_type_1(tiny_text, tokenizer, tmp_path):
    data = load_corpus(section(tiny_text), {}, tokenizer, tmp_path)
    example = data.train.example(0)
    ids, types = example["input_ids"], example["token_type_ids"]
    cuts = np.flatnonzero(ids == tokenizer.sep_token_id)
    assert (ids[0], len(cuts), cuts[1]) == (tokenizer.cls_token_id, 2, len(ids) - 1)
    assert types.tolist() == [0] * (cuts[0] + 1) + [1] * (len(ids) - cuts[0] - 1)
    assert data.train.lengths.tolist() == [len(data.train.example(i)["input_ids"]) for i in range(len(data.train))]
    assert data.summary()["train_sequences"] == len(data.train) > 100


def test_splits_of_pairs_share_no_document(tiny_text, tokenizer, tmp_path):
    data = load_corpus(section(tiny_text), {}, tokenizer, tmp_path)
    articles = tiny_text.read_text().strip().split("\n\n")
    plain = [
        i for a in articles[::20] for p in a.split("\n") for i in tokenizer(p, add_special_tokens=False)["input_ids"]
    ]
    assert data.valid.ids.tolist() == plain


def test_limit_is_the_number_of_pairs(tiny_text, tokenizer, tmp_path):
    data = load_corpus(section(tiny_text, limit=40), {}, tokenizer, tmp_path)
    assert len(data.train) == 40
    assert 1 <= len(data.valid) <= 2


def test_one_document_makes_no_pairs(tokenizer, tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("a b c. D e f.\n")
    with pytest.raises(UserError, match="two for training and two for validation"):
        load_corpus(section(path), {}, tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("One is here. Two is there! Is three? Yes.", ["One is here.", "Two is there!", "Is three?", "Yes."]),
        (
            "Mr. Smith met J. R. Jones at 5 p.m. on Monday. He left.",
            ["Mr. Smith met J. R. Jones at 5 p.m. on Monday.", "He left."],
        ),
        (
            'He said "no." Then (in 1990.) it was 3.5 km. (12 men came.)',
            ['He said "no."', "Then (in 1990.) it was 3.5 km.", "(12 men came.)"],
        ),
        ("no end at all", ["no end at all"]),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(paragraph, expected):
    assert sentences(paragraph) == expected


@pytest.fixture
def next_sentence(tiny_bert, tiny_text, tokenizer, tmp_path):
    """Two models with the head, and a batch of masked pairs."""
    seed_everything(1)
    student, teacher = (load_masked_lm(tiny_bert, pairs=True).eval() for _ in range(2))
    with torch.no_grad():  # else they hardly differ, and a distance of nothing tells nothing
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    wanted = section(tiny_text)
    data = load_corpus(wanted, {}, tokenizer, tmp_path)
    stream = mlm_data(data.train, tokenizer, wanted, "masked", Train(steps=1, batch_size=6), seed=3)
    return student, teacher, stream.collate([stream.stream[k] for k in range(6)]), data


def test_loss_of_pairs_is_words_plus_next_sentence_each_with_its_own_distance(next_sentence):
    student, teacher, batch, _ = next_sentence
    settings = KDLossSettings(temperature=3.0, loss_weights=(0.25, 0.75))
    loss = MlmLoss(mlm_head, Teacher(teacher), settings, next_head=next_sentence_head)
    terms = loss(student, batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    ours, theirs = student(**inputs), teacher(**inputs)
    chosen = batch["labels"] != -100
    words = F.cross_entropy(ours.prediction_logits[chosen], batch["labels"][chosen])
    following = F.cross_entropy(ours.seq_relationship_logits, batch["next_sentence_label"])

    def distance(mine, other):
        p, q = F.softmax(other / 3, dim=-1), F.log_softmax(mine / 3, dim=-1)
        return 9 * (p * (p.log() - q)).sum(dim=-1).mean()

    kd = distance(ours.prediction_logits[chosen], theirs.prediction_logits[chosen])
    kd = kd + distance(ours.seq_relationship_logits, theirs.seq_relationship_logits)
    assert terms.task.item() == pytest.approx((words + following).item(), rel=1e-5)
    assert terms.kd.item() == pytest.approx(kd.item(), rel=1e-4)
    assert terms.total.item() == pytest.approx(0.25 * terms.task.item() + 0.75 * terms.kd.item(), rel=1e-6)


def test_held_out_pairs_are_scored_on_both(next_sentence, tokenizer):
    student, _, _, data = next_sentence
    loss = MlmLoss(mlm_head, next_head=next_sentence_head)
    found = mlm_metrics(student, loss, data.valid, tokenizer, 0.15)
    assert found.keys() == {"mlm_loss", "next_sentence_accuracy"}
    assert 0 <= found["next_sentence_accuracy"] <= 1


def test_checkpoint_with_the_head_opens_as_any_task(next_sentence, tokenizer, tmp_path):
    student, _, _, _ = next_sentence
    save_checkpoint(student, tokenizer, tmp_path / "saved")
    again = load_masked_lm(tmp_path / "saved", pairs=True)
    assert torch.equal(again.cls.seq_relationship.weight, student.cls.seq_relationship.weight)
    classifier = load_classifier(tmp_path / "saved", ["a", "b"])
    assert torch.equal(classifier.bert.pooler.dense.weight, student.bert.pooler.dense.weight)


def test_model_without_the_head_is_refused_before_anything_is_read(tmp_path):
    import transformers

    config = transformers.DistilBertConfig(vocab_size=50, dim=8, n_layers=1, n_heads=2, hidden_dim=8)
    transformers.DistilBertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no head for next-sentence prediction") as error:
        load_masked_lm(tmp_path, pairs=True)
    assert error.value.where == "corpus.pairs"
