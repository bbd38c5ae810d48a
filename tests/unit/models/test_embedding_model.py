"""Embedding model and its losses against plain formulas, and the pooling of sentence-transformers folders."""

import itertools
import json
import math
import shutil

import pytest
import torch

from toolkit.core.errors import UserError
from toolkit.models.embedding.folder import SentencePooling, pooling_of, stored_pooling, write_pooling
from toolkit.models.embedding.losses import label_loss, teacher_loss
from toolkit.models.embedding.model import pooled
from toolkit.models.load import load_task_model, load_tokenizer, prunable_matrices, save_checkpoint
from toolkit.recipe import Task

TASK = Task(kind="embedding", train="a.txt", dev="b.txt", columns=("text",), max_seq_length=32)


def rows(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def cos(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def test_teacher_loss_is_the_relative_squared_distance_and_ten_times_that_of_the_similarities():
    student, teacher = rows(4, 8), rows(5, 8)[1:]
    expected = 0.0
    for i in range(4):
        expected += float((student[i] - teacher[i]).norm() ** 2 / teacher[i].norm() ** 2)
        differences = [cos(student[i], student[j]) - cos(teacher[i], teacher[j]) for j in range(4)]
        expected += 10 * sum(d * d for d in differences) / 4
    assert float(teacher_loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_scored_pairs_are_compared_by_cosent():
    texts, scores = rows(8, 5), [3.0, 1.0, 2.0, 2.0]
    cosines = [cos(texts[2 * i], texts[2 * i + 1]) for i in range(4)]
    total = 1.0
    for i, j in itertools.product(range(4), repeat=2):
        if scores[i] > scores[j]:
            total += math.exp(20 * (cosines[j] - cosines[i]))
    labels = torch.tensor(scores).repeat_interleave(2)
    loss = label_loss(texts, {"together": 2, "labels": labels})
    assert float(loss) == pytest.approx(4 * math.log(total), rel=1e-4)


@pytest.mark.parametrize("together", [2, 3])
def test_pairs_and_triplets_have_the_other_rows_as_negatives(together):
    texts = rows(3 * together, 5)
    anchors = [texts[together * i] for i in range(3)]
    candidates = [texts[together * i + place] for place in range(1, together) for i in range(3)]
    expected = 0.0
    for i, anchor in enumerate(anchors):
        logits = [20 * cos(anchor, c) for c in candidates]
        expected += math.log(sum(map(math.exp, logits))) - logits[i]
    assert float(label_loss(texts, {"together": together})) == pytest.approx(expected, rel=1e-4)


def test_single_texts_have_no_label_loss():
    assert label_loss(rows(3, 5), {}) is None


def test_pooling_takes_the_mean_of_the_attended_tokens_or_the_first():
    states, mask = rows(2, 4, 6), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    mean = torch.stack([states[0, :3].mean(0), states[1, :2].mean(0)])
    assert torch.allclose(pooled(states, mask, SentencePooling("mean", False)), mean, atol=1e-6)
    assert torch.equal(pooled(states, mask, SentencePooling("cls", False)), states[:, 0])
    unit = pooled(states, mask, SentencePooling("mean", True))
    assert torch.allclose(unit, mean / mean.norm(dim=1, keepdim=True), atol=1e-6)


def test_a_model_has_the_parameter_names_of_a_model_with_a_head(tiny_bert, tmp_path):
    model = load_task_model(tiny_bert, "embedding", (), fitted=True).eval()
    head = load_task_model(tiny_bert, "classification", ("a", "b"), fitted=False)
    assert prunable_matrices(model).keys() == prunable_matrices(head).keys()
    save_checkpoint(model, load_tokenizer(tiny_bert), tmp_path / "saved", TASK)
    again = load_task_model(tmp_path / "saved", "embedding", (), fitted=True).eval()
    ids = torch.tensor([[2, 7, 9, 3]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model(**inputs).sentence_embedding, again(**inputs).sentence_embedding)


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_pooling_of_a_folder_is_read_back_and_a_key_must_not_contradict_it(mode, normalize, tmp_path):
    pooling = SentencePooling(mode, normalize)
    assert stored_pooling(tmp_path) is None
    assert pooling_of(tmp_path) == SentencePooling("mean", True)
    assert pooling_of(tmp_path, (mode, normalize)) == pooling
    write_pooling(tmp_path, pooling, 32, 64)
    assert pooling_of(tmp_path) == pooling_of(tmp_path, (mode, normalize)) == pooling
    other = "cls" if mode == "mean" else "mean"
    with pytest.raises(UserError, match=f"pooling is {other}, but this model's is {mode}"):
        pooling_of(tmp_path, (other, None))
    with pytest.raises(UserError, match="normalize is"):
        pooling_of(tmp_path, (None, not normalize))


def test_the_newer_form_of_a_pooling_config_is_read(tmp_path):
    write_pooling(tmp_path, SentencePooling(), 32, 64)
    config = tmp_path / "1_Pooling" / "config.json"
    config.write_text(json.dumps({"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True}))
    assert pooling_of(tmp_path).mode == "cls"


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', "not supported"),
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true, "pooling_mode_cls_token": true}', "not supported"),
        ("1_Pooling/config.json", '{"pooling_mode": ["mean", "max"]}', "not supported"),
        ("1_Pooling/config.json", "[", "not a JSON file"),
        ("modules.json", "[1]", "its modules are missing"),
        ("modules.json", '[{"type": "m.Transformer"}, {"type": "m.Pooling"}, {"type": "m.Dense"}]', "Dense"),
    ],
)
def test_modules_that_are_not_supported_are_refused(file, text, expected, tmp_path):
    write_pooling(tmp_path, SentencePooling(), 32, 64)
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=expected):
        pooling_of(tmp_path)


def test_a_folder_without_the_pooling_config_states_no_pooling(tmp_path):
    write_pooling(tmp_path, SentencePooling("cls"), 32, 64)
    shutil.rmtree(tmp_path / "1_Pooling")
    assert stored_pooling(tmp_path) is None
