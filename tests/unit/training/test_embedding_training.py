"""Batches of texts and pairs, and what accumulation makes of their losses."""

import pytest
import torch

from toolkit.data.tasks import load_task
from toolkit.models.load import load_task_model, load_tokenizer
from toolkit.recipe import Criterion, Task, Train
from toolkit.training.datasets import steps_of, task_data
from toolkit.training.distillation import Teacher, task_loss


@pytest.fixture
def loaded(tiny_bert, tmp_path):
    def made(form):
        columns = ["one", "two", "score"]
        rows = [[f"the story of {n}", f"a dull end of {3 * n}", str(n / 4)] for n in range(20)]
        file = tmp_path / "pairs.tsv"
        file.write_text("".join("\t".join(row) + "\n" for row in [columns, *rows]))
        keys = {"texts": {"columns": ["one"]}, "scored": {"columns": ["one", "two"], "label": "score"}}
        keys["pairs"] = {"columns": ["one", "two"]}
        section = {"kind": "embedding", "train": str(file), "dev": str(file), "tuning_examples": 0} | keys[form]
        tokenizer = load_tokenizer(tiny_bert)
        return load_task("toy", Task.model_validate(section), tokenizer), tokenizer

    return made


def test_the_texts_of_a_pair_stay_together_and_a_batch_counts_pairs(loaded):
    task, tokenizer = loaded("scored")
    section = Train(epoch=1, batch_size=4)
    data = task_data(task.train, tokenizer.pad_token_id, section, 0)
    assert data.steps == steps_of(section, 20) == 5
    batch = data.collate([data.stream[k] for k in range(4)])
    assert (batch["input_ids"].shape[0], batch["together"], batch["items"], batch["examples"]) == (8, 2, 4, 8)
    assert torch.equal(batch["labels"][::2], batch["labels"][1::2])
    first = data.stream[0]["number"]
    for place, text in enumerate(task.train.texts[first]):
        assert tokenizer.decode(batch["input_ids"][place], skip_special_tokens=True) == text


@pytest.mark.parametrize(("form", "weights"), [("texts", (0, 1)), ("scored", (0.5, 0.5)), ("pairs", (1, 0))])
def test_the_loss_of_a_step_is_the_mean_over_its_forward_passes(form, weights, loaded, tiny_bert):
    task, tokenizer = loaded(form)
    torch.manual_seed(0)
    model = load_task_model(tiny_bert, "embedding", (), fitted=True).eval()
    other = load_task_model(tiny_bert, "embedding", (), fitted=True)
    for parameter in other.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    criterion = Criterion.model_validate({"KnowledgeDistillationLoss": {"loss_weights": weights}})
    loss = task_loss("embedding", Teacher(other), criterion)

    def totals(accumulation):
        section = Train(steps=1, batch_size=4, gradient_accumulation_steps=accumulation)
        data = task_data(task.train, tokenizer.pad_token_id, section, 0)
        features = [data.stream[k] for k in range(4 * accumulation)]
        passes = [features[first : first + 4] for first in range(0, len(features), 4)]
        return [loss(model, data.collate(part)) for part in passes], passes, data

    cut, passes, _ = totals(2)
    _, _, single = totals(1)
    alone = [float(loss(model, single.collate(part)).total.detach()) for part in passes]
    assert sum(float(terms.total.detach()) for terms in cut) == pytest.approx(sum(alone) / 2, rel=1e-5)
    assert (cut[0].task is None) == (form == "texts")
