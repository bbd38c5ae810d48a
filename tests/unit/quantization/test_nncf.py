"""Quantization by the recipe: every setting is verified in the IR, per matrix; zeros and predictions are preserved."""

import logging

import numpy as np
import pytest
import torch

from tests.helpers.executed import quantizes_at_run_time
from tests.helpers.quantization import FP32, LAYER, PER_TENSOR, STATIC, same, state_of
from toolkit.core import machine
from toolkit.core.errors import UserError
from toolkit.ir.conformance import mismatches
from toolkit.ir.inspect import constant_of, inspect_ir, zeros_of
from toolkit.quantization import nncf
from toolkit.quantization.operations import quantizable_ops, quantizers
from toolkit.quantization.per_operation import check_names
from toolkit.recipe import Quantization


def zero_positions(folder):
    """Module -> positions of zero weights, as the IR says."""
    import openvino as ov

    ops = ov.Core().read_model(folder / "openvino_model.xml").get_ordered_ops()
    return {
        op.get_friendly_name().removeprefix("__module.").partition("/")[0]: zeros_of(op)
        for op in ops
        if op.get_type_name() == "MatMul" and constant_of(op) is not None
    }


REQUESTS = {
    "default": {},
    "per tensor": {"model_wise": PER_TENSOR},
    "symmetric activations": {"model_wise": {"activation": {"scheme": "sym"}}},
    "one matrix in fp32": {"op_wise": {r"layer\.1\.attention\.self\.query$": FP32}},
    "one weight in fp32": {"op_wise": {r"layer\.1\.output\.dense$": {"weight": {"dtype": "fp32"}}}},
    "one matrix per tensor": {"op_wise": {r"layer\.0\.intermediate": PER_TENSOR}},
    "one matrix per channel": {
        "model_wise": PER_TENSOR,
        "op_wise": {r"layer\.0\.output\.dense": {"weight": {"granularity": "per_channel"}}},
    },
    "one symmetric activation": {"op_wise": {r"layer\.0\.output\.dense": {"activation": {"scheme": "sym"}}}},
    "one asymmetric activation": {
        "model_wise": {"activation": {"scheme": "sym"}},
        "op_wise": {r"layer\.0\.output\.dense": {"activation": {"scheme": "asym"}}},
    },
    "embeddings in fp32": {"optype_wise": {"Embedding": {"weight": {"dtype": "fp32"}}}},
    "attention's product in fp32": {"optype_wise": {"MatMul": FP32}},
    "7 bits": {"model_wise": {"weight": {"bit": 7}}},
    "static": STATIC,
    "static without recipes": STATIC | {"recipes": {"smooth_quant": False, "fast_bias_correction": False}},
    "static, one in fp32, one per tensor": STATIC | {"op_wise": {"layer.0.output": FP32, "layer.1.output": PER_TENSOR}},
    "dynamic": {"approach": "post_training_dynamic_quant"},
    "dynamic, one in fp32, one per tensor": {
        "approach": "post_training_dynamic_quant",
        "op_wise": {"layer.0.output": FP32, "layer.1.output": PER_TENSOR},
    },
}


@pytest.mark.parametrize("changes", REQUESTS.values(), ids=REQUESTS.keys())
def test_the_ir_has_what_the_recipe_asks_for(case, changes, tmp_path):
    before = {n: v.clone() for n, v in case.model.state_dict().items()}
    model, section = case.quantized(**changes)
    logits = case.logits(model)
    ir = case.export(model, tmp_path)
    assert mismatches(inspect_ir(tmp_path), section) == []
    assert expected(section) == found(inspect_ir(tmp_path))

    assert all(torch.equal(v, before[n]) for n, v in case.model.state_dict().items())
    limit = 0.15 if section.approach == "post_training_dynamic_quant" else 0.05
    assert np.abs(ir - logits).max() <= limit * np.ptp(logits)
    zeros = zero_positions(tmp_path)
    for name, kept in case.mask.tensors.items():
        assert zeros[name.removesuffix(".weight")][~kept.numpy()].all()

    (tmp_path / "saved").mkdir()
    nncf.save(model, tmp_path / "saved")
    assert np.array_equal(case.logits(nncf.load(tmp_path / "saved", case.plain)), logits)


