"""Sparse engine: its IRs predict as the plain ones do, in any application that loads the extension."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13

from tests.helpers.quantization import Case
from toolkit.core.errors import UserError
from toolkit.ir import kernels
from toolkit.ir.inspect import inspect_ir
from toolkit.ir.runtime import MODEL, core, read_ir
from toolkit.ir.sparse_engine import NotSparseEnoughError, reference_ir, to_sparse_engine
from toolkit.measure import latency, memory
from toolkit.measure.accuracy import predict_ir
from toolkit.recipe import Performance

F32 = {"INFERENCE_PRECISION_HINT": "f32"}
LENGTHS = [(1, 1), (1, 16), (3, 7), (8, 33), (2, 128)]


@pytest.fixture(scope="module")
def case(tiny_bert, tiny_task_files):
    return Case(tiny_bert, tiny_task_files)


@pytest.fixture(scope="module")
def irs(case, tmp_path_factory):
    """Folder with the plain and the engine's IR of a sparse classifier, in FP32 and INT8, and INT8's reference."""
    kernels.build()
    folder = tmp_path_factory.mktemp("irs")
    case.export(case.model, folder / "fp32")
    case.export(case.quantized()[0], folder / "int8")
    for precision in ("fp32", "int8"):
        to_sparse_engine(folder / precision, folder / f"engine-{precision}")
        to_sparse_engine(folder / precision, folder / f"matrices-{precision}", whole_layers=False)
    for name, whole_layers in (("engine", True), ("matrices", False)):
        reference_ir(folder / "int8", folder / f"reference-{name}", whole_layers=whole_layers)
    return folder


def feed(compiled, batch, length, seed=0):
    ids = np.random.default_rng(seed).integers(5, 30, (batch, length))
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {port.get_any_name(): known[port.get_any_name()] for port in compiled.inputs}


def compiled(folder, **properties):
    return core().compile_model(read_ir(folder), "CPU", F32 | properties)


@pytest.mark.parametrize("name", ["engine-fp32", "matrices-fp32"])
def test_engine_answers_as_the_plain_ir_for_any_batch_and_length(irs, name):
    reference, engine = compiled(irs / "fp32"), compiled(irs / name)
    for batch, length in LENGTHS:
        wanted = reference(feed(reference, batch, length))[0]
        np.testing.assert_allclose(engine(feed(engine, batch, length))[0], wanted, atol=1e-4 * np.ptp(wanted) + 1e-6)


def test_engine_int8_keeps_the_labels_of_the_quantized_ir_within_its_rounding(case, irs):
    engine, plain = (
        predict_ir(irs / n, case.task.dev, case.tokenizer.pad_token_id, per_token=False)
        for n in ("engine-int8", "int8")
    )
    scores = [case.task.scores(logits)["accuracy"] for logits in (engine, plain)]
    assert abs(scores[0] - scores[1]) <= 0.03


def test_every_pruned_matrix_is_on_the_kernel_with_its_codes_and_zeros(case, irs):
    for precision, stored in (("fp32", "f32"), ("int8", "i8")):
        plain, engine = (
            {f"{m.module}.weight": m for m in inspect_ir(irs / name).matmuls}
            for name in (precision, f"engine-{precision}")
        )
        for name, share in case.mask.per_matrix().items():
            assert engine[name].stored_type == stored
            assert engine[name].shape == plain[name].shape
            assert engine[name].zero_fraction == pytest.approx(plain[name].zero_fraction)
            assert engine[name].zero_fraction >= share - 1e-6
            assert engine[name].largest_code == plain[name].largest_code
        assert {m.stored_type for n, m in engine.items() if n not in case.mask.tensors} == {"f32"}
        rounded = {n for n, m in engine.items() if m.input_fake_quantized}
        assert rounded == (set(case.mask.tensors) if precision == "int8" else set())


def test_all_layers_become_one_operation_and_embeddings_stay_8_bit(irs):
    operations = [op.get_type_name() for op in read_ir(irs / "engine-int8").get_ordered_ops()]
    assert operations.count("SparseEncoder") == operations.count("EmbeddingSum") == 1
    assert not {"FakeQuantize", "SparseLinear", "ScaledDotProductAttention", "MVN"} & set(operations)
    tables = inspect_ir(irs / "engine-int8").embeddings
    assert {t.stored_type for t in tables if t.shape[0] > 2} == {"i8"}
    assert (irs / "engine-int8" / "openvino_model.bin").stat().st_size < (
        irs / "engine-fp32" / "openvino_model.bin"
    ).stat().st_size


def test_without_whole_layers_each_becomes_three_operations(irs):
    for precision in ("fp32", "int8"):
        operations = [op.get_type_name() for op in read_ir(irs / f"matrices-{precision}").get_ordered_ops()]
        assert operations.count("SparseLinear") == 3 * 2  # Q with K and V; the attention's output; the feed-forward
        assert "SparseEncoder" not in operations


def test_gelu_by_tanh_and_four_row_blocks_are_found_and_right(tiny_bert, tiny_task_files, tmp_path):
    case = Case(tiny_bert, tiny_task_files)
    model = case.model
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.intermediate.intermediate_act_fn = torch.nn.GELU(approximate="tanh")
            for matrix in (layer.intermediate.dense, layer.output.dense):
                rows, columns = matrix.weight.shape
                kept = torch.rand(rows // 4, columns) >= 0.9
                matrix.weight.copy_(torch.randn(rows, columns) * kept.repeat_interleave(4, dim=0))
    case.export(model, tmp_path / "plain")
    plain = compiled(tmp_path / "plain")
    wanted = plain(feed(plain, 3, 20))[0]
    for whole_layers in (True, False):
        to_sparse_engine(tmp_path / "plain", tmp_path / "engine", whole_layers=whole_layers)
        operations = read_ir(tmp_path / "engine").get_ordered_ops()
        found = [op.get_attributes() for op in operations if op.get_type_name().startswith("Sparse")]
        if whole_layers:
            assert [a["activation"] for a in found] == ["gelu_tanh"]
        else:
            chains = [(a["pattern"], a["activation"]) for a in found if a["chain"]]
            assert chains == [("4x1", "gelu_tanh")] * 2
        engine = compiled(tmp_path / "engine")
        np.testing.assert_allclose(engine(feed(engine, 3, 20))[0], wanted, atol=1e-4 * np.ptp(wanted))


@pytest.fixture(scope="module")
def blocks(tiny_bert, tiny_task_files, tmp_path_factory):
    """Folder with the INT8 IR of a classifier pruned in blocks of four rows, the engine's and its reference."""
    kernels.build()
    folder = tmp_path_factory.mktemp("blocks")
    case = Case(tiny_bert, tiny_task_files, block=4)
    case.export(case.quantized()[0], folder / "int8")
    for name, whole_layers in (("engine", True), ("matrices", False)):
        assert to_sparse_engine(folder / "int8", folder / name, whole_layers=whole_layers).in_8_bits == 2 * 6
        reference_ir(folder / "int8", folder / f"reference-{name}", whole_layers=whole_layers)
    return folder


