"""The table of architectures against what transformers builds, and `check` against the tokenizer."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForPreTraining, PreTrainedTokenizerFast

from toolkit.models.architectures import (
    ARCHITECTURES,
    MLM_HEAD_OF,
    WITH_NEXT_SENTENCE,
    matrix_shapes,
    split_layer,
    usable_positions,
)
from toolkit.models.load import load_masked_lm, load_tokenizer, prunable_matrices, save_checkpoint
from toolkit.models.mlm_heads import mlm_head

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "word"]
SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 34,
    "pad_token_id": 1,
    "embedding_size": 16,
    "num_hidden_groups": 1,
}


@pytest.fixture(params=ARCHITECTURES)
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    torch.manual_seed(0)
    wanted = {
        "hidden_dim" if kind == "distilbert" and key == "intermediate_size" else key: n for key, n in SIZES.items()
    }
    return AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **wanted))


@pytest.fixture
def folder(model, tmp_path):
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    named = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), WORDS, strict=False))
    save_checkpoint(model, PreTrainedTokenizerFast(tokenizer_object=made, **named), tmp_path)
    return tmp_path


def test_shapes_from_the_config_are_those_of_the_model(kind, model):
    made = {name: tuple(module.weight.shape) for name, module in prunable_matrices(model).items()}
    assert matrix_shapes(model.config.to_dict()) == made
    assert ARCHITECTURES[kind].prefix == model.base_model_prefix


def test_the_head_gives_the_models_own_logits(model):
    ids = torch.arange(5, 11)[None]
    model.eval()
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids)[0]
        assert torch.allclose(mlm_head(model)(hidden), model(input_ids=ids).logits, atol=1e-6)


@pytest.mark.parametrize("other", sorted(MLM_HEAD_OF.keys() - ARCHITECTURES))
def test_the_head_of_a_type_without_an_entry_gives_the_models_own_logits(other):
    torch.manual_seed(0)
    sizes = SIZES | {"embedding_size": 12 if other in ("convbert", "roformer") else 16, "entity_vocab_size": 8}
    sizes |= {"intermediate_size": 64, "languages": ["en"], "default_language": "en"} if other == "xmod" else {}
    default = AutoConfig.for_model(other)
    config = AutoConfig.for_model(other, **{key: value for key, value in sizes.items() if hasattr(default, key)})
    model = AutoModelForMaskedLM.from_config(config).eval()
    ids = torch.arange(5, 11)[None]
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids)[0]
        assert torch.allclose(mlm_head(model)(hidden), model(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(WITH_NEXT_SENTENCE))
def test_the_types_with_a_next_sentence_head_have_it(kind):
    with torch.device("meta"):
        model = AutoModelForPreTraining.from_config(AutoConfig.for_model(kind))
    assert isinstance(model.cls.seq_relationship, torch.nn.Linear)


def test_check_the_tokenizer_and_the_model_agree_on_the_number_of_positions(kind, folder):
    """CamemBERT and MPNet number their positions from the padding id + 1, as RoBERTa does."""
    positions = usable_positions(json.loads((folder / "config.json").read_text()))
    assert load_tokenizer(folder).model_max_length == positions
    model = load_masked_lm(folder).eval()
    with torch.no_grad():
        model(input_ids=torch.full((1, positions), 5))
        if kind != "modernbert":  # rotary positions have no table that ends
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, positions + 1), 5))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("bert.encoder.layer.11.output.dense.weight", ("bert.encoder.layer.", 11, ".output.dense.weight")),
        ("model.layers.21.attn.Wqkv.weight", ("model.layers.", 21, ".attn.Wqkv.weight")),
        (
            "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight",
            ("albert.encoder.albert_layer_groups.0.albert_layers.", 0, ".ffn.weight"),
        ),
    ],
)
def test_a_name_is_split_at_the_number_of_its_layer(name, parts):
    assert split_layer(name) == parts
