"""Class names of a ready classifier: mapped by name to the task's order, and refused where they do not fit."""

import json
import re

import pytest
import torch

from tests.helpers.models import load_classifier
from toolkit.core.errors import UserError
from toolkit.models.classes import class_names, output_order
from toolkit.models.load import load_tokenizer, save_checkpoint

CLASSIFIER = {"architectures": ["BertForSequenceClassification"]}
LABELS = ("entailment", "neutral", "contradiction")


def named(*names):
    return CLASSIFIER | {"id2label": {str(number): name for number, name in enumerate(names)}}


@pytest.fixture
def folder(tmp_path):
    def write(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("config", "labels", "order"),
    [
        (named(*LABELS), LABELS, [0, 1, 2]),
        (named("ENTAILMENT", "Neutral", " contradiction"), LABELS, [0, 1, 2]),
        (named("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), LABELS, [2, 1, 0]),
        (named("contradiction", "entailment", "neutral"), LABELS, [1, 2, 0]),
        (named("1", "0"), ("0", "1"), [1, 0]),
        (named("b", "B"), ("b", "B"), [0, 1]),
        (named("LABEL_0", "LABEL_1", "LABEL_2"), LABELS, None),
        (named("0", "1", "2"), LABELS, None),
        (named("NEGATIVE", "POSITIVE"), ("0", "1"), None),
        (CLASSIFIER, ("no", "yes"), None),
        (CLASSIFIER | {"num_labels": 3}, LABELS, None),
        (CLASSIFIER | {"id2label": None, "num_labels": 3}, LABELS, None),
        (named("one", "two") | {"architectures": ["BertForMaskedLM"]}, LABELS, None),
        (named("one", "two") | {"architectures": None}, LABELS, None),
    ],
)
def test_outputs_are_found_by_the_names_of_their_classes(folder, config, labels, order):
    assert output_order(folder(config), labels) == order


@pytest.mark.parametrize(
    "config",
    [named("no", "yes"), CLASSIFIER, named("neutral", "entailment", "other"), named(*LABELS, "other")],
)
def test_other_classes_are_refused_with_both_lists(folder, config):
    with pytest.raises(UserError, match=r"this classifier's classes are .*; the task's are entailment, neutral"):
        output_order(folder(config), LABELS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id2label": ["no", "yes"]}, "id2label is a list"),
        ({"id2label": "no"}, "id2label is a text"),
        ({"id2label": 2}, "id2label is a number"),
        ({"id2label": {"no": 0, "yes": 1}}, "id2label is an object with other keys"),
        ({"id2label": {"1": "no", "2": "yes"}}, "id2label numbers its classes 1, 2, not from 0"),
        ({"architectures": 1}, "architectures is a number"),
        ({"architectures": [1]}, "architectures is a list"),
    ],
)
def test_class_names_of_another_type_are_a_user_error(folder, changes, words):
    place = folder(CLASSIFIER | changes)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        class_names(place)
    assert caught.value.where == str(place / "config.json")


@pytest.mark.parametrize("kind", [None, "roberta", "distilbert"])
def test_a_classifier_with_classes_in_another_order_gives_the_same_logits_in_the_tasks_order(tiny_bert, tmp_path, kind):
    import transformers

    torch.manual_seed(0)
    own = ["CONTRADICTION", "ENTAILMENT", "NEUTRAL"]
    if kind is None:
        made = load_classifier(tiny_bert, own)
    else:
        sizes = {"vocab_size": 400, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "num_labels": 3}
        made = transformers.AutoModelForSequenceClassification.from_config(
            transformers.AutoConfig.for_model(kind, **sizes, id2label=dict(enumerate(own)))
        )
    save_checkpoint(made, load_tokenizer(tiny_bert), tmp_path)
    loaded = load_classifier(tmp_path, LABELS)
    assert loaded.config.id2label == dict(enumerate(LABELS))
    ids = torch.randint(5, 50, (4, 7))
    with torch.no_grad():
        before, after = made.eval()(input_ids=ids).logits, loaded.eval()(input_ids=ids).logits
    torch.testing.assert_close(after, before[:, [1, 2, 0]])