def test_four_row_blocks_of_codes_keep_their_activations_in_8_bits(blocks):
    names = ("engine", "matrices")
    operations = [op for name in names for op in read_ir(blocks / name).get_ordered_ops()]
    attributes = [op.get_attributes() for op in operations if op.get_type_name().startswith("Sparse")]
    assert [len(a["input_ranges"]) for a in attributes if "heads" in a] == [2 * 2 * 6]
    shapes = [(len(a["rows"]), len(a["input_ranges"])) for a in attributes if "rows" in a]
    assert sorted(shapes) == [(1, 2), (1, 2), (2, 4), (2, 4), (3, 6), (3, 6)]
    quantizers = [op for op in read_ir(blocks / "int8").get_ordered_ops() if op.get_type_name() == "FakeQuantize"]
    ends = {float(np.ravel(op.input_value(i).get_node().data)[0]) for op in quantizers for i in (1, 2)}
    assert {float(end) for a in attributes for end in a["input_ranges"]} <= ends  # to the last bit
    plain, engine = ({m.module: m for m in inspect_ir(blocks / n).matmuls} for n in ("int8", "engine"))
    for name, matrix in engine.items():
        assert matrix.input_fake_quantized == (plain[name].zero_fraction > 0.7)


@pytest.mark.parametrize("whole_layers", [True, False])
@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
def test_products_in_8_bits_equal_those_of_floats_with_rounded_activations(irs, blocks, pattern, whole_layers):
    name = "engine" if whole_layers else "matrices"
    reference = compiled((irs if pattern == "1x1" else blocks) / f"reference-{name}")
    engine = compiled(irs / f"{name}-int8" if pattern == "1x1" else blocks / name)
    differences = []
    for batch, length in LENGTHS:
        wanted = reference(feed(reference, batch, length))[0]
        got = engine(feed(engine, batch, length))[0]
        differences.append(np.abs(got - wanted).ravel() / np.ptp(wanted))
    differences = np.concatenate(differences)
    assert np.median(differences) < 1e-6
    assert differences.max() < 1e-3  # where the last bit of a float decides which of two levels is nearer


