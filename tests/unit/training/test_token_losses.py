"""Losses of tags against their formulas, at the tokens that have one."""

import pytest
import torch

from tests.helpers.tags import tagged_task
from toolkit.data.batches import model_inputs
from toolkit.models.load import load_task_model, load_tokenizer
from toolkit.recipe import KDLossSettings, Train
from toolkit.training.datasets import task_data
from toolkit.training.distillation import TaskLoss, Teacher


def test_losses_of_tags_are_means_over_the_tagged_tokens_of_a_step(tiny_bert, tmp_path):
    tokenizer = load_tokenizer(tiny_bert)
    task = tagged_task(tmp_path, tokenizer)
    student, teacher = (load_task_model(tiny_bert, task.kind, task.labels, fitted=False).eval() for _ in range(2))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    data = task_data(task.train, tokenizer.pad_token_id, Train(steps=1, batch_size=16), seed=1)
    data.stream.index = lambda k: k
    batch = data.collate([data.stream[number] for number in range(16)])
    terms = TaskLoss(task.kind, Teacher(teacher), KDLossSettings(temperature=2.0))(student, batch)

    tags, words = batch["tags"], sum(1 + i % 8 for i in range(16))
    assert (tags != -100).sum() == words == batch["items"]  # neither special tokens nor padding
    own, wanted = (model(**model_inputs(batch)).logits[tags != -100].log_softmax(-1) for model in (student, teacher))
    assert float(terms.task) == pytest.approx(float(-own[torch.arange(words), tags[tags != -100]].mean()), rel=1e-5)
    own, wanted = ((x / 2).log_softmax(-1) for x in (own, wanted))  # at temperature 2
    divergence = (wanted.exp() * (wanted - own)).sum(-1).mean() * 4
    assert float(terms.kd) == pytest.approx(float(divergence), rel=1e-4)
