"""Architectures whose encoder layers become one operation, and one whose layers do not."""

import numpy as np
import openvino as ov
import pytest
import torch
import transformers

from toolkit.ir.convert import traceable_masks
from toolkit.ir.runtime import MODEL, core, read_ir
from toolkit.ir.sparse_engine import to_sparse_engine

SIZES = {
    **{"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 64, "max_position_embeddings": 64},
}
DISTILBERT = {
    "vocab_size": 100,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 64,
}


def pruned(architecture: str, head: str, **config):
    torch.manual_seed(0)
    settings = getattr(transformers, f"{architecture}Config")(**config)
    model = getattr(transformers, f"{architecture}For{head}")(settings).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.02)  # converters drop biases that are zero
            if "layer." in name and parameter.ndim == 2:
                parameter *= 3 * (torch.rand_like(parameter) > 0.8)
    return model


@pytest.mark.parametrize(
    ("architecture", "head", "config", "operations"),
    [
        ("Bert", "QuestionAnswering", SIZES, {"SparseEncoder": 1}),
        ("Bert", "SequenceClassification", SIZES | {"hidden_act": "relu"}, {"SparseEncoder": 1}),
        ("Roberta", "SequenceClassification", SIZES, {"SparseEncoder": 1}),
        ("Electra", "SequenceClassification", SIZES | {"embedding_size": 32}, {"SparseEncoder": 1}),
        ("DistilBert", "SequenceClassification", DISTILBERT, {"SparseEncoder": 1}),
        ("Bert", "SequenceClassification", SIZES | {"hidden_act": "silu"}, {"SparseLinear": 8}),
        ("MPNet", "SequenceClassification", SIZES, {"SparseLinear": 6}),  # relative positions are added to the scores
    ],
)
def test_layers_of_known_form_become_one_operation_and_others_stay_right(
    tmp_path, architecture, head, config, operations
):
    model = pruned(architecture, head, **config)
    ids = torch.randint(5, 90, (2, 16))
    with traceable_masks(), torch.no_grad():
        sample = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        converted = ov.convert_model(model, example_input=sample)
    converted.reshape({port: ov.PartialShape([-1, -1]) for port in converted.inputs})
    (tmp_path / "plain").mkdir()
    ov.save_model(converted, tmp_path / "plain" / MODEL, compress_to_fp16=False)
    to_sparse_engine(tmp_path / "plain", tmp_path / "engine")
    names = [op.get_type_name() for op in read_ir(tmp_path / "engine").get_ordered_ops()]
    assert {name: names.count(name) for name in set(names) if name.startswith("Sparse")} == operations
    mask = (np.arange(20) < np.array([20, 7, 13])[:, None]).astype(np.int64)
    inputs = {"input_ids": np.random.default_rng(0).integers(5, 90, (3, 20)), "attention_mask": mask}
    wanted, got = (
        core().compile_model(read_ir(tmp_path / name), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)
        for name in ("plain", "engine")
    )
    for one, other in zip(wanted.values(), got.values(), strict=True):
        valid = mask.astype(bool) if head == "QuestionAnswering" else slice(None)
        np.testing.assert_allclose(other[valid], one[valid], atol=1e-4 * np.ptp(one))