def test_dense_model_is_refused_with_the_share_of_zeros_that_it_would_need(case, irs, tmp_path):
    case.export(case.plain().eval(), tmp_path / "dense")
    with pytest.raises(UserError, match="the sparse kernels need 70%, or 50% in blocks of 4x1"):
        to_sparse_engine(tmp_path / "dense", tmp_path / "engine")


@pytest.mark.parametrize(
    ("rows_per_block", "share", "taken"), [(1, 0.6, False), (1, 0.7, True), (4, 0.4, False), (4, 0.5, True)]
)
def test_blocks_of_4x1_need_fewer_zeros_than_single_values(rows_per_block, share, taken, tmp_path):
    random = np.random.default_rng(0)
    units = random.permutation(np.arange(64 * 65 // rows_per_block) < round(share * 64 * 65 / rows_per_block) - 1)
    weights = random.normal(size=(64, 65)).astype(np.float32)
    weights[np.repeat(units.reshape(-1, 65), rows_per_block, axis=0)] = 0  # one unit below the share, as masks round
    x = opset13.parameter([-1, 65], np.float32, name="x")
    (tmp_path / "plain").mkdir()
    product = opset13.matmul(x, opset13.constant(weights), False, True)
    ov.save_model(ov.Model([product], [x]), tmp_path / "plain" / MODEL, compress_to_fp16=False)
    if taken:
        assert to_sparse_engine(tmp_path / "plain", tmp_path / "engine").operations == 1
    else:
        with pytest.raises(NotSparseEnoughError):
            to_sparse_engine(tmp_path / "plain", tmp_path / "engine")


def test_damaged_weights_are_refused_when_the_model_is_read_or_compiled(irs, tmp_path):
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (tmp_path / name).write_bytes((irs / "engine-int8" / name).read_bytes())
    data = bytearray((tmp_path / "openvino_model.bin").read_bytes())
    at = data.index(b"POFASPRS") + 300
    data[at] ^= 1
    (tmp_path / "openvino_model.bin").write_bytes(bytes(data))
    with pytest.raises((UserError, RuntimeError), match="damaged"):
        compiled(tmp_path)


def test_without_the_kernel_an_engine_ir_says_how_to_build_it(irs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="pruneofa kernels build"):
        read_ir(irs / "engine-int8")
    read_ir(irs / "int8")  # the plain one needs nothing


@pytest.mark.parametrize("streams", ["1", "2"])
@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
def test_eight_requests_of_a_thousand_runs_each_give_identical_results(irs, blocks, pattern, streams):
    """One stream of two threads shares a panel's rows between them; two streams run panels side by side."""
    folder = irs / "engine-int8" if pattern == "1x1" else blocks / "engine"
    model = compiled(folder, NUM_STREAMS=streams, INFERENCE_NUM_THREADS="2")
    inputs = feed(model, 1, 7)
    wanted = model(inputs)[0]
    wrong: list[int] = []

    def ask():
        request = model.create_infer_request()
        for i in range(1000):
            if not np.array_equal(request.infer(inputs)[model.outputs[0]], wanted):
                wrong.append(i)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_default_precision_of_the_cpu_is_taken_too(irs):
    """CPUs with AMX compute in bf16 by default."""
    exact = compiled(irs / "engine-fp32")
    default = core().compile_model(read_ir(irs / "engine-fp32"), "CPU")
    wanted = exact(feed(exact, 2, 16))[0]
    np.testing.assert_allclose(default(feed(default, 2, 16))[0], wanted, atol=0.05 * np.ptp(wanted) + 0.02)


def test_optimum_intel_opens_it_in_three_lines(irs):
    from optimum.intel import OVModelForSequenceClassification
    from optimum.intel.openvino import modeling_base

    modeling_base.core.add_extension(str(kernels.extension()))
    model = OVModelForSequenceClassification.from_pretrained(irs / "engine-fp32", ov_config=F32)
    plain = compiled(irs / "fp32")
    inputs = feed(plain, 2, 16)
    answer = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    np.testing.assert_allclose(answer.logits, plain(inputs)[0], atol=1e-4)


def test_benchmark_app_and_the_memory_of_a_process_are_measured_with_the_extension(case, irs, tmp_path):
    section = Performance(iteration=1, warmup=0, seconds=1, batch_sizes=(1,), sequence_length=16)
    models = {name: irs / name for name in ("fp32", "engine-fp32")}
    timed = latency.measure(models, case.task.dev, case.tokenizer.pad_token_id, section, tmp_path)
    assert [("-extensions" in t.command) for t in timed] == [False, True]
    assert all(t.rounds[0].median_ms > 0 for t in timed)
    ids = {n: case.task.dev[0][n] for n in ("input_ids", "attention_mask", "token_type_ids")}
    assert memory.peak_memory(irs / "engine-fp32", {n: [v] for n, v in ids.items()}) > 0


def test_commands_of_bench_can_be_run_again_as_shown(irs, tmp_path):
    models = [str(irs / "fp32"), str(irs / "engine-fp32")]
    options = ["--batch", "1", "--length", "16", "--rounds", "1", "--seconds", "1"]
    environment = os.environ | {"CI": "1", "COLUMNS": "60", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "toolkit", "bench", *models, *options]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    lines = [line for line in shown.splitlines() if "benchmark_app" in line]
    assert [line.partition(",")[0] for line in lines] == ["fp32", "engine-fp32"]
    (folder,) = tmp_path.glob("pruneofa-bench-*")
    assert f"cd {folder}\n" in shown
    program = str(Path(sys.executable).with_name("benchmark_app"))
    for line in lines:
        command = ["bash", "-c", line.partition(": ")[2].replace("benchmark_app", program)]
        again = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert again.returncode == 0, again.stdout
        assert "Throughput" in again.stdout


def test_fake_quantize_on_fp32_weights_gives_the_same_answers_as_plain(tmp_path):
    """Exported IRs never have it: the converter folds such weights to 8-bit codes."""
    rng = np.random.default_rng(4)
    weights = (rng.normal(size=(32, 64)) * (rng.random((32, 64)) > 0.9)).astype(np.float32)
    ends = np.abs(weights).max(axis=1, keepdims=True) + 0.1
    x = opset13.parameter([-1, 64], np.float32, name="x")
    quantized = opset13.fake_quantize(opset13.constant(weights), -ends, ends, -ends, ends, levels=255)
    product = opset13.matmul(x, quantized, False, True)
    (tmp_path / "plain").mkdir()
    ov.save_model(ov.Model([product], [x], "one"), tmp_path / "plain" / MODEL, compress_to_fp16=False)
    assert "FakeQuantize" in [op.get_type_name() for op in read_ir(tmp_path / "plain").get_ordered_ops()]
    assert len(to_sparse_engine(tmp_path / "plain", tmp_path / "engine").matrices) == 1
    values = rng.normal(size=(5, 64)).astype(np.float32)
    wanted = compiled(tmp_path / "plain")(values)[0]
    assert np.abs(wanted - values @ weights.T).max() > 1e-4  # they are rounded
    np.testing.assert_allclose(compiled(tmp_path / "engine")(values)[0], wanted, atol=1e-5)


def padded(compiled, lengths, total, seed=0):
    inputs = feed(compiled, len(lengths), total, seed)
    mask = np.arange(total) < np.array(lengths)[:, None]
    return {name: value * mask if name != "token_type_ids" else value for name, value in inputs.items()}


@pytest.mark.parametrize("name", ["engine-fp32", "matrices-fp32"])
def test_padded_sequences_of_a_batch_are_answered_as_in_the_plain_ir(irs, name):
    plain, engine = compiled(irs / "fp32"), compiled(irs / name)
    lengths = [1, 40, 17, 64]
    wanted = plain(padded(plain, lengths, 70))[0]
    np.testing.assert_allclose(engine(padded(engine, lengths, 70))[0], wanted, atol=1e-4 * np.ptp(wanted))


def encoder_ops(folder):
    return [op for op in read_ir(folder).get_ordered_ops() if op.get_type_name() == "SparseEncoder"]


@pytest.mark.parametrize("between", ["layers", "attention and feed-forward"])
def test_a_value_that_another_operation_reads_is_kept_and_right(irs, tmp_path, between):
    """As with `output_hidden_states`: a hidden state between two layers, or within a layer, is an output of its own."""
    model = read_ir(irs / "fp32")
    norms = [op for op in model.get_ordered_ops() if op.get_type_name() == "MVN"]
    read = norms[2 if between == "layers" else 1]  # after the embeddings, the first attention, the first layer
    following = next(iter(read.output(0).get_target_inputs())).get_node()
    while following.get_type_name() in ("Multiply", "Add") and len(following.output(0).get_target_inputs()) == 1:
        following = next(iter(following.output(0).get_target_inputs())).get_node()
    model.add_outputs([following.output(0)])
    (tmp_path / "plain").mkdir()
    ov.save_model(model, tmp_path / "plain" / MODEL, compress_to_fp16=False)
    to_sparse_engine(tmp_path / "plain", tmp_path / "engine")
    counts = [(len(op.inputs()) - 3) // 6 for op in encoder_ops(tmp_path / "engine")]
    assert counts == ([1, 1] if between == "layers" else [1])
    plain, engine = compiled(tmp_path / "plain"), compiled(tmp_path / "engine")
    inputs = feed(plain, 2, 20)
    for got, wanted in zip(engine(inputs).values(), plain(inputs).values(), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4 * np.ptp(wanted))


@pytest.mark.parametrize("exact", [False, True])
def test_the_reference_rounds_the_activations_that_the_engine_rounds(exact, irs, tmp_path):
    to_sparse_engine(irs / "int8", tmp_path / "engine", exact_activations=exact)
    reference_ir(irs / "int8", tmp_path / "reference", exact_activations=exact)
    reference_ir(irs / "int8", tmp_path / "other", exact_activations=not exact)
    engine = compiled(tmp_path / "engine")
    inputs = feed(engine, 2, 20)
    found, same, other = (
        np.asarray(next(iter(model(inputs).values())))
        for model in (engine, compiled(tmp_path / "reference"), compiled(tmp_path / "other"))
    )
    assert np.abs(found - same).max() < 0.2 * np.abs(found - other).max()


def test_activations_of_single_zeros_stay_in_fp32_if_they_shall_be_exact(irs, tmp_path, monkeypatch):
    widths, pack = set(), kernels.pack
    monkeypatch.setattr(kernels, "pack", lambda *values: (widths.add(values[4]), pack(*values))[1])
    summary = to_sparse_engine(irs / "int8", tmp_path, exact_activations=True)
    assert widths == {kernels.COLUMNS_OF_FLOATS}
    assert summary.in_8_bits == 0
    attributes = encoder_ops(tmp_path)[0].get_attributes()
    assert set(attributes["input_ranges"]) == set(attributes["attention_ranges"]) == {"none"}
