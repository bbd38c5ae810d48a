"""What a torch model answers, against the same model asked one example at a time."""

import json
import random

import numpy as np
import pytest
import torch

from tests.conftest import GOOD, NOUNS, sentence
from toolkit.data.corpus.segment_pairs import PairSequences
from toolkit.data.corpus.sequences import Sequences
from toolkit.data.tasks import load_task
from toolkit.models.load import load_masked_lm, load_task_model, load_tokenizer
from toolkit.models.mlm_heads import mlm_head, next_sentence_head
from toolkit.recipe import Task
from toolkit.training import evaluation
from toolkit.training.distillation import MlmLoss
from toolkit.training.evaluation import mlm_metrics, predict, task_metrics

KINDS = ("classification", "question_answering", "token_classification")


@pytest.fixture(scope="module")
def asked(tiny_bert, tmp_path_factory):
    """Kind -> a model with random weights, its tokenizer, and 23 examples of many lengths (or their windows)."""
    folder, rng = tmp_path_factory.mktemp("evaluation"), random.Random(5)
    texts = [" ".join(sentence(rng, GOOD) for _ in range(rng.randint(1, 3))) for _ in range(23)]
    rows = "".join(f"{text}\t{number % 3}\n" for number, text in enumerate(texts))
    (folder / "dev.tsv").write_text(f"sentence\tlabel\n{rows}")
    paragraphs = []
    for number in range(23):
        words = rng.sample(NOUNS, rng.randint(3, 40))  # some need several windows
        asked = {"id": str(number), "question": "who ?", "answers": [{"text": words[0], "answer_start": 0}]}
        paragraphs.append({"context": " ".join(words), "qas": [asked]})
    (folder / "dev.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    tags = ["".join(f"{word} B-X\n" for word in text.split()) for text in texts]
    (folder / "dev.conll").write_text("\n".join(tags))
    table, squad = str(folder / "dev.tsv"), str(folder / "dev.json")
    words = {"kind": "token_classification", "max_seq_length": 20, "windows": {"stride": 4}}
    windows = {"stride": 4, "max_question_length": 8}
    sections = {
        "classification": Task(train=table, dev=table),
        "token_classification": Task.model_validate(words | dict.fromkeys(("train", "dev"), str(folder / "dev.conll"))),
        "question_answering": Task(preset="squad", train=squad, dev=squad, max_seq_length=30, windows=windows),
    }
    tokenizer = load_tokenizer(tiny_bert)
    found = {}
    for kind, section in sections.items():
        task = load_task("t", section, tokenizer)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = load_task_model(tiny_bert, task.kind, task.labels, fitted=False).eval()
        for weight in model.parameters():  # as made, the weights are so small that all answers are nearly alike
            weight.data *= 8 if weight.dim() == 2 else 1
        found[kind] = (model, tokenizer, task.dev)
    return found


@torch.inference_mode()
def alone(model, example) -> np.ndarray:
    """Logits of one example without padding, read off the model's own output."""
    inputs = {name: torch.tensor([ids]) for name, ids in example.items() if isinstance(ids, list) and name != "tags"}
    output = model(**inputs)
    if "logits" in output:
        return output.logits[0].numpy().T  # of tokens: [tags, length]
    return torch.stack([output.start_logits[0], output.end_logits[0]]).numpy()


@pytest.mark.parametrize("pairs", [False, True])
def test_no_word_loss_is_reported_of_text_whose_words_are_all_unknown(tiny_bert, pairs):
    """No file is needed: a corpus of such text is refused, but of held-out text the first sequences may be so."""
    tokenizer = load_tokenizer(tiny_bert)
    cls, sep, unknown = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id
    model = load_masked_lm(tiny_bert, pairs=pairs)
    loss = MlmLoss(mlm_head, next_head=next_sentence_head)
    for token, measured in ((unknown, set()), (tokenizer.vocab["a"], {"mlm_loss"})):
        if pairs:
            spans = np.array([[0, 3, 3, 6, number % 2] for number in range(40)])
            sequences = PairSequences(np.array([token] * 6), spans, cls, sep)
        else:
            sequences = Sequences(np.array([cls, token, token, sep] * 40), np.arange(4, 164, 4))
        found = mlm_metrics(model, loss, sequences, tokenizer, 0.15)
        assert found.keys() == measured | ({"next_sentence_accuracy"} if pairs else set())
        assert np.isfinite(list(found.values())).all()


def test_manifest_is_told_which_rows_no_score_is_of(tiny_bert, tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("sentence\tlabel\na\t0\n\t1\nb\t1\n")
    tokenizer = load_tokenizer(tiny_bert)
    dev = tmp_path / "dev.tsv"
    dev.write_text("sentence\tlabel\nc\t0\n\t1\nd\t1\n")
    task = load_task("t", Task(train=str(path), dev=str(dev), drop_empty=True), tokenizer)
    model = load_task_model(tiny_bert, task.kind, task.labels, fitted=False)
    told = task_metrics(model, task, tokenizer)
    said = [f"1 row with an empty text left out (first: {file}:3)" for file in ("rows.tsv", "dev.tsv")]
    assert (told["dev_n"], told["rows_left_out"]) == (2, said)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_answers_all_examples_in_their_order_whatever_the_batch_size(asked, kind, batch_size):
    model, tokenizer, examples = asked[kind]
    assert len(examples) % 5  # the last batch is not full
    assert len(set(examples.lengths.tolist())) > 5
    found = predict(model, examples, tokenizer.pad_token_id, batch_size)
    assert len(found) == len(examples)
    for index, logits in enumerate(found):
        np.testing.assert_allclose(logits, alone(model, examples[index]), atol=1e-4, err_msg=str(index))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_that_were_not_masked_would_be_seen(asked, kind):
    """The test above could not fail if the examples' answers did not depend on their place and their padding."""
    model, _, examples = asked[kind]
    answers = [alone(model, examples[index]).ravel()[:2] for index in range(len(examples))]
    assert np.ptp(np.stack(answers), axis=0).min() > 0.1


def test_a_model_that_was_moved_for_its_evaluation_can_still_be_trained(monkeypatch):
    # A dtype stands for the GPU: both replace the parameters' memory, and what is made in inference mode stays its.
    monkeypatch.setattr(evaluation, "device", lambda: torch.float64)
    model = torch.nn.Linear(2, 1)
    with torch.inference_mode():
        evaluation._to_device(model)
    assert model.weight.dtype == torch.float64
    assert not model.weight.is_inference()
