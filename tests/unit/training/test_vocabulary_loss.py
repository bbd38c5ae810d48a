"""Losses a few rows at a time against the plain formula over all of them: value, gradients, and what exists at once."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.core.errors import UserError
from toolkit.data import masking
from toolkit.data.batches import model_inputs
from toolkit.data.corpus import load_corpus
from toolkit.models.load import load_masked_lm, load_tokenizer
from toolkit.models.mlm_heads import mlm_head, next_sentence_head
from toolkit.recipe import Corpus, KDLossSettings, Recipe, Sample, Train
from toolkit.recipe.load import load_recipe
from toolkit.training import vocabulary_loss
from toolkit.training.datasets import mlm_data
from toolkit.training.distillation import MlmLoss, Teacher

MASKED = Corpus(files=("any",), mlm_probability=0.3)


@pytest.fixture
def few_rows(monkeypatch):
    """Seven rows of the tiny model's vocabulary in a chunk, three of them in a loss."""
    monkeypatch.setattr(vocabulary_loss, "rows_per_chunk", lambda width, kind: 7)
    monkeypatch.setattr(vocabulary_loss, "rows_per_loss", lambda width, kind: 3)


@pytest.fixture
def tiny(tiny_bert, tiny_text, tmp_path):
    """Makes (student, teacher, batch) for positions, with sequences of different lengths, or pairs."""

    def make(positions, pairs=False):
        tokenizer = load_tokenizer(tiny_bert)
        paired = {"pairs": {"short_sequence_probability": 0.5}} if pairs else {"pack": False}
        section = Corpus.model_validate({"files": [str(tiny_text)], "max_seq_length": 60} | paired)
        text = load_corpus(section, {}, tokenizer, tmp_path).train
        with torch.random.fork_rng():
            torch.manual_seed(5)
            student, teacher = (load_masked_lm(tiny_bert, pairs=pairs).eval() for _ in range(2))
            for parameter in teacher.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
        data = mlm_data(text, tokenizer, MASKED, positions, Train(steps=1, batch_size=6), seed=3)
        return student, teacher, data.collate([data.stream[k] for k in range(6)])

    return make


def loss_of(teacher, positions, **settings):
    return MlmLoss(mlm_head, Teacher(teacher), KDLossSettings(**settings), positions, next_sentence_head)


def plain(student, teacher, batch, where, kind, weights, temperature):
    """The paper's loss over full logits, as one would write it down."""
    inputs = model_inputs(batch)
    ours, theirs = student(**inputs), teacher(**inputs)
    pairs = "next_sentence_label" in batch
    ours_words, theirs_words = (x.prediction_logits if pairs else x.logits for x in (ours, theirs))
    masked = batch["labels"] != -100

    def distance(s, t):
        s, t = s / temperature, t.detach() / temperature
        if kind == "KL":
            rows = (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1)
        elif kind == "CE":
            rows = -(t.softmax(-1) * s.log_softmax(-1)).sum(-1)
        else:
            rows = (s - t).square().mean(-1)
        return temperature**2 * rows.mean()

    task = F.cross_entropy(ours_words[masked], batch["labels"][masked])
    kd = distance(ours_words[where], theirs_words[where])
    if pairs:
        task = task + F.cross_entropy(ours.seq_relationship_logits, batch["next_sentence_label"])
        kd = kd + distance(ours.seq_relationship_logits, theirs.seq_relationship_logits)
    return weights[0] * task + weights[1] * kd, task, kd


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pairs", [False, True], ids=["", "pairs"])
@pytest.mark.parametrize("kind", ["KL", "CE", "MSE"])
@pytest.mark.parametrize("positions", ["masked", "all", Sample(sample=0.5)], ids=["masked", "all", "sample"])
def test_value_and_gradients_are_those_of_the_plain_formula(few_rows, tiny, positions, kind, pairs):
    student, teacher, batch = tiny(positions, pairs)
    masked, attended = batch["labels"] != -100, batch["attention_mask"].bool()
    where = {"masked": masked, "all": attended}.get(positions) if isinstance(positions, str) else batch["kd_positions"]
    assert int(where.sum()) > 14, "several chunks"
    weights = (0.3, 0.7)
    terms = loss_of(teacher, positions, temperature=3.0, loss_types=("CE", kind), loss_weights=weights)(student, batch)
    (2.5 * terms.total).backward()
    found = gradients(student)
    student.zero_grad()
    total, task, kd = plain(student, teacher, batch, where, kind, weights, 3.0)
    (2.5 * total).backward()
    expected = gradients(student)
    for ours, theirs in ((terms.total, total), (terms.task, task), (terms.kd, kd)):
        assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert not terms.task.requires_grad
    assert not terms.kd.requires_grad
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < 1e-5 * largest, name
    assert found.keys() == expected.keys()


