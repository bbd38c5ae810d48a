"""The operation SparseLinear in isolation: its results and its errors when a model is read, changed or run."""

import os
import re
import subprocess
import sys

import numpy as np
import openvino as ov
import pytest
from openvino import opset13
from openvino.utils.node_factory import NodeFactory

from toolkit.core.errors import UserError
from toolkit.ir import kernels
from toolkit.ir.runtime import MODEL, core, read_ir
from toolkit.measure import memory

ROWS, COLUMNS = 32, 64


@pytest.fixture(scope="module", autouse=True)
def factory():
    made = NodeFactory()
    made.add_extension(str(kernels.build()))
    return made


def matrix(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, COLUMNS)).astype(np.float32) * (rng.random((rows, COLUMNS)) > 0.8)


def model_of(factory, shape=(-1, COLUMNS), weights=None, **changed):
    """A model of one operation."""
    x = opset13.parameter(ov.PartialShape(list(shape)), np.float32, name="x")
    blob = opset13.constant(kernels.pack(matrix() if weights is None else weights))
    attributes = {
        **{"format_version": kernels.format_version(), "rows": [ROWS], "columns": COLUMNS, "pattern": "1x1"},
        **{"activation": "none", "chain": False, "input_ranges": []},
    }
    node = factory.create("SparseLinear", [x.output(0), blob.output(0)], attributes | changed)
    return ov.Model([node.output(0)], [x], "one")


def sparse_linear(model):
    return next(op for op in model.get_ordered_ops() if op.get_type_name() == "SparseLinear")


def compiled(model):
    return core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def answer(run, *inputs):
    """Replaces `run(inputs)`, which in OpenVINO 2026.4 hides failures of an operation of a dynamic model."""
    request = run.create_infer_request()
    request.start_async(dict(enumerate(inputs)))
    request.wait()
    return np.array(request.get_output_tensor(0).data)


@pytest.mark.parametrize("shape", [(-1, -1), (-1, -1, -1), (-1, -1, COLUMNS)])
def test_dynamic_shapes_give_the_product_over_the_last_dimension(factory, shape):
    run = compiled(model_of(factory, shape))
    x = np.random.default_rng(1).normal(size=(2, 3, COLUMNS)[-len(shape) :]).astype(np.float32)
    np.testing.assert_allclose(run(x)[0], x @ matrix().T, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 8), (COLUMNS - 1,), (1, COLUMNS + 1), (2, 2 * COLUMNS), (0,), ()])
def test_activations_of_another_width_are_refused_when_they_arrive_at_a_dynamic_dimension(factory, shape):
    with pytest.raises(RuntimeError, match=f"{COLUMNS}"):
        answer(compiled(model_of(factory, (-1, -1)[: max(1, len(shape))])), np.ones(shape, np.float32))
    # Other callers evaluate an operation without asking for its shapes first.
    node = sparse_linear(model_of(factory, (-1, -1)))
    blob = ov.Tensor(np.array(node.input_value(1).get_node().data))
    with pytest.raises(RuntimeError, match=f"the weights have {COLUMNS} columns"):
        node.evaluate([ov.Tensor(np.float32, [0])], [ov.Tensor(np.ones(shape, np.float32)), blob])


def test_weights_that_are_no_constant_any_more_are_not_answered_with_the_old_ones(factory):
    model = model_of(factory)
    node = sparse_linear(model)
    blob = opset13.parameter(node.input_value(1).get_shape(), np.uint8, name="blob")
    data = np.array(node.input_value(1).get_node().data)
    node.input(1).replace_source_output(blob.output(0))
    model = ov.Model([node.output(0)], [*model.get_parameters(), blob], "weights from outside")
    model.validate_nodes_and_infer_types()
    with pytest.raises(RuntimeError, match="must be constants"):
        answer(compiled(model), np.ones((2, COLUMNS), np.float32), data)


def test_other_constants_give_other_answers(factory):
    model = model_of(factory)
    other = matrix(seed=5)
    sparse_linear(model).input(1).replace_source_output(opset13.constant(kernels.pack(other)).output(0))
    model.validate_nodes_and_infer_types()
    x = np.random.default_rng(2).normal(size=(3, COLUMNS)).astype(np.float32)
    np.testing.assert_allclose(compiled(model)(x)[0], x @ other.T, atol=1e-5)


def test_weights_of_another_size_are_refused_however_often_they_are_shown(factory):
    model = model_of(factory)
    wrong = opset13.constant(kernels.pack(matrix(rows=ROWS + 4)))
    sparse_linear(model).input(1).replace_source_output(wrong.output(0))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"shape is {ROWS + 4} x {COLUMNS}, the attributes specify {ROWS}"):
            model.validate_nodes_and_infer_types()