def test_a_saved_model_is_loaded_without_log_messages_of_the_library(case, tmp_path):
    import nncf as library

    nncf.save(case.quantized()[0], tmp_path)
    library.set_log_level(logging.INFO)  # as in a process that has quantized nothing
    nncf.load(tmp_path, case.plain)
    assert not logging.getLogger("nncf").isEnabledFor(logging.INFO)


LINEARS = [
    f"{LAYER}{i}.{part}"
    for i in (0, 1)
    for part in (
        *("attention.self.query", "attention.self.key", "attention.self.value"),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    )
] + ["bert.pooler.dense", "classifier"]
EMBEDDINGS = [f"bert.embeddings.{kind}_embeddings" for kind in ("word", "token_type", "position")]


def expected(section):
    """Module -> (stored type, granularity, quantized input), as the recipe says in its own words."""
    table = {}
    for names, kind in ((LINEARS, "Linear"), (EMBEDDINGS, "Embedding")):
        for name in names:
            wanted = section.wanted(name, kind)
            quantized = wanted.weight.dtype == wanted.activation.dtype == "int8"
            active = quantized and kind == "Linear" and section.approach != "post_training_dynamic_quant"
            table[name] = ("i8", wanted.weight.granularity, active) if quantized else ("f32", "", False)
    static = section.approach != "post_training_dynamic_quant"
    for i in (0, 1):
        name = f"{LAYER}{i}.attention.self"
        table[name] = static and section.wanted(name, "MatMul").activation.dtype == "int8"
    return table


def found(inspection):
    """The same table, as the IR says."""
    table = {m.module: (m.stored_type, m.weight_granularity, m.input_fake_quantized) for m in inspection.matmuls}
    table |= {e.module: (e.stored_type, e.weight_granularity, False) for e in inspection.embeddings}
    return table | {a.module: a.activation_scheme != "" for a in inspection.attentions}


def schemes(case, folder, **changes):
    case.export(case.quantized(**changes)[0], folder)
    return {m.module: m.activation_scheme for m in inspect_ir(folder).matmuls}


def test_the_scheme_of_activations_is_in_the_ir(case, tmp_path):
    one = f"{LAYER}0.output.dense"  # behind GELU: never symmetric by chance
    symmetric = {"activation": {"scheme": "sym"}}
    assert schemes(case, tmp_path / "asym")[one] == "asym"
    assert set(schemes(case, tmp_path / "sym", model_wise=symmetric).values()) == {"sym"}
    other = schemes(case, tmp_path / "one sym", op_wise={one: symmetric})
    assert (other[one], other[f"{LAYER}1.output.dense"]) == ("sym", "asym")
    other = schemes(case, tmp_path / "one", model_wise=symmetric, op_wise={one: {"activation": {"scheme": "asym"}}})
    assert {name for name, scheme in other.items() if scheme == "asym"} == {one}


def test_a_single_quantizer_is_what_nncf_gives_all(case):
    """The scale of one edited matrix equals that of a model with this setting everywhere."""
    for fix in ("disable", "enable"):
        edited, _ = case.quantized(op_wise={".*": PER_TENSOR}, overflow_fix=fix)
        whole, _ = case.quantized(model_wise=PER_TENSOR, overflow_fix=fix)
        edited, whole = quantizers(edited), quantizers(whole)
        assert edited.keys() == whole.keys()
        weights = [n for n in edited if n.endswith("__1.0")]
        assert len(weights) == len(LINEARS + EMBEDDINGS)
        assert all(torch.equal(edited[n].scale, whole[n].scale) for n in weights)


