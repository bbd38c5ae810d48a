"""Accuracy and latency of IRs, on a tiny model written out with OpenVINO's own operations."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset13 as ops
import pytest

from toolkit.cli import bench
from toolkit.core.artifacts import Artifact, Context, NullProgress
from toolkit.core.errors import UserError
from toolkit.measure import accuracy, latency, size
from toolkit.measure.accuracy import pad_inputs, predict_ir
from toolkit.pipeline.stages import benchmark
from toolkit.pipeline.stages.benchmark import criterion
from toolkit.recipe import AccuracyCriterion, Benchmark, Evaluation, Performance, PerformanceConfigs, Task

VOCABULARY, PAD = 50, 0
TABLE = np.random.default_rng(0).normal(size=(VOCABULARY, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def ir(tmp_path_factory) -> Path:
    """A model whose logits are the sum of its tokens' rows in TABLE; an input has a second name, as in MPNet's IR."""
    ids = ops.parameter([-1, -1], np.int64, name="input_ids")
    mask = ops.parameter([-1, -1], np.int64, name="attention_mask")
    rows = ops.gather(ops.constant(TABLE), ids, ops.constant(0))
    weights = ops.unsqueeze(ops.convert(mask, "f32"), ops.constant(2))
    logits = ops.reduce_sum(ops.multiply(rows, weights), ops.constant(1))
    for node, names in ((ids, {"input_ids"}), (mask, {"attention_mask", "7"}), (logits, {"logits"})):
        node.output(0).set_names(names)
    folder = tmp_path_factory.mktemp("ir")
    ov.save_model(ov.Model([logits], [ids, mask], "tiny"), folder / "openvino_model.xml", compress_to_fp16=False)
    return folder


@pytest.fixture(scope="module")
def examples() -> list[dict[str, list[int]]]:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 12, 23)
    ids = [rng.integers(1, VOCABULARY, n).tolist() for n in lengths]
    return [{"input_ids": i, "attention_mask": [1] * len(i), "labels": 0} for i in ids]  # type: ignore[dict-item]


def test_an_input_that_no_tokenizer_provides_is_named(tmp_path, examples):
    pixels = ops.parameter([-1, -1], np.int64, name="pixels")
    pixels.output(0).set_names({"pixels", "7"})
    ov.save_model(ov.Model([ops.convert(pixels, "f32")], [pixels], "other"), tmp_path / "openvino_model.xml")
    with pytest.raises(UserError, match="the IR has an input 7 or pixels"):
        predict_ir(tmp_path, examples, PAD, per_token=False)


_SIGNALLED = """
import gc, os, signal, sys
from pathlib import Path
from toolkit.ir.runtime import core, read_ir
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
folder = Path(sys.argv[1])
first, second = (core().compile_model(read_ir(folder), "CPU") for _ in range(2))
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_signal_is_handled_after_models_were_opened_and_closed_in_any_order(ir):
    run = subprocess.run([sys.executable, "-c", _SIGNALLED, str(ir)], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "handled\n"), run.stderr


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_ir_answers_all_examples_in_their_order_whatever_the_batch_size(ir, examples, batch_size):
    expected = np.stack([TABLE[e["input_ids"]].sum(axis=0) for e in examples])
    np.testing.assert_allclose(predict_ir(ir, examples, PAD, batch_size, per_token=False), expected, atol=1e-5)