@pytest.mark.parametrize(
    ("version", "instead"), [(kernels.FORMAT_VERSION + 1, "kernels build"), (1, "export the model again")]
)
def test_another_format_version_is_refused_with_what_to_do(factory, version, instead):
    with pytest.raises(RuntimeError, match=instead):
        model_of(factory, format_version=version)


@pytest.mark.parametrize("version", [0, -1])
def test_a_format_version_that_never_was_is_refused(factory, version):
    with pytest.raises(RuntimeError, match=f"format version {version}"):
        model_of(factory, format_version=version)


@pytest.fixture
def saved(factory, tmp_path):
    """Folder with the IR of one operation; the .bin holds its packed weights."""
    ov.save_model(model_of(factory), tmp_path / MODEL, compress_to_fp16=False)
    return tmp_path


def test_a_saved_operation_is_read_back(saved):
    x = np.random.default_rng(3).normal(size=(5, COLUMNS)).astype(np.float32)
    np.testing.assert_allclose(compiled(read_ir(saved))(x)[0], x @ matrix().T, atol=1e-5)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("format_version", "99", "kernels build"),
        ("format_version", "1", "export the model again"),
        ("rows", "36", "the attributes specify 36"),
        ("columns", "63", "columns"),
        ("pattern", "4x1", "pattern is not 4x1"),
        ("activation", "relu", "unknown activation relu"),
        ("input_ranges", "0.0, 1.0, 2.0", "input_ranges: expected low and high"),
        ("input_ranges", "1.0, 0.0", "out of range"),
    ],
)
def test_an_ir_whose_attributes_do_not_fit_its_weights_is_refused(saved, attribute, value, reason):
    text = (saved / MODEL).read_text()
    changed, n = re.subn(rf'(<data [^>]*\b{attribute}=)"[^"]*"(?=[^>]*pattern=|[^>]*>)', rf'\1"{value}"', text)
    assert n == 1
    (saved / MODEL).write_text(changed)
    with pytest.raises((UserError, RuntimeError), match=reason):
        read_ir(saved)


@pytest.mark.parametrize("kept", [0, 100, 1000])
def test_an_ir_whose_bin_is_cut_off_is_refused(saved, kept):
    path = (saved / MODEL).with_suffix(".bin")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises((UserError, RuntimeError)):
        compiled(read_ir(saved))


@pytest.mark.parametrize("at", [0, 8, 40, 124, 300, 2000])
def test_an_ir_with_a_flipped_bit_anywhere_is_refused(saved, at):
    path = (saved / MODEL).with_suffix(".bin")
    data = bytearray(path.read_bytes())
    data[data.index(b"POFASPRS") + at] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises((UserError, RuntimeError), match="packed weights"):
        compiled(read_ir(saved))


RESIDENT = """
import sys, resource, numpy as np
from pathlib import Path
from toolkit.ir.runtime import core, read_ir
kept = []
def once():
    model = core().compile_model(read_ir(Path(sys.argv[1])), "CPU")
    model(np.ones((3, 2048), dtype=np.float32))
    if sys.argv[2] == "keep":
        kept.append(model)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
for _ in range(5): once()
before = resident()
for _ in range(20): once()
print(resident() - before)
"""


def test_weights_are_read_in_place_without_a_second_copy(factory, tmp_path):
    rng = np.random.default_rng(0)
    peaks, sizes = [], []
    for rows in (4, 8192):
        weights = rng.integers(1, 100, (rows, 2048)).astype(np.int8)
        ids = opset13.parameter([-1, 2048], np.int64, name="x")
        operation = sparse_linear(model_of(factory, (-1, 2048), weights, rows=[rows], columns=2048))
        operation.input(0).replace_source_output(opset13.convert(ids, "f32").output(0))
        folder = tmp_path / str(rows)
        folder.mkdir()
        ov.save_model(ov.Model([operation.output(0)], [ids], "one"), folder / MODEL)
        sizes.append((folder / MODEL).with_suffix(".bin").stat().st_size)
        peaks.append(memory.peak_memory(folder, {"x": [[1] * 2048]}))
    assert sizes[1] - sizes[0] > 30e6
    assert peaks[1] - peaks[0] < 1.5 * (sizes[1] - sizes[0])  # a copy would make it 2


def test_compiling_and_releasing_again_and_again_leaks_nothing(factory, tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 100, (2048, 2048)).astype(np.int8) * (rng.random((2048, 2048)) > 0.5)
    model = model_of(factory, (-1, 2048), weights.astype(np.int8), rows=[2048], columns=2048)
    ov.save_model(model, tmp_path / MODEL)
    size = (tmp_path / MODEL).with_suffix(".bin").stat().st_size
    assert size > 4e6

    def growth(how):
        command = [sys.executable, "-c", RESIDENT, str(tmp_path), how]
        shown = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CI": "1"})
        assert shown.returncode == 0, shown.stderr
        return int(shown.stdout)

    assert growth("release") < 4 * size
    assert growth("keep") > 10 * size  # what a leak looks like: the measure sees it
