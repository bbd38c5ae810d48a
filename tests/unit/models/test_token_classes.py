"""Ready taggers: outputs of another order are put into the task's, and those for other entities are refused."""

import numpy as np
import pytest
import torch

from toolkit.core.errors import UserError
from toolkit.data.tasks import load_task
from toolkit.models.classes import class_names, output_order
from toolkit.models.load import load_task_model, load_tokenizer, save_checkpoint
from toolkit.recipe import Task
from toolkit.training.teacher_checks import doubt

LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


@pytest.fixture
def tagger(tiny_bert, tmp_path):
    """Saves a tagger with these names of its outputs; returns it with its folder."""

    def make(names):
        model = load_task_model(tiny_bert, "token_classification", names, fitted=False)
        save_checkpoint(model, load_tokenizer(tiny_bert), tmp_path / "tagger")
        return model, tmp_path / "tagger"

    return make


def test_outputs_are_found_by_name(tagger):
    names = ("B-PER", "I-PER", "O", "B-LOC", "I-LOC")
    model, folder = tagger(names)
    assert class_names(folder) == list(names)
    loaded = load_task_model(folder, "token_classification", LABELS, fitted=True)
    inputs = {"input_ids": torch.tensor([[2, 9, 11, 3]])}
    own, found = (one.eval()(**inputs).logits for one in (model, loaded))
    for number, label in enumerate(LABELS):
        torch.testing.assert_close(found[..., number], own[..., names.index(label)])
    assert loaded.config.id2label == dict(enumerate(LABELS))


def test_a_tagger_for_other_entities_is_refused(tagger):
    _, folder = tagger(("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG"))
    with pytest.raises(UserError, match=r"classes are O, B-LOC, I-LOC, B-ORG, I-ORG; the task's are O, B-LOC"):
        output_order(folder, LABELS)


def test_a_tagger_that_does_not_know_the_task_does_not_teach(tagger, tiny_bert, tmp_path):
    path = tmp_path / "rows.conll"
    path.write_text(
        "\n".join(". O\n" * (n % 7) + f"bar{n} B-PER\nbal I-PER\ntold O\nlovely B-LOC\n" for n in range(120))
    )
    section = {"kind": "token_classification", "train": str(path), "dev": str(path), "labels": ["LOC", "PER"]}
    task = load_task("toy", Task.model_validate(section), load_tokenizer(tiny_bert))
    _, folder = tagger([f"LABEL_{number}" for number in range(5)])

    def of(order):
        logits = [np.eye(5)[np.array(order)[np.maximum(0, tags)]].T for tags in task.dev.tags]
        return doubt(task, task.dev, logits, folder)

    assert of([0, 1, 2, 3, 4]) is None
    assert "this model's f1 is 0.0%" in str(of([0, 0, 0, 0, 0]))
    swapped = str(of([0, 3, 4, 1, 2]))
    assert "its classes seem to be in another order" in swapped
    assert "id2label" in swapped
