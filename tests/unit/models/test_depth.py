"""Students of fewer layers: what is kept, what the config records, and which layers are compared."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from toolkit.core.errors import UserError
from toolkit.models.depth import default_layer_pairs, depth_metrics, keep_layers, require_layers_of, shallower

BERT = {"model_type": "bert", "num_hidden_layers": 6}
DISTILBERT = {"model_type": "distilbert", "n_layers": 3}


def numbers(pairs: list[tuple[str, str]]) -> list[int]:
    """The teacher's layer of each pair."""
    return [int(teacher.rpartition(".")[2]) for _, teacher in pairs]


@pytest.mark.parametrize(
    ("student", "teacher", "wanted"),
    [
        (BERT, BERT, [0, 1, 2, 3, 4, 5]),
        (shallower(BERT, [1, 3, 5]), BERT, [1, 3, 5]),
        (shallower(BERT, [0, 1, 2]), BERT, [0, 1, 5]),  # the last one with the teacher's last
        (shallower(BERT, 2), BERT, [2, 5]),  # not chosen yet: spread evenly
        (shallower(BERT, [0, 1, 2]), BERT | {"num_hidden_layers": 12}, [3, 7, 11]),  # another teacher
        (DISTILBERT, BERT, [1, 3, 5]),
        (BERT | {"num_hidden_layers": 4}, BERT, [0, 2, 3, 5]),
        (BERT | {"num_hidden_layers": 3, "kept_layers": [5, 3, 1], "layers_before": 6}, BERT, [1, 3, 5]),  # damaged
        (BERT | {"num_hidden_layers": 3, "kept_layers": [1, 3, 9], "layers_before": 6}, BERT, [1, 3, 5]),
    ],
)
def test_layers_are_compared_with_those_that_they_came_from_else_spread_evenly(student, teacher, wanted):
    assert numbers(default_layer_pairs(student, teacher)) == wanted


def test_a_student_with_more_layers_than_its_teacher_needs_layer_mappings():
    with pytest.raises(UserError, match="6 layers, the teacher only 3") as caught:
        default_layer_pairs(BERT, DISTILBERT)
    assert "layer_mappings" in caught.value.instead


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "electra", "mpnet", "deberta-v2"])
def test_the_kept_layers_are_the_teachers_and_the_model_runs_and_loads_again(kind, tmp_path):
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "vocab_size": 30,
        "embedding_size": 16,
    }
    sizes["hidden_dim" if kind == "distilbert" else "intermediate_size"] = 24
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    ids = torch.arange(5, 15)[None]
    states = model.base_model(input_ids=ids, output_hidden_states=True).hidden_states
    keep_layers(model, [0, 1])  # the first two layers: their output is the complete model's second
    with torch.no_grad():
        assert torch.equal(model.base_model(input_ids=ids)[0], states[2])
    model.save_pretrained(tmp_path)
    again, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert depth_metrics(again.config.to_dict()) == {"kept_layers": [0, 1], "layers_before": 4}
    assert len(default_layer_pairs(again.config.to_dict(), again.config.to_dict())) == 2


MODERNBERT = {"model_type": "modernbert", "num_hidden_layers": 5}
GLOBAL, LOCAL = "full_attention", "sliding_attention"


def test_kept_layers_of_modernbert_attend_to_what_they_did(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 30, "pad_token_id": 0}
    torch.manual_seed(0)
    config = AutoConfig.for_model("modernbert", **sizes, num_hidden_layers=5, local_attention=4)
    model = AutoModelForMaskedLM.from_config(config).eval()
    layers = list(model.base_model.layers)
    keep_layers(model, [0, 2, 3])
    assert list(model.base_model.layers) == [layers[0], layers[2], layers[3]]
    assert model.config.layer_types == [GLOBAL, LOCAL, GLOBAL]
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_the_config_of_a_shallower_modernbert_names_the_attention_of_its_layers():
    assert shallower(MODERNBERT, [0, 2, 3])["layer_types"] == [GLOBAL, LOCAL, GLOBAL]
    assert shallower(MODERNBERT | {"global_attn_every_n_layers": 2}, 4)["layer_types"] == [GLOBAL, LOCAL] * 2
    given = MODERNBERT | {"layer_types": [GLOBAL] * 5}
    assert shallower(given, [0, 4])["layer_types"] == [GLOBAL, GLOBAL]
    assert "layer_types" not in shallower(BERT, 2)


@pytest.mark.parametrize(
    ("config", "layers", "words"),
    [
        (BERT, 7, "7 layers of a model that has 6"),
        (BERT, (1, 6), "there is no layer 6"),
        (MODERNBERT, (1, 3), "keeps its first layer and a layer of each kind of attention"),
        (MODERNBERT, (0, 3), "keeps its first layer and a layer of each kind of attention"),
        (MODERNBERT, 1, "keeps its first layer and a layer of each kind of attention"),
        ({"model_type": "albert", "num_hidden_groups": 1, "num_hidden_layers": 6}, 1, "cannot be removed one by one"),
        ({"model_type": "some-other", "num_hidden_layers": 6}, 1, "cannot be removed one by one"),
    ],
)
def test_layers_that_a_teacher_does_not_have_are_refused(config, layers, words):
    with pytest.raises(UserError, match=words):
        require_layers_of(config, layers)
    require_layers_of(BERT, 6)
    require_layers_of(MODERNBERT, (0, 1))
    require_layers_of(MODERNBERT, 2)
    require_layers_of(BERT, (0, 5))