def test_inputs_are_padded_or_cut_to_the_length_and_missing_features_are_padding():
    features = [{"input_ids": [5, 6, 7, 8], "attention_mask": [1] * 4}, {"input_ids": [9], "attention_mask": [1]}]
    arrays = pad_inputs(features, ["input_ids", "attention_mask", "token_type_ids"], pad_id=3, length=3)
    assert arrays["input_ids"].tolist() == [[5, 6, 7], [9, 3, 3]]
    assert arrays["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert arrays["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert all(a.dtype == np.int64 for a in arrays.values())


def test_benchmark_app_gives_samples_and_a_command_that_can_be_run_again(ir, examples, tmp_path):
    section = Performance(warmup=0, iteration=1, seconds=1, batch_sizes=(2,), sequence_length=8)
    (stats,) = latency.measure({"tiny": ir}, examples, PAD, section, tmp_path)
    metrics = stats.as_metrics()
    assert len(stats.rounds) == 1
    assert stats.rounds[0].iterations > 1
    assert stats.rounds[0].max_ms >= stats.rounds[0].median_ms >= stats.rounds[0].min_ms >= 0
    examples_in_a_second = 2 * stats.rounds[0].iterations
    assert metrics["throughput_median"] == pytest.approx(examples_in_a_second, rel=0.2)
    assert (metrics["batch"], metrics["streams"]) == (2, 1)
    assert np.load(tmp_path / "inputs" / "b2_input_ids.npy").shape == (2, 8)
    assert json.loads((tmp_path / "reports/tiny-b2-r0/benchmark_report.json").read_text())["execution_results"]

    program, *words = shlex.split(stats.command)
    again = [str(Path(sys.executable).with_name(program)), *words, "-niter", "1"]
    assert subprocess.run(again, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_benchmark_app_takes_what_unpacks_sparse_weights_with_amx(ir, examples, tmp_path):
    section = Performance(iteration=1, warmup=0, seconds=1, batch_sizes=(1,), sequence_length=8)
    properties = {"unpacked": bench._AMX}
    models = {"plain": ir, "unpacked": ir}
    plain, unpacked = latency.measure(models, examples, PAD, section, tmp_path, properties=properties)
    assert "-load_config" not in plain.command
    (name,) = [word for word in shlex.split(unpacked.command) if word.endswith(".json")]
    assert json.loads((tmp_path / name).read_text()) == {"CPU": {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": "0"}}
    assert unpacked.rounds[0].median_ms > 0


def test_benchmark_app_failing_is_a_message_with_the_command(examples, ir, tmp_path):
    section = Performance(warmup=0, iteration=1, seconds=1, batch_sizes=(1,), sequence_length=4)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "openvino_model.xml").write_text((ir / "openvino_model.xml").read_text())
    (broken / "openvino_model.bin").write_bytes((ir / "openvino_model.bin").read_bytes())
    words = latency._arguments(broken, examples, PAD, 1, 1, section, tmp_path)
    (broken / "openvino_model.xml").write_text("<net")
    with pytest.raises(UserError, match=r"benchmark_app failed: \[ ERROR \]") as caught:
        latency._run(words, 1, tmp_path, "broken", keep=True)
    assert "-m broken/openvino_model.xml" in caught.value.where


def test_rounds_interleave_the_models_and_warm_up_rounds_do_not_count(ir, examples, tmp_path, monkeypatch):
    started: list[tuple[str, bool]] = []

    def run(arguments, batch, folder, label, *, keep):
        started.append((label.rpartition("-")[0], keep))
        value = float(len(started))
        return latency.Round(value, value, value, value, 1000 / value, 10)

    monkeypatch.setattr(latency, "_run", run)
    section = Performance(warmup=1, iteration=2, batch_sizes=(1, 8))
    stats = latency.measure({"a": ir, "b": ir}, examples, PAD, section, tmp_path)
    order = ["a-b1", "b-b1", "a-b8", "b-b8"]
    assert [label for label, _ in started] == order * 3
    assert [keep for _, keep in started] == [False] * 4 + [True] * 8
    assert len(started) == latency.runs(2, section)
    first = next(s for s in stats if (s.model, s.batch) == ("a", 1)).as_metrics()
    assert first["samples_ms"] == [5.0, 9.0]
    assert (first["latency_ms_median"], first["latency_ms_low"], first["latency_ms_high"]) == (7.0, 5.0, 9.0)


class Recorded(NullProgress):
    """A progress display that remembers."""

    def __init__(self) -> None:
        self.total, self.steps = 0, []

    def start(self, total: int) -> None:
        self.total = total

    def update(self, step: int, **figures: float) -> None:
        self.steps.append(step)


@pytest.fixture
def exported(ir, tmp_path) -> Path:
    """An export folder with two variants, both the tiny model, and a tokenizer; and `dev.tsv` beside it."""
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "bad", "good", "film"]
    for variant in ("sparse-fp32", "sparse-int8"):
        folder = tmp_path / "export" / variant
        BertTokenizer(vocab={w: i for i, w in enumerate(words)}).save_pretrained(folder)
        (folder / "config.json").write_text('{"model_type": "bert"}')
        for file in ir.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    rows = "".join(f"{text}\t{label}\n" for text, label in [("good film", 0), ("bad film", 1), ("film", 2)] * 11)
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text(f"sentence\tlabel\n{rows}")
    return tmp_path / "export"


def test_stage_measures_every_exported_variant_on_the_whole_dev_split(exported, tmp_path, monkeypatch):
    answer = latency.Round(2.0, 2.0, 1.0, 3.0, 500.0, 10)
    monkeypatch.setattr(latency, "_run", lambda *_, **__: answer)
    performance = Performance(warmup=0, iteration=1, batch_sizes=(1,), sequence_length=8)
    inputs = benchmark.Inputs(
        task=Task(train=str(tmp_path / "train.tsv"), dev=str(tmp_path / "dev.tsv"), labels=("0", "1", "2")),
        benchmark=Benchmark(evaluation=Evaluation(performance=performance)),
        transfer_tuning=None,
        quantize=None,
        export_artifact=Artifact(kind="ir", path=exported, sha256="0"),
    )
    progress = Recorded()
    (tmp_path / "benchmark").mkdir()
    context = Context(tmp_path / "benchmark", tmp_path / "work", 0, "films", progress, tmp_path / "cache")
    result = benchmark.run(inputs, context)

    expected = [TABLE[[2, *ids, 3]].sum(axis=0).argmax() for ids in ([6, 7], [5, 7], [7])]
    share = float(np.mean([e == label for e, label in zip(expected, (0, 1, 2), strict=True)]))
    assert list(result.metrics["variants"]) == ["sparse-fp32", "sparse-int8"]
    for measured in result.metrics["variants"].values():
        assert measured["accuracy"]["accuracy"] == pytest.approx(share)
        assert measured["sizes"][size.FILE] > TABLE.nbytes
        assert measured["performance"][0]["samples_ms"] == [2.0]
    assert result.metrics["dev_n"] == 33
    assert [c.ok for c in result.checks] == [True]
    assert progress.steps == list(range(1, progress.total + 1))
    monkeypatch.setattr(accuracy, "predict_ir", lambda *_, **__: pytest.fail("the answers are there"))
    again = benchmark.run(inputs, context)
    assert again.metrics["variants"].keys() == result.metrics["variants"].keys()
    assert json.loads((tmp_path / "benchmark" / "benchmark.json").read_text()) == result.metrics["variants"]


def test_stage_without_an_exported_variant_says_so(tmp_path):
    inputs = benchmark.Inputs(None, None, None, None, Artifact(kind="ir", path=tmp_path, sha256="0"))
    with pytest.raises(UserError, match="no IR folder here"):
        benchmark.run(inputs, Context(tmp_path, tmp_path, 0))


def test_several_streams_run_asynchronously_with_a_request_each(ir, examples, tmp_path):
    section = Performance(configs=PerformanceConfigs(cores_per_instance=3, num_of_instance=2))
    words = latency._arguments(ir, examples, PAD, 1, 6, section, tmp_path)
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert (options["-nstreams"], options["-nthreads"], options["-nireq"]) == ("2", "6", "2")
    assert (options["-api"], options["-hint"]) == ("async", "none")


@pytest.mark.parametrize(
    ("promise", "after", "met"),
    [
        (AccuracyCriterion(absolute=0.01), 0.89, True),
        (AccuracyCriterion(absolute=0.01), 0.88, False),
        (AccuracyCriterion(relative=0.01), 0.891, True),
        (AccuracyCriterion(relative=0.01), 0.89, False),
        (AccuracyCriterion(relative=0.0), 0.92, True),
    ],
)
def test_criterion_is_met_when_8_bits_cost_no_more_than_promised(promise, after, met):
    scores = {"sparse-fp32": {"accuracy": 0.90}, "sparse-int8": {"accuracy": after}}
    result = criterion(promise, "accuracy", scores)
    assert result is not None
    assert result["met"] is met


@pytest.mark.parametrize(("before", "after", "met"), [(-0.1, -0.2, False), (-0.1, -0.1005, True), (0.0, -0.3, False)])
def test_criterion_of_a_correlation_that_is_not_positive_is_not_met_by_a_lower_one(before, after, met):
    scores = {"sparse-fp32": {"matthews": before}, "sparse-int8": {"matthews": after}}
    result = criterion(AccuracyCriterion(relative=0.01), "matthews", scores)
    assert result is not None
    assert result["met"] is met
    assert result["measured"] >= 0


def test_criterion_needs_both_sparse_variants():
    assert criterion(AccuracyCriterion(relative=0.01), "accuracy", {"sparse-fp32": {"accuracy": 0.9}}) is None