def test_labels_alone_have_the_value_and_gradients_of_cross_entropy(few_rows, tiny):
    student, _, batch = tiny("masked")
    terms = MlmLoss(mlm_head)(student, batch)
    terms.total.backward()
    found = gradients(student)
    student.zero_grad()
    expected = student(**model_inputs(batch), labels=batch["labels"]).loss
    expected.backward()
    assert terms.total.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in gradients(student).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


class Made(TorchDispatchMode):
    """Rows of every float tensor of logits that an operation makes, in its order."""

    def __init__(self, words):
        super().__init__()
        self.words, self.rows = words, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if operation.is_view:  # of the decoder's weights
                continue
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.shape[1] == self.words:
                self.rows.append((operation.overloadpacket, len(tensor)))
        return out


def test_no_more_logits_than_a_chunk_exist_at_once_of_either_model(few_rows, tiny):
    student, teacher, batch = tiny("all")
    positions, loss = int(batch["attention_mask"].sum()), loss_of(teacher, "all")
    with Made(student.config.vocab_size) as made:
        loss(student, batch).total.backward()
    assert max(rows for _, rows in made.rows) == 7 < positions
    steps = [rows for operation, rows in made.rows if operation is torch.ops.aten._log_softmax]
    assert max(steps) == 3, "what the formula makes on the way is smaller still"
    products = [rows for operation, rows in made.rows if operation is torch.ops.aten.addmm]
    assert sum(products) == 2 * positions, "each position is decoded once by each model: nothing is computed twice"


def test_chunks_are_of_about_the_same_size():
    assert [part.stop - part.start for part in vocabulary_loss._parts(288, 154)] == [144, 144]
    assert [part.stop - part.start for part in vocabulary_loss._parts(10, 3)] == [3, 3, 3, 1]
    assert vocabulary_loss._parts(0, 3) == []


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_few_words_at_a_time_are_decoded_as_all_at_once(monkeypatch, with_bias, threads):
    monkeypatch.setattr(vocabulary_loss, "_WORDS_OF_A_PRODUCT", 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    decoder = nn.Linear(6, 45, bias=with_bias)
    rows = torch.randn(5, 6)
    rows[3, 2] = float("nan")
    torch.testing.assert_close(vocabulary_loss.decoder_of(decoder)(rows), decoder(rows).detach(), equal_nan=True)
    assert vocabulary_loss.decoder_of(decoder)(rows[:0]).shape == (0, 45)


@pytest.mark.parametrize("taught_in", [None, True, False])
@pytest.mark.parametrize("student_in", [True, False])
def test_the_teachers_words_too_are_decoded_in_its_own_precision(tiny, monkeypatch, student_in, taught_in):
    student, teacher, batch = tiny("all")
    seen, real = [], vocabulary_loss.chunked_loss

    def watched(terms, rows, decoder, weights, taught):
        seen.append(taught(slice(0, 2)).dtype)
        return real(terms, rows, decoder, weights, taught)

    monkeypatch.setattr(vocabulary_loss, "chunked_loss", watched)
    loss = MlmLoss(mlm_head, Teacher(teacher, None, taught_in), KDLossSettings(), "all")
    with torch.autocast("cpu", torch.bfloat16, enabled=student_in):
        assert torch.isfinite(loss(student, batch).total)
    assert seen == [torch.bfloat16 if (student_in if taught_in is None else taught_in) else torch.float32]


def test_without_gradients_the_value_is_the_same_and_nothing_is_kept(few_rows, tiny):
    student, teacher, batch = tiny("all")
    loss = loss_of(teacher, "all")
    expected = loss(student, batch)
    with torch.no_grad():
        found = loss(student, batch)
    assert not found.total.requires_grad
    assert float(found.total) == pytest.approx(float(expected.total.detach()), rel=1e-6)


def test_chunks_in_bfloat16_follow_the_plain_formula_in_bfloat16(few_rows, tiny):
    student, teacher, batch = tiny("all")
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss_of(teacher, "all")(student, batch)
    terms.total.backward()
    found = gradients(student)
    student.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        total, *_ = plain(student, teacher, batch, batch["attention_mask"].bool(), "KL", (0.5, 0.5), 2.0)
    total.backward()
    assert float(terms.total) == pytest.approx(float(total), rel=1e-2)
    for name, gradient in gradients(student).items():
        if gradient.norm() > 1e-3:
            assert F.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0) > 0.99, name


