"""Operations and their quantizers: found in every model family, bypassed temporarily, or kept in FP32."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from tests.helpers.quantization import LAYER, PER_TENSOR, STATIC, same, state_of
from toolkit.ir.conformance import mismatches
from toolkit.ir.inspect import inspect_ir
from toolkit.quantization import nncf
from toolkit.quantization.operations import (
    QuantizedOp,
    bypassed,
    possible_ops,
    quantizable_ops,
    quantized_ops,
    quantizers,
    return_to_fp32,
)
from toolkit.recipe import Quantization


def test_operations_are_listed_in_forward_order_with_their_own_quantizers(case, default):
    ops = quantized_ops(default, case.batches[0])
    assert list(ops) == list(quantizable_ops(case.model, case.batches[0]))
    names = [f"{LAYER}1.{part}" for part in ("attention.self.query", "attention.self", "output.dense")]
    assert [list(ops).index(n) for n in names] == sorted(list(ops).index(n) for n in names)
    assert {name for name, op in ops.items() if op.kind == "MatMul"} == {f"{LAYER}{i}.attention.self" for i in (0, 1)}
    assert all(op.weight_hooks or op.kind == "MatMul" for op in ops.values())
    assert all(bool(op.input_hooks) == (op.kind != "Embedding") for op in ops.values())
    hooks = [hook for op in ops.values() for hook in (*op.weight_hooks, *op.input_hooks)]
    assert sorted(hooks) == sorted(quantizers(default))  # each belongs to exactly one operation


@pytest.mark.parametrize("changes", [{}, STATIC], ids=["training", "static"])
def test_bypassing_everything_gives_fp32_and_leaves_no_trace(case, changes):
    model, _ = case.quantized(**changes)
    ops = quantized_ops(model, case.batches[0])
    before, logits, plain = state_of(model), case.logits(model), case.logits(case.model)
    with contextlib.suppress(KeyboardInterrupt), bypassed(model, list(ops), ops):
        np.testing.assert_allclose(case.logits(model), plain, atol=1e-5)
        raise KeyboardInterrupt
    assert same(before, state_of(model))
    assert np.array_equal(case.logits(model), logits)
    assert np.abs(logits - plain).max() > 1e-3


@pytest.mark.parametrize("changes", [{}, STATIC], ids=["training", "static"])
def test_returned_operations_compute_as_bypassed_ones_and_are_in_fp32_in_the_ir(case, changes, tmp_path):
    model, section = case.quantized(**changes)
    ops = quantized_ops(model, case.batches[0])
    names = [f"{LAYER}0.output.dense", f"{LAYER}1.attention.self", "bert.embeddings.word_embeddings", "classifier"]
    with bypassed(model, names, ops):
        logits = case.logits(model)
    for name in names:
        return_to_fp32(model, [name], ops)
    assert np.array_equal(case.logits(model), logits)
    assert list(quantized_ops(model, case.batches[0])) == [name for name in ops if name not in names]

    ir = case.export(model, tmp_path / "ir")
    assert np.abs(ir - logits).max() <= 0.05 * np.ptp(logits)
    assert mismatches(inspect_ir(tmp_path / "ir"), section, names) == []
    assert len(mismatches(inspect_ir(tmp_path / "ir"), section)) >= len(names)

    (tmp_path / "saved").mkdir()
    nncf.save(model, tmp_path / "saved")
    again = nncf.load(tmp_path / "saved", case.plain)
    assert np.array_equal(case.logits(again), logits)
    return_to_fp32(again, list(ops), ops)  # biases from before the correction are kept on disk too
    np.testing.assert_allclose(case.logits(again), case.logits(case.model), atol=1e-5)


def test_a_quantizer_with_two_users_goes_with_the_second(case):
    model, _ = case.quantized()
    real = quantized_ops(model, case.batches[0])
    query, key = (real[f"{LAYER}0.attention.self.{n}"] for n in ("query", "key"))
    shared = QuantizedOp("key", "Linear", key.weight_hooks, query.input_hooks)
    ops = {query.name: query, "key": shared}
    return_to_fp32(model, [query.name], ops)
    assert query.weight_hooks[0] not in quantizers(model)
    assert query.input_hooks[0] in quantizers(model)
    return_to_fp32(model, ["key"], ops)
    assert not {*key.weight_hooks, *query.input_hooks} & set(quantizers(model))


FAMILIES = {
    "DistilBert": (
        {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
        "transformer.layer.1.attention",
        "q_lin",
    ),
    "Roberta": (
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        "encoder.layer.1.attention.self",
        "query",
    ),
    "MPNet": (
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        "encoder.layer.1.attention.attn",
        "q",
    ),
    "ModernBert": (  # queries and keys are parts of one output, rotated by their positions
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "pad_token_id": 0,
        },
        "layers.1.attn",
        "Wqkv",
    ),
}


def test_a_feed_forward_three_times_as_wide_is_no_attention():
    config = BertConfig(hidden_size=32, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    found = possible_ops(BertModel(config))
    assert [name for name, kind in found.items() if kind == "MatMul"] == ["encoder.layer.0.attention.self"]


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_have_their_operations_found_by_the_graph(family, tmp_path):
    import transformers

    sizes, attention, query = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(vocab_size=100, max_position_embeddings=40, **sizes)
    plain = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 100, (2, 12), generator=generator) for _ in range(4)]
    batches = [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids]
    model = nncf.quantize(plain, batches, Quantization(overflow_fix="disable"))
    ops = quantized_ops(model, batches[0])
    linears = {n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear)}
    tables = {n for n, m in plain.named_modules() if isinstance(m, torch.nn.Embedding)}
    attention = f"{plain.base_model_prefix}.{attention}"
    assert {n for n, op in ops.items() if op.kind == "Linear"} == linears
    assert {n for n, op in ops.items() if op.kind == "Embedding"} == tables
    assert {n for n, op in ops.items() if op.kind == "MatMul"} == {attention, attention.replace(".1.", ".0.")}
    assert set(quantizers(model)) == set().union(*(op.hooks for op in ops.values()))

    return_to_fp32(model, [attention, f"{attention}.{query}"], ops)
    kept = [n for n in ops if n not in (attention, f"{attention}.{query}")]
    assert list(quantized_ops(model, batches[0])) == kept
    return_to_fp32(model, kept, ops)
    with torch.no_grad():
        assert torch.equal(model(**batches[0]).logits, plain(**batches[0]).logits)


def test_layers_that_share_their_weights_are_one_operation(case):
    from transformers import AlbertConfig, AlbertForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    plain = AlbertForSequenceClassification(AlbertConfig(vocab_size=400, embedding_size=16, **sizes)).eval()
    model = nncf.quantize(plain, case.batches, Quantization(overflow_fix="disable", op_wise={"query": PER_TENSOR}))
    ops = quantized_ops(model, case.batches[0])
    query = next(op for name, op in ops.items() if name.endswith("attention.query"))
    assert len(query.weight_hooks) == len(query.input_hooks) == 3
    assert not any(quantizers(model)[hook].per_channel for hook in query.weight_hooks)
    return_to_fp32(model, list(ops), ops)
    with torch.no_grad():
        assert torch.equal(model(**case.batches[0]).logits, plain(**case.batches[0]).logits)


def test_a_quantized_model_still_trains(case, default):
    model = copy.deepcopy(default).train()
    batch = case.batches[0]
    model(**batch).logits.square().sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert any("_scale_param_storage" in n for n in gradients)
    assert f"{LAYER}0.output.dense.weight" in gradients


def test_edited_quantizers_train_too(case):
    symmetric = {"weight": {"granularity": "per_tensor"}, "activation": {"scheme": "sym"}}
    model, _ = case.quantized(op_wise={"layer.0.output": symmetric})
    model.train()(**case.batches[0]).logits.square().sum().backward()
    op = quantized_ops(model, case.batches[0])[f"{LAYER}0.output.dense"]
    for hook in op.hooks:
        assert quantizers(model)[hook]._scale_param_storage.grad.abs().sum() > 0
