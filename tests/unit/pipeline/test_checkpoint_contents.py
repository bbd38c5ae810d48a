"""What a stage would miss in a checkpoint is found before the first stage: type, weights, heads and tokens."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForQuestionAnswering, MobileBertConfig, MobileBertForMaskedLM

from tests.helpers.models import load_classifier
from toolkit.core.errors import UserError
from toolkit.models.load import load_tokenizer, save_checkpoint
from toolkit.pipeline.preflight import check_recipe
from toolkit.recipe import Recipe


@pytest.fixture
def check(tiny_bert, tiny_text, tiny_task_files):
    def run(source, ready=None, **changes):
        task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "ready": ready or {}}
        values = {"name": "r", "model": {"source": str(source)}, "tasks": {"toy": task}}
        values["corpus"] = {"files": [str(tiny_text)]} | changes.pop("corpus", {})
        return check_recipe(Recipe.model_validate(values | changes))

    return run


@pytest.fixture
def copy(tiny_bert, tmp_path):
    """A copy of the tiny model, whose `config.json` or weights a test changes."""
    folder = shutil.copytree(tiny_bert, tmp_path / "copy")

    def change(config=None, weights=None):
        path = folder / "config.json"
        values = json.loads(path.read_text()) | (config or {})
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        if weights:
            found = weights(load_file(folder / "model.safetensors"))
            save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return change


TEACHER = {"teacher": {"train": {"steps": 2}}}
RAMP = {"backend": "magnitude", "approach": {"weight_compression": {"end_step": 2}}}
STUDENT = {"student": {"pruning": RAMP, "distillation": {"train": {"steps": 4}}}}


def test_a_type_that_is_missing_or_unknown_is_named(check, copy):
    with pytest.raises(UserError, match="`model_type` is missing"):
        check(copy({"model_type": None}))
    with pytest.raises(UserError, match="'odd' is unknown to transformers") as caught:
        check(copy({"model_type": "odd"}))
    assert "code" not in caught.value.what
    with pytest.raises(UserError, match="brings code of its own, which is not run"):
        check(copy({"auto_map": {"AutoModel": "odd.Model"}}))


def test_an_incomplete_encoder_is_named_with_what_it_lacks(check, copy):
    def without(weights):
        return {name: tensor for name, tensor in weights.items() if "layer.1.output" not in name}

    with pytest.raises(UserError, match=r"lacks 1 of the encoder's 12 matrices, e\.g\. bert\.encoder\.layer\.1"):
        check(copy(weights=without))


def test_weights_under_another_prefix_are_no_encoder(check, copy):
    with pytest.raises(UserError, match="lacks 12 of the encoder's 12 matrices"):
        check(copy(weights=lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()}))


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("intermediate_size", 48, "intermediate.dense.weight is 64x32, but config.json describes 48x32"),
        ("vocab_size", 400, "word_embeddings.weight is "),
        ("max_position_embeddings", 64, "position_embeddings.weight is 128x32"),
    ],
)
def test_weights_of_other_sizes_than_the_config_are_named(check, copy, key, value, name):
    with pytest.raises(UserError, match=name):
        check(copy({key: value}))


def test_a_folder_without_a_tokenizer_or_with_a_larger_one_is_refused(check, copy):
    folder = copy()
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    size = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"]["newword"] = size
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=f"the tokenizer has {size + 1} tokens, the model only {size}"):
        check(folder)
    path.unlink()
    (folder / "vocab.txt").unlink(missing_ok=True)
    with pytest.raises(UserError, match="no tokenizer in this folder"):
        check(folder)


@pytest.mark.parametrize("kind", ["mobilebert", "t5", "squeezebert"])
def test_a_type_that_is_not_supported_is_refused_by_name_with_those_that_are(check, copy, kind):
    folder = copy({"model_type": kind})
    with pytest.raises(UserError, match=f"models of type {kind} are not supported") as caught:
        check(folder)
    assert "modernbert" in caught.value.instead


def test_positions_with_matrices_of_their_own_are_refused(check, copy):
    with pytest.raises(UserError, match="matrices of their own for relative positions"):
        check(copy({"model_type": "deberta-v2", "relative_attention": True}))


def test_a_student_without_a_teacher_stage_needs_a_trained_head(check, copy):
    def bare(weights):
        return {name: tensor for name, tensor in weights.items() if not name.startswith("cls.")}

    folder = copy(weights=bare)
    with pytest.raises(UserError, match=r"it lacks cls\.predictions\.transform\.dense\.weight"):
        check(folder, **STUDENT)
    check(folder, **STUDENT, **TEACHER)


def test_segment_pairs_need_a_type_with_a_next_sentence_head(check, copy):
    check(copy(), corpus={"pairs": {}}, **TEACHER)
    with pytest.raises(UserError, match="nystromformer has no head for next-sentence prediction"):
        check(copy({"model_type": "nystromformer"}), corpus={"pairs": {}}, **TEACHER)


def test_a_ready_model_of_another_kind_of_task_is_refused(check, tiny_bert, tmp_path):
    config = BertConfig.from_pretrained(tiny_bert)
    save_checkpoint(BertForQuestionAnswering(config), load_tokenizer(tiny_bert), tmp_path / "answers")
    with pytest.raises(UserError, match=r"not trained for the task: it lacks classifier\.weight"):
        check(tiny_bert, {"task_teacher": str(tmp_path / "answers")}, export={})
    with pytest.raises(UserError, match=r"not trained for the task: it lacks classifier\.weight"):
        check(tiny_bert, {"transfer": str(tiny_bert)}, export={})


def test_a_classifier_cannot_be_the_teacher_of_a_regression(check, tiny_bert, tiny_task_files, tmp_path):
    save_checkpoint(load_classifier(tiny_bert, ("a", "b", "c")), load_tokenizer(tiny_bert), tmp_path / "three")
    task = {"kind": "regression", "train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev)}
    with pytest.raises(UserError, match=r"head has 3 outputs; tasks\.toy \(regression\) needs 1"):
        check(tiny_bert, tasks={"toy": task | {"ready": {"task_teacher": str(tmp_path / "three")}}}, export={})


def test_heads_of_known_names_with_other_layers_are_refused_when_a_model_is_loaded():
    from toolkit.models.mlm_heads import mlm_head

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = MobileBertForMaskedLM(MobileBertConfig(vocab_size=50, embedding_size=16, **small))
    with pytest.raises(UserError, match="the masked-LM head of mobilebert is not supported"):
        mlm_head(model)
