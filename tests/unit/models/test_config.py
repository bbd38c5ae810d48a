"""`config.json`: impossible values are refused with the key, before a model of that size is built."""

import json

import pytest

from toolkit.core.errors import UserError
from toolkit.models.config import read_config, stated

BERT = {"model_type": "bert", "vocab_size": 100, "hidden_size": 8, "num_hidden_layers": 2, "id2label": {"0": "a"}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", 7),
        ("model_type", ["bert"]),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", "12"),
        ("num_hidden_layers", 2.5),
        ("num_hidden_layers", True),
        ("n_layers", -1),
        ("num_hidden_groups", 10**9),
        ("hidden_size", 10**30),
        ("dim", [8]),
        ("intermediate_size", {}),
        ("hidden_dim", 0),
        ("vocab_size", -100),
        ("vocab_size", 2),
        ("max_position_embeddings", 10**12),
        ("max_position_embeddings", 0),
        ("pad_token_id", "0"),
        ("architectures", "BertModel"),
        ("architectures", [1]),
        ("id2label", ["a", "b"]),
        ("id2label", {"zero": "a"}),
        ("id2label", {"0": 1}),
        ("label2id", ["a"]),
        ("num_labels", 10**9),
        ("quantization_config", "int8"),
        ("auto_map", []),
    ],
)
def test_a_value_that_no_model_has_is_refused_with_its_key(tmp_path, key, value):
    (tmp_path / "config.json").write_text(json.dumps(BERT | {key: value}))
    with pytest.raises(UserError, match=f"^{tmp_path}/config.json: {key}") as caught:
        read_config(tmp_path)
    assert caught.value.where == f"{tmp_path}/config.json"


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '{"a": "\\ud800"}', "[" * 100_000, '{"a":' * 100_000])
def test_a_file_that_is_no_mapping_in_json_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"not a (JSON file|mapping of keys)"):
        read_config(tmp_path)


def test_keys_of_other_models_and_values_that_mean_nothing_pass(tmp_path):
    values = BERT | {"d_model": "x", "max_position_embeddings": -1, "pad_token_id": None, "quantization_config": None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path) == values


def test_a_size_that_is_not_stated_is_named():
    assert stated(BERT, "hidden_size") == 8
    with pytest.raises(UserError, match="does not state intermediate_size"):
        stated(BERT, "intermediate_size")