def test_7_bits_are_codes_up_to_64_also_after_weights_and_scales_have_moved(case, tmp_path):
    model, section = case.quantized(model_wise={"weight": {"bit": 7}}, op_wise={"layer.0": PER_TENSOR})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("query.weight"):
                parameter *= 1.1
            if "_scale_param_storage" in name:
                parameter *= 0.99
    case.export(model, tmp_path / "moved")
    assert any("7 bits" in what for what in mismatches(inspect_ir(tmp_path / "moved"), section))
    nncf.widen_to_7_bits(model, case.batches[0], section)
    case.export(model, tmp_path / "kept")
    assert mismatches(inspect_ir(tmp_path / "kept"), section) == []
    assert max(m.largest_code for m in inspect_ir(tmp_path / "kept").matmuls) == 64
    settled = state_of(model)
    nncf.widen_to_7_bits(model, case.batches[0], section)
    assert same(settled, state_of(model))


def test_static_quantization_does_what_its_recipes_say(case):
    off = {"smooth_quant": False, "fast_bias_correction": False}
    model, _ = case.quantized(**STATIC, recipes=off)
    assert not model.fp32_biases
    assert torch.equal(model.classifier.weight, case.model.classifier.weight)
    corrected, _ = case.quantized(**STATIC, recipes=off | {"fast_bias_correction": True})
    assert corrected.fp32_biases
    smooth, _ = case.quantized(**STATIC, recipes=off | {"smooth_quant": True})
    assert not smooth.fp32_biases
    assert not torch.equal(smooth.classifier.weight, case.model.classifier.weight)


@pytest.mark.parametrize("pattern", ["layer.7", "^query$"])
def test_an_expression_that_matches_nothing_is_an_error(case, pattern):
    with pytest.raises(UserError, match="matches no quantizable operation") as caught:
        case.quantized(op_wise={pattern: FP32})
    assert "bert.embeddings.word_embeddings" in caught.value.instead
    assert caught.value.where == "quantization.op_wise"


def test_a_type_of_operation_that_the_model_has_not_is_an_error():
    plain = torch.nn.Sequential(torch.nn.Linear(4, 4))
    ops = quantizable_ops(plain, {"input": torch.ones(1, 4)})
    assert ops == {"0": "Linear"}
    with pytest.raises(UserError, match="no MatMul") as caught:
        check_names(Quantization.model_validate({"optype_wise": {"MatMul": FP32}}), ops)
    assert caught.value.instead == "Linear"


def test_mismatches_name_each_operation_that_differs_from_the_recipe(case, default, tmp_path):
    case.export(default, tmp_path)
    inspection = inspect_ir(tmp_path)

    def breaches(**changes):
        return mismatches(inspection, Quantization.model_validate(changes))

    one = f"{LAYER}0.output.dense"
    assert breaches() == []
    assert any("expected per_tensor" in b for b in breaches(op_wise={one: PER_TENSOR}))
    assert any(b.startswith(one) and "expected f32" in b for b in breaches(op_wise={one: FP32}))
    assert any(
        b.startswith(one) and "expected sym" in b for b in breaches(model_wise={"activation": {"scheme": "sym"}})
    )
    assert any("word_embeddings" in b for b in breaches(optype_wise={"Embedding": FP32}))
    assert len([b for b in breaches(optype_wise={"MatMul": FP32}) if "queries and keys" in b]) == 2
    assert any("7 bits" in b for b in breaches(model_wise={"weight": {"bit": 7}}))
    assert any(b.startswith(one) for b in breaches(approach="post_training_dynamic_quant"))
    assert mismatches(inspection, Quantization(), returned=[one])
    assert mismatches(inspection, Quantization(), returned=["no.such.module"])


def test_a_static_ir_has_no_activations_quantized_at_run_time(case, default, tmp_path):
    case.export(default, tmp_path)
    assert not quantizes_at_run_time(tmp_path)


@pytest.mark.skipif(
    not machine.isa() & {"avx512_vnni", "avx_vnni"},
    reason="needs a CPU with VNNI: on others OpenVINO does not quantize activations at run time",
)
def test_a_dynamic_ir_has_activations_quantized_at_run_time(case, tmp_path):
    case.export(case.quantized(approach="post_training_dynamic_quant")[0], tmp_path)
    assert quantizes_at_run_time(tmp_path)
