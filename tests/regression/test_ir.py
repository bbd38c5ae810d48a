"""The exported IR against its torch model and mask: zeros per MatMul, i8 storage and execution, same predictions."""

import numpy as np
import pytest
import torch

from tests.helpers.executed import executed
from tests.helpers.models import load_classifier
from toolkit.data.batches import model_inputs, pad
from toolkit.data.tasks import load_task
from toolkit.ir.convert import export_ir
from toolkit.ir.inspect import inspect_ir
from toolkit.measure.accuracy import predict_ir
from toolkit.models.load import load_tokenizer, prunable_matrices, save_checkpoint
from toolkit.quantization import nncf
from toolkit.recipe import Quantization, Task
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.mask_file import MASK_FILE
from toolkit.training.evaluation import predict


@pytest.fixture(scope="module")
def sparse(tiny_bert, tiny_task_files):
    """(classifier with 90 % zeros in its encoder, its mask, tokenizer, task); logits of ordinary size."""
    tokenizer = load_tokenizer(tiny_bert)
    section = Task(train=str(tiny_task_files.train), dev=str(tiny_task_files.dev), max_seq_length=16)
    task = load_task("toy", section, tokenizer)
    torch.manual_seed(0)
    model = load_classifier(tiny_bert, task.labels).eval()
    weights = {n: m.weight for n, m in prunable_matrices(model).items()}
    with torch.no_grad():
        for weight in (*weights.values(), model.classifier.weight, model.bert.pooler.dense.weight):
            weight *= 8  # the fresh weights of a tiny model are too small to tell formats apart
    mask = SparsityMask({n: torch.rand_like(w) >= 0.9 for n, w in weights.items()})
    mask.apply_(weights)
    return model, mask, tokenizer, task


def exported(model, tokenizer, task, folder):
    sample = model_inputs(pad([task.dev[0], task.dev[1]], tokenizer.pad_token_id))
    export_ir(model, tokenizer, folder, sample)
    return predict_ir(folder, task.dev, tokenizer.pad_token_id, per_token=False)


def quantized(sparse, **changes):
    model, _, tokenizer, task = sparse
    batches = nncf.calibration_batches(lambda f: pad(f, tokenizer.pad_token_id), task.train, 16)
    return nncf.quantize(model, batches, Quantization.model_validate(changes))


def encoder_matmuls(folder, mask):
    found = [m for m in inspect_ir(folder).matmuls if f"{m.module}.weight" in mask.tensors]
    assert len(found) == len(mask.tensors)
    return found


def test_fp32_ir_answers_as_torch_does_and_keeps_every_zero(sparse, tmp_path):
    model, mask, tokenizer, task = sparse
    logits = predict(model, task.dev, tokenizer.pad_token_id)
    np.testing.assert_allclose(exported(model, tokenizer, task, tmp_path), logits, atol=1e-5)
    matmuls = encoder_matmuls(tmp_path, mask)
    assert sorted(m.zero_fraction for m in matmuls) == pytest.approx(sorted(mask.per_matrix().values()))
    assert {m.stored_type for m in matmuls} == {"f32"}
    assert {(m.weight_granularity, m.weight_scheme, m.activation_scheme, m.largest_code) for m in matmuls} == {
        ("", "", "", 0)
    }
    tables = inspect_ir(tmp_path).embeddings
    assert {e.module.rpartition(".")[2] for e in tables} == {
        f"{kind}_embeddings" for kind in ("word", "token_type", "position")
    }
    assert {(e.stored_type, e.weight_granularity) for e in tables} == {("f32", "")}
    assert set(executed(tmp_path).values()) == {"f32"}


def test_int8_ir_stores_i8_keeps_every_zero_and_is_executed_in_8_bits(sparse, tmp_path):
    _, mask, tokenizer, task = sparse
    model = quantized(sparse)
    logits = predict(model, task.dev, tokenizer.pad_token_id)
    found = exported(model, tokenizer, task, tmp_path)
    assert np.abs(found - logits).max() <= 0.05 * np.ptp(logits)
    matmuls = encoder_matmuls(tmp_path, mask)
    assert {m.stored_type for m in matmuls} == {"i8"}
    assert all(m.input_fake_quantized and m.activation_scheme for m in matmuls)
    assert {(m.weight_granularity, m.weight_scheme) for m in matmuls} == {("per_channel", "sym")}
    pruned = sorted(mask.per_matrix().values())
    assert all(z >= p - 1e-9 for z, p in zip(sorted(m.zero_fraction for m in matmuls), pruned, strict=True))
    precisions = executed(tmp_path)
    assert {precisions[name.removesuffix(".weight")] for name in mask.tensors} <= {"i8", "u8"}


