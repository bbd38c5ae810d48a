"""Exported IRs against their torch models, where layers attend to a window of the text."""

import copy

import numpy as np
import pytest
import torch
from optimum.intel import OVModelForSequenceClassification
from transformers import AutoModelForSequenceClassification
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sliding_window_bidirectional_mask_function

from tests.helpers.encoders import tiny_encoders
from toolkit.ir.convert import attention_mask_of, export_ir
from toolkit.ir.runtime import core, read_ir
from toolkit.models.load import load_tokenizer

REACH = 4
LENGTHS = (3, 128, 2, 1, 40, 9)  # a padded text ends within, at and far beyond what a window reaches


def padded(lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    mask = torch.tensor([[int(i < n) for i in range(max(lengths))] for n in lengths])
    return {"input_ids": torch.randint(5, 300, mask.shape) * mask + (1 - mask), "attention_mask": mask}


@pytest.fixture(scope="module", params=["cls", "mean"])
def exported(request, tiny_bert, tiny_text, tmp_path_factory):
    """A tiny ModernBERT classifier, and the folder of its IR, which was traced with texts of other lengths."""
    source = tiny_encoders(tiny_bert, tiny_text, tmp_path_factory)["modernbert"]
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=3, classifier_pooling=request.param
    ).eval()
    folder = tmp_path_factory.mktemp("ir")
    export_ir(model, load_tokenizer(source), folder, padded((7, 5)))
    return model, folder


def test_padded_texts_longer_than_the_window_get_torchs_logits(exported):
    model, folder = exported
    batch = padded(LENGTHS)
    with torch.no_grad():
        wanted = model(**batch).logits.numpy()
    compiled = core().compile_model(read_ir(folder), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got = compiled({name: value.numpy() for name, value in batch.items()})[0]
    assert np.ptp(wanted, axis=0).min() > 0.1  # the logits depend on the text
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    for row, length in enumerate(LENGTHS):  # and not on the padding
        alone = {name: value[row : row + 1, :length].numpy() for name, value in batch.items()}
        np.testing.assert_allclose(compiled(alone)[0][0], wanted[row], atol=1e-5)


def test_the_window_is_part_of_the_ir(exported):
    """A model that attends to everything gives other logits: the comparison above sees the window."""
    model, _ = exported
    batch = padded(LENGTHS)
    wide = copy.deepcopy(model)
    wide.config.local_attention = 256
    with torch.no_grad():
        assert (wide.eval()(**batch).logits - model(**batch).logits).abs().max() > 1e-2


def test_padding_that_no_token_is_near_leaves_the_gradients_finite(exported):
    model = copy.deepcopy(exported[0]).train()
    model(**padded((3, 128))).logits.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_optimum_intel_opens_the_folder(exported):
    model, folder = exported
    batch = padded(LENGTHS)
    opened = OVModelForSequenceClassification.from_pretrained(folder, ov_config={"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        assert torch.allclose(opened(**batch).logits, model(**batch).logits, atol=1e-5)


@pytest.mark.parametrize("reach", [1, REACH, 200])
def test_the_mask_is_transformers_own_for_every_query_that_is_a_token(reach):
    padding = padded(LENGTHS)["attention_mask"]
    count, length = padding.shape
    wanted = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](
        batch_size=count,
        q_length=length,
        kv_length=length,
        mask_function=sliding_window_bidirectional_mask_function(reach),
        attention_mask=padding.bool(),
        allow_is_causal_skip=False,
    )
    mask = attention_mask_of(padding, reach)
    tokens = padding.bool()[:, None, :]
    assert torch.equal(mask[:, 0][tokens[:, 0]], wanted[:, 0][tokens[:, 0]])
    assert mask.any(-1).all()  # no softmax of nothing
    assert torch.equal(attention_mask_of(padding, None)[:, 0, 0], padding.bool())