def test_a_weight_of_zero_has_no_part_in_the_gradient(few_rows):
    decoder = nn.Linear(4, 3)
    rows = torch.randn(10, 4, requires_grad=True)
    total, found = vocabulary_loss.chunked_loss(
        lambda words, *_: (words.sum(), (words**2).sum()), rows, decoder, (0.0, 2.0)
    )
    total.backward()
    gradients = rows.grad.clone(), decoder.weight.grad.clone(), decoder.bias.grad.clone()
    assert float(found[0]) == pytest.approx(float(decoder(rows).sum()), rel=1e-5)
    rows.grad = None
    decoder.zero_grad()
    (2 * (decoder(rows) ** 2).sum()).backward()
    for mine, plain_one in zip(gradients, (rows.grad, decoder.weight.grad, decoder.bias.grad), strict=True):
        torch.testing.assert_close(mine, plain_one)


def test_a_frozen_decoder_gets_no_gradient_and_its_rows_do(few_rows):
    decoder = nn.Linear(4, 3, bias=False).requires_grad_(False)
    rows = torch.randn(5, 4, requires_grad=True)
    total, _ = vocabulary_loss.chunked_loss(lambda words, *_: (words.sum(),), rows, decoder, (1.0,))
    total.backward()
    torch.testing.assert_close(rows.grad, decoder.weight.sum(0).expand(5, 4))
    assert decoder.weight.grad is None


def test_no_rows_give_nothing():
    total, found = vocabulary_loss.chunked_loss(
        lambda words, *_: (words.sum(),), torch.zeros(0, 4), nn.Linear(4, 3), (1.0,)
    )
    assert float(total) == 0
    assert found.tolist() == [0]


def test_a_sample_holds_the_masked_positions_and_others_up_to_its_share(tiny):
    _, _, batch = tiny(Sample(sample=0.5))
    chosen, masked, attended = batch["kd_positions"], batch["labels"] != -100, batch["attention_mask"].bool()
    assert not (masked & ~chosen).any()
    assert not (chosen & ~attended).any()
    for row, length in zip(chosen.sum(1), attended.sum(1), strict=True):
        assert int(row) == round(0.5 * int(length))
    assert batch["kd_items"] == float(chosen.sum())


def test_a_sample_smaller_than_what_is_masked_is_what_is_masked():
    labels = np.array([-100, 3, -100, 5, 6, -100])
    assert masking.sampled_count(6, masked=3, fraction=0.1) == 3
    chosen = masking.sample_positions(labels, np.random.default_rng(0), 3)
    assert chosen.tolist() == [False, True, False, True, True, False]
    assert masking.sample_positions(labels, np.random.default_rng(0), 9).all()


def test_a_sample_is_drawn_anew_each_time_and_leaves_the_masking_as_it_is(tiny_bert, tiny_text, tmp_path):
    tokenizer = load_tokenizer(tiny_bert)
    section = Corpus(files=(str(tiny_text),), max_seq_length=60)
    text = load_corpus(section, {}, tokenizer, tmp_path).train
    train = Train(steps=4 * len(text), batch_size=1)
    plain, sampled = (
        mlm_data(text, tokenizer, section, positions, train, seed=3).stream
        for positions in ("masked", Sample(sample=0.4))
    )
    last = len(sampled) - 1
    same = [k for k in range(len(sampled)) if sampled.index(k) == sampled.index(last)]
    assert len({sampled[k]["kd_positions"].tobytes() for k in same}) == len(same) > 2
    for k in same:
        assert (plain[k]["input_ids"] == sampled[k]["input_ids"]).all()
        assert (sampled[k]["kd_positions"] == sampled[k]["kd_positions"]).all()


RECIPE = """
name: sampled
model: {source: some/model}
corpus: {files: [text.txt]}
student:
  distillation: {train: {steps: 10}, positions: POSITIONS}
"""


def test_positions_are_read_from_a_recipe(tmp_path):
    def read(positions, *changes) -> Recipe:
        path = tmp_path / "r.yaml"
        path.write_text(RECIPE.replace("POSITIONS", positions))
        return load_recipe(path, list(changes))

    assert read("{sample: 0.3}").student.distillation.positions == Sample(sample=0.3)
    assert read("all").student.distillation.positions == "all"
    assert read("masked", "student.positions={sample: 0.2}").student.distillation.positions == Sample(sample=0.2)
    for wrong in ("some", "{sample: 0}", "{sample: 2}", "{share: 0.3}"):
        with pytest.raises(UserError) as error:
            read(wrong)
        assert "positions" in str(error.value)
        assert "r.yaml:6" in str(error.value)
