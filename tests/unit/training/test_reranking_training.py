"""Losses of rerankers and of multi-label classifiers against their formulas, and gradients with accumulation."""

import itertools
import math

import pytest
import torch

from toolkit.data.tasks import load_task
from toolkit.models import reranking
from toolkit.models.load import load_task_model, load_tokenizer
from toolkit.models.task_heads import HEADS
from toolkit.recipe import Criterion, KDLossSettings, Task, Train
from toolkit.training.datasets import task_data
from toolkit.training.distillation import TaskLoss, Teacher, task_loss

LOGITS = torch.tensor([[1.0], [-2.0], [0.5], [3.0], [0.0], [-1.0]])
TEACHER = torch.tensor([[0.5], [1.0], [0.0], [2.0], [-2.0], [4.0]])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def entropy(p, q):
    """Cross entropy of two decisions."""
    return -(p * math.log(q) + (1 - p) * math.log(1 - q))


@pytest.mark.parametrize("together", [1, 2, 3])
def test_margin_mse_is_the_mean_over_all_two_candidates_of_a_group(together):
    found = float(reranking.teacher_loss(LOGITS, TEACHER, {"together": together}))
    own, wanted = LOGITS.flatten().tolist(), TEACHER.flatten().tolist()
    expected = 0.0
    for first in range(0, 6, together):
        group = range(first, first + together)
        twos = list(itertools.combinations(group, 2))
        margins = [((own[i] - own[j]) - (wanted[i] - wanted[j])) ** 2 for i, j in twos]
        expected += together * (sum(margins) / len(twos) if twos else (own[first] - wanted[first]) ** 2)
    assert found == pytest.approx(expected, rel=1e-5)


def test_label_losses_of_pairs_are_their_formulas():
    labels = [1.0, 0.0, 0.25, 1.0, 0.5, 0.0]
    bce = float(reranking.label_loss(LOGITS, {"labels": torch.tensor(labels)}))
    own = LOGITS.flatten().tolist()
    assert bce == pytest.approx(sum(entropy(p, sigmoid(x)) for p, x in zip(labels, own, strict=True)), rel=1e-5)
    mse = float(reranking.label_loss(LOGITS, {"scores": torch.tensor(labels), "together": 2}))
    assert mse == pytest.approx(sum((x - p) ** 2 for p, x in zip(labels, own, strict=True)) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["KL", "CE", "MSE"])
def test_losses_of_several_classes_are_means_over_decisions(kind, monkeypatch):
    student = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]])
    teacher = torch.tensor([[0.5, 1.0, 0.0], [2.0, -2.0, 4.0]])
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    head = HEADS["multi_label"]
    pairs = list(zip(student.flatten().tolist(), labels.flatten().tolist(), strict=True))
    expected = sum(entropy(y, sigmoid(x)) for x, y in pairs) / 3
    assert float(head.label_loss(student, {"labels": labels})) == pytest.approx(expected, rel=1e-5)

    monkeypatch.setattr("toolkit.training.distillation.task_logits", lambda kind, model, inputs: student)
    settings = KDLossSettings(temperature=3.0, loss_types=("CE", kind), loss_weights=(0, 1))
    batch = {"labels": labels, "teacher_logits": teacher, "items": 2.0, "examples": 2.0}
    found = float(TaskLoss("multi_label", settings=settings)(None, batch).kd)
    twos = list(zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    if kind == "MSE":
        expected = sum((s - t) ** 2 for s, t in twos) / 6
    else:
        chances = [(sigmoid(t / 3), sigmoid(s / 3)) for s, t in twos]
        expected = sum(entropy(p, q) - (entropy(p, p) if kind == "KL" else 0) for p, q in chances) * 9 / 6
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def loaded(tiny_bert, tmp_path):
    def made(kind, **keys):
        file = tmp_path / "rows.tsv"
        if kind == "multi_label":
            rows = [[f"the story of {n}", ("a|b", "b", "")[n % 3]] for n in range(24)]
        else:
            rows = [[f"story {n // 6}", f"a dull end of {n}", str(int(n % 3 == 0))] for n in range(24)]
        columns = ["sentence", "label"] if kind == "multi_label" else ["query", "passage", "label"]
        file.write_text("".join("\t".join(row) + "\n" for row in [columns, *rows]))
        section = {"kind": kind, "train": str(file), "dev": str(file), "tuning_examples": 0} | keys
        tokenizer = load_tokenizer(tiny_bert)
        return load_task("toy", Task.model_validate(section), tokenizer), tokenizer

    return made


def test_a_group_stays_together_and_a_batch_counts_groups(loaded):
    task, tokenizer = loaded("reranking", ranking={"group": 3})
    assert task.train.groups.shape == (8, 3)  # two relevant passages of each of four queries
    data = task_data(task.train, tokenizer.pad_token_id, Train(epoch=1, batch_size=4), 0)
    assert data.steps == 2
    batch = data.collate([data.stream[k] for k in range(4)])
    assert (batch["input_ids"].shape[0], batch["together"], batch["items"], batch["examples"]) == (12, 3, 4, 12)
    assert batch["labels"].reshape(4, 3).tolist() == [[1, 0, 0]] * 4
    queries = [tokenizer.decode(row, skip_special_tokens=True).split(" a dull")[0] for row in batch["input_ids"]]
    assert all(len(set(queries[first : first + 3])) == 1 for first in range(0, 12, 3))


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("multi_label", {}),
        ("reranking", {}),
        ("reranking", {"ranking": {"group": 3}}),
        ("reranking", {"ranking": {"group": 2, "loss": "mse"}}),
    ],
)
def test_gradients_do_not_depend_on_how_a_step_is_cut(kind, keys, loaded, tiny_bert):
    task, tokenizer = loaded(kind, **keys)
    torch.manual_seed(0)
    model = load_task_model(tiny_bert, kind, task.labels, fitted=False).eval()
    other = load_task_model(tiny_bert, kind, task.labels, fitted=False)
    for parameter in other.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    criterion = Criterion.model_validate({"KnowledgeDistillationLoss": {"loss_weights": [0.4, 0.6]}})
    loss = task_loss(kind, Teacher(other), criterion)

    def gradients(size, accumulation):
        section = Train(steps=1, batch_size=size, gradient_accumulation_steps=accumulation)
        data = task_data(task.train, tokenizer.pad_token_id, section, 0)
        whole = task_data(task.train, tokenizer.pad_token_id, Train(steps=1, batch_size=8), 0)
        features = [whole.stream[k] for k in range(8)]
        model.zero_grad()
        for first in range(0, 8, size):
            loss(model, data.collate(features[first : first + size])).total.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    one, cut = gradients(8, 1), gradients(2, 4)
    assert one.abs().max() > 1e-3
    assert torch.allclose(one, cut, atol=1e-5 * float(one.abs().max()))
