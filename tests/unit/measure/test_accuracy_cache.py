"""Predictions are computed once for the same IR, inputs and machine, and again when any of these changes."""

import numpy as np
import pytest

from toolkit.core import machine
from toolkit.data.question_answering import Question, windows_of
from toolkit.data.task_kinds import ClassExamples
from toolkit.data.tasks import load_task
from toolkit.ir import kernels
from toolkit.measure import accuracy
from toolkit.measure.accuracy import cached_predictions
from toolkit.models.load import load_tokenizer
from toolkit.recipe import AnswerWindows, Task

PAD = 0


@pytest.fixture
def asked(monkeypatch):
    """Recorded calls of `predict_ir`: (folder, examples, properties). Each call returns different logits."""
    found = []

    def predict(folder, examples, pad_id, properties=None, per_token=False):
        found.append((folder, examples, properties))
        rng = np.random.default_rng(len(found))
        if hasattr(examples, "questions"):
            return [rng.normal(size=(2, length)).astype(np.float32) for length in examples.lengths]
        return rng.normal(size=(len(examples), 2)).astype(np.float32)

    monkeypatch.setattr(accuracy, "predict_ir", predict)
    return found


@pytest.fixture
def ir(tmp_path):
    """Factory of IR folders that differ in their weights."""

    def make(name, weights=b"1", operation="MatMul"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "openvino_model.xml").write_text(f'<layer type="{operation}"/>')
        (folder / "openvino_model.bin").write_bytes(weights)
        return folder

    return make


@pytest.fixture(scope="module")
def dev(tiny_bert, tiny_task_files):
    section = Task(train=str(tiny_task_files.train), dev=str(tiny_task_files.dev), max_seq_length=16)
    return load_task("toy", section, load_tokenizer(tiny_bert)).dev


def test_the_same_question_is_asked_once_wherever_the_ir_lies(ir, dev, asked, tmp_path):
    first = cached_predictions(ir("export"), dev, PAD, tmp_path / "cache")
    again = cached_predictions(ir("elsewhere"), dev, PAD, tmp_path / "cache")
    assert len(asked) == 1
    assert np.shape(first) == (len(dev), 2)
    np.testing.assert_array_equal(first, again)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".safetensors"]


def test_windows_come_back_with_their_lengths(ir, tiny_bert, asked, tmp_path):
    tokenizer = load_tokenizer(tiny_bert)
    questions = [Question("here", "who ?", context, ("a",), (0,)) for context in ("a b", "a b c d e f g h i j k l m n")]
    windows = windows_of(questions, tokenizer, 14, AnswerWindows(stride=4, max_question_length=5))
    first, again = (cached_predictions(ir("qa"), windows, PAD, tmp_path / "cache") for _ in range(2))
    assert len(asked) == 1
    assert len(set(windows.lengths)) > 1
    assert [row.shape for row in first] == [(2, length) for length in windows.lengths]
    rng = np.random.default_rng(1)
    for row, other, length in zip(first, again, windows.lengths, strict=True):
        np.testing.assert_array_equal(row, rng.normal(size=(2, length)).astype(np.float32))
        np.testing.assert_array_equal(row, other)


CHANGES = {
    "weights": lambda ir, dev, patch: {"folder": ir("export", b"2")},
    "graph": lambda ir, dev, patch: {"folder": ir("export", operation="Other")},
    "examples": lambda ir, dev, patch: {"examples": ClassExamples(dev.texts[:-1], cut(dev.inputs), dev.labels[:-1])},
    "properties": lambda ir, dev, patch: {"properties": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}},
    "padding": lambda ir, dev, patch: {"pad_id": 1},
    "cpu": lambda ir, dev, patch: patch.setattr(machine, "describe", lambda: {"cpu": "another", "isa": []}),
    "instructions": lambda ir, dev, patch: patch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41"),
    "kernel": lambda ir, dev, patch: patch.setenv("PRUNEOFA_ISA", "scalar"),
    "openvino": lambda ir, dev, patch: patch.setattr(machine, "versions", lambda: {"openvino": "1.0"}),
}


def cut(inputs):
    return {name: ids[:-1] for name, ids in inputs.items()}


@pytest.mark.parametrize("change", CHANGES)
def test_another_question_is_asked_anew(ir, dev, asked, tmp_path, monkeypatch, change):
    question = {"folder": ir("export"), "examples": dev, "pad_id": PAD, "cache": tmp_path / "cache"}
    cached_predictions(**question)
    question |= CHANGES[change](ir, dev, monkeypatch) or {}
    cached_predictions(**question)
    assert len(asked) == 2
    cached_predictions(**question)
    assert len(asked) == 2


@pytest.mark.parametrize(("operation", "times"), [("SparseLinear", 2), ("MatMul", 1)])
def test_another_build_of_the_sparse_kernel_is_asked_anew_where_the_ir_runs_on_it(
    ir, dev, asked, tmp_path, monkeypatch, operation, times
):
    for build in ("one", "two"):
        monkeypatch.setattr(kernels, "folder", lambda build=build: tmp_path / build)
        cached_predictions(ir("export", operation=operation), dev, PAD, tmp_path / "cache")
    assert len(asked) == times


def test_an_answer_that_was_cut_off_leaves_nothing_behind(ir, dev, asked, tmp_path, monkeypatch):
    monkeypatch.setattr("safetensors.numpy.save_file", lambda tensors, path: path.write_text("half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cached_predictions(ir("export"), dev, PAD, tmp_path / "cache")
    monkeypatch.undo()
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_a_damaged_file_is_asked_for_anew(ir, dev, asked, tmp_path):
    cached_predictions(ir("export"), dev, PAD, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:20])
    for _ in range(2):
        assert np.shape(cached_predictions(ir("export"), dev, PAD, tmp_path / "cache")) == (len(dev), 2)
    assert len(asked) == 2
