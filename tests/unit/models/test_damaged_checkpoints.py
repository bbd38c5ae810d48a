"""Checkpoints that are damaged, incomplete or of another kind: each is a user error before a model is built."""

import json
import os
import shutil

import pytest
import torch

from tests.helpers.models import load_classifier
from toolkit.core.errors import UserError
from toolkit.models.load import load_masked_lm, load_tokenizer


@pytest.fixture
def copy(tiny_bert, tmp_path):
    return shutil.copytree(tiny_bert, tmp_path / "copy")


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_cut_off_weights_are_a_user_error(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged or incomplete safetensors file") as error:
        load_masked_lm(copy)
    assert error.value.where == str(weights)


def test_pickled_weights_are_not_loaded(copy):
    weights = load_masked_lm(copy).state_dict()
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle.*\n.*save_pretrained"):
        load_masked_lm(copy)


def test_missing_encoder_weights_are_a_user_error_instead_of_random_ones(copy):
    change_json(copy / "config.json", num_hidden_layers=3)
    with pytest.raises(UserError, match=r"lacks 16 of the encoder's \d+ weights, e\.g\. bert\.encoder\.layer\.2"):
        load_masked_lm(copy)


def test_weights_of_another_size_are_a_user_error(copy):
    change_json(copy / "config.json", intermediate_size=128)
    with pytest.raises(UserError, match="model cannot be loaded"):
        load_classifier(copy, ["a", "b"])


def test_unknown_architecture_is_a_user_error(copy):
    change_json(copy / "config.json", model_type="nonsense")
    with pytest.raises(UserError, match="model cannot be loaded"):
        load_masked_lm(copy)


def test_half_precision_weights_come_up_in_full_precision(copy):
    model = load_masked_lm(copy).half()
    model.save_pretrained(copy)
    assert {p.dtype for p in load_masked_lm(copy).parameters()} == {torch.float32}


def test_tokenizer_forgets_stored_padding_and_knows_the_models_positions(copy):
    stored = json.loads((copy / "tokenizer.json").read_text())
    stored["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (copy / "tokenizer.json").write_text(json.dumps(stored))
    change_json(copy / "tokenizer_config.json", model_max_length=10**9)
    tokenizer = load_tokenizer(copy)
    assert tokenizer.model_max_length == 128
    assert len(tokenizer.backend_tokenizer.encode("a b c d e f").ids) == 8


def test_missing_tokenizer_is_a_user_error(copy):
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="no tokenizer in this folder"):
        load_tokenizer(copy)


def test_damaged_tokenizer_is_a_user_error(copy):
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer cannot be loaded"):
        load_tokenizer(copy)


def test_tokenizer_with_more_words_than_the_model_is_a_user_error(copy):
    change_json(copy / "config.json", vocab_size=100)
    with pytest.raises(UserError, match=r"tokenizer has \d+ tokens, the model only 100"):
        load_tokenizer(copy)


@pytest.mark.parametrize("length", ["128", {"a": 1}, -1, 0, [512]])
def test_a_tokenizer_with_an_impossible_length_is_the_user_s_error(copy, length):
    change_json(copy / "tokenizer_config.json", model_max_length=length)
    with pytest.raises(UserError, match=r"model_max_length is|the tokenizer cannot be loaded"):
        load_tokenizer(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": 7},
        {"hidden_act": "none"},
        {"num_attention_heads": 3},
        {"hidden_size": 48},
        {"layer_norm_eps": "small"},
        {"model_type": "no-such-model"},
        {"num_hidden_layers": 3},
        {"problem_type": "none"},
    ],
)
def test_a_config_of_which_transformers_can_make_no_model_is_the_user_s_error(copy, changes):
    change_json(copy / "config.json", **changes)
    with pytest.raises(UserError) as caught:
        load_masked_lm(copy)
    assert caught.value.where == str(copy)


def test_a_tokenizer_in_a_fifo_is_refused_without_opening_it(copy):
    (copy / "tokenizer.json").unlink()
    os.mkfifo(copy / "tokenizer.json")
    with pytest.raises(UserError, match="not a regular file"):
        load_tokenizer(copy)