def test_exporting_leaves_the_torch_model_as_it_was(sparse, tmp_path):
    model, _, tokenizer, task = sparse
    before = {n: v.clone() for n, v in model.state_dict().items()}
    exported(model, tokenizer, task, tmp_path)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert np.isfinite(predict(model, task.dev, tokenizer.pad_token_id)).all()


def test_optimum_intel_opens_the_folder_and_gives_the_same_logits(sparse, tmp_path):
    from optimum.intel.openvino import OVModelForSequenceClassification
    from transformers import AutoTokenizer

    _, _, tokenizer, task = sparse
    found = exported(quantized(sparse), tokenizer, task, tmp_path)
    opened = OVModelForSequenceClassification.from_pretrained(
        tmp_path, export=False, ov_config={"INFERENCE_PRECISION_HINT": "f32"}
    )
    texts = [text for (text,) in task.dev.texts]
    inputs = AutoTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="pt")
    np.testing.assert_allclose(opened(**inputs).logits.numpy(), found, atol=1e-4 + 0.01 * np.ptp(found))


def test_the_openvino_tokenizer_beside_the_model_gives_the_same_ids(sparse, tmp_path):
    import openvino as ov
    import openvino_tokenizers  # noqa: F401 - registers the tokenizer's operations

    model, _, tokenizer, task = sparse
    exported(model, tokenizer, task, tmp_path)
    compiled = ov.Core().compile_model(tmp_path / "openvino_tokenizer.xml", "CPU")
    text = task.dev.texts[0][0]
    assert compiled([text])["input_ids"].tolist()[0] == tokenizer(text)["input_ids"]


def test_a_saved_quantized_model_opens_bit_for_bit(sparse, tmp_path):
    _, _, tokenizer, task = sparse
    model = quantized(sparse)
    nncf.save(model, tmp_path)
    again = nncf.load(tmp_path, lambda: load_classifier(sparse_folder(sparse, tmp_path), task.labels))
    first, second = (predict(m, task.dev, tokenizer.pad_token_id) for m in (model, again))
    assert np.array_equal(first, second)


def sparse_folder(sparse, tmp_path):
    model, mask, tokenizer, _ = sparse
    save_checkpoint(model, tokenizer, tmp_path / "plain")
    mask.save(tmp_path / "plain" / MASK_FILE)
    return tmp_path / "plain"


def scales(model):
    """Number of scales of each weight quantizer: 1 per tensor, or one per row."""
    return {n: p.numel() for n, p in model.named_parameters() if "_scale_param_storage" in n}


def test_granularity_scheme_and_embeddings_of_the_recipe_are_honoured(sparse, tmp_path):
    _, _, tokenizer, task = sparse
    per_tensor = quantized(sparse, model_wise={"weight": {"granularity": "per_tensor"}})
    assert set(scales(per_tensor).values()) == {1}
    assert max(scales(quantized(sparse)).values()) > 1

    symmetric = dict(quantized(sparse, model_wise={"activation": {"scheme": "sym"}}).named_parameters())
    assert not any("_input_range_param_storage" in name for name in symmetric)
    assert any("_input_range_param_storage" in name for name, _ in quantized(sparse).named_parameters())

    sizes = {}
    for dtype in ("int8", "fp32"):
        folder = tmp_path / dtype
        model = quantized(sparse, optype_wise={"Embedding": {"weight": {"dtype": dtype}}})
        exported(model, tokenizer, task, folder)
        sizes[dtype] = (folder / "openvino_model.bin").stat().st_size
    assert sizes["int8"] < 0.6 * sizes["fp32"]


def test_overflow_fix_is_read_off_the_cpu(monkeypatch):
    monkeypatch.setattr("toolkit.core.machine.isa", lambda: {"avx2"})
    assert nncf.resolve_overflow_fix(Quantization()) == "enable"
    monkeypatch.setattr("toolkit.core.machine.isa", lambda: {"avx2", "avx512_vnni"})
    assert nncf.resolve_overflow_fix(Quantization()) == "disable"
    assert nncf.resolve_overflow_fix(Quantization(overflow_fix="enable")) == "enable"
    seven = Quantization.model_validate({"model_wise": {"weight": {"bit": 7}}})
    assert nncf.resolve_overflow_fix(seven) == "enable"
