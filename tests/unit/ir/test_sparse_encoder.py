"""The operation SparseEncoder in isolation: its results and its errors when a model is read, changed or run."""

import re

import numpy as np
import openvino as ov
import pytest
from openvino import opset13
from openvino.utils.node_factory import NodeFactory

from toolkit.core.errors import UserError
from toolkit.ir import kernels
from toolkit.ir.runtime import MODEL, core, read_ir

HIDDEN, INNER, HEADS, LAYERS = 32, 48, 4, 2


@pytest.fixture(scope="module", autouse=True)
def factory():
    made = NodeFactory()
    made.add_extension(str(kernels.build()))
    return made


def blobs(seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(HIDDEN, HIDDEN)] * 4 + [(INNER, HIDDEN), (HIDDEN, INNER)]
    matrices = [rng.normal(size=shape) * (rng.random(shape) > 0.8) for shape in shapes * LAYERS]
    return [kernels.pack(matrix.astype(np.float32)) for matrix in matrices]


NORMS = np.tile(np.array([[1.0], [0.0]] * 2, dtype=np.float32), (LAYERS, 1, HIDDEN)).reshape(LAYERS, 4, HIDDEN)


def model_of(factory, shape=(-1, -1, HIDDEN), mask_shape=(-1, -1), packed=None, norms=NORMS, **changed):
    """A model of one operation."""
    x = opset13.parameter(ov.PartialShape(list(shape)), np.float32, name="x")
    mask = opset13.parameter(ov.PartialShape(list(mask_shape)), bool, name="mask")
    constants = [opset13.constant(value).output(0) for value in (norms, *(packed or blobs()))]
    attributes = {
        **{"format_version": kernels.format_version(), "hidden": HIDDEN, "heads": HEADS, "scale": "0.35"},
        **{"activation": "gelu_erf", "epsilons": ["1e-12"] * 2 * LAYERS, "input_ranges": ["none"] * 12 * LAYERS},
        "attention_ranges": ["none"] * 4 * LAYERS,
    }
    node = factory.create("SparseEncoder", [x.output(0), mask.output(0), *constants], attributes | changed)
    return ov.Model([node.output(0)], [x, mask], "one")


def encoder_op(model):
    return next(op for op in model.get_ordered_ops() if op.get_type_name() == "SparseEncoder")


def answer(model, *inputs):
    """Replaces `compiled(inputs)`, which in OpenVINO 2026.4 hides failures of an operation of a dynamic model."""
    request = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    request.start_async(dict(enumerate(inputs)))
    request.wait()
    return np.array(request.get_output_tensor(0).data)


def expected(x, mask, packed=None):
    packed = packed or blobs()
    layers = [kernels.EncoderLayer(packed[6 * i : 6 * i + 6], NORMS[i]) for i in range(LAYERS)]
    return kernels.Encoder(layers, HEADS, scale=0.35)(x, mask)


def inputs(batch=2, length=9):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(batch, length, HIDDEN)).astype(np.float32)
    return x, np.arange(length)[None] < rng.integers(1, length + 1, (batch, 1))


@pytest.mark.parametrize("shape", [(-1, -1, -1), (-1, -1, HIDDEN), (2, 9, HIDDEN)])
def test_dynamic_and_static_shapes_give_the_stacks_result(factory, shape):
    np.testing.assert_allclose(answer(model_of(factory, shape), *inputs()), expected(*inputs()), atol=1e-5)


def test_a_saved_operation_is_read_back(factory, tmp_path):
    ov.save_model(model_of(factory), tmp_path / MODEL, compress_to_fp16=False)
    np.testing.assert_allclose(answer(read_ir(tmp_path), *inputs()), expected(*inputs()), atol=1e-5)


def test_other_constants_give_other_answers(factory):
    model = model_of(factory)
    other = blobs(seed=3)
    for i, blob in enumerate(other):
        encoder_op(model).input(3 + i).replace_source_output(opset13.constant(blob).output(0))
    model.validate_nodes_and_infer_types()
    np.testing.assert_allclose(answer(model, *inputs()), expected(*inputs(), other), atol=1e-5)


def test_weights_that_are_no_constant_any_more_are_not_answered_with_the_old_ones(factory):
    model = model_of(factory)
    node = encoder_op(model)
    data = np.array(node.input_value(3).get_node().data)
    blob = opset13.parameter(node.input_value(3).get_shape(), np.uint8, name="blob")
    node.input(3).replace_source_output(blob.output(0))
    model = ov.Model([node.output(0)], [*model.get_parameters(), blob], "weights from outside")
    with pytest.raises(RuntimeError, match="must be constants"):
        answer(model, *inputs(), data)


@pytest.mark.parametrize(
    ("x_shape", "mask_shape"),
    [((2, 9, 31), (2, 9)), ((2, 9, HIDDEN), (2, 8)), ((2, 9, HIDDEN), (1, 9)), ((9, HIDDEN), (1, 9))],
)
def test_shapes_that_do_not_fit_are_refused_when_they_arrive_at_dynamic_dimensions(factory, x_shape, mask_shape):
    node = encoder_op(model_of(factory, (-1, -1, -1)))
    rest = [ov.Tensor(np.array(node.input_value(i).get_node().data)) for i in range(2, node.get_input_size())]
    given = [ov.Tensor(np.ones(x_shape, np.float32)), ov.Tensor(np.ones(mask_shape, bool))]
    with pytest.raises(RuntimeError, match="SparseEncoder: "):
        node.evaluate([ov.Tensor(np.float32, [0])], given + rest)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"shape": (-1, HIDDEN)}, "hidden states have shape"),
        ({"shape": (-1, -1, HIDDEN + 1)}, "hidden states have shape"),
        ({"mask_shape": (-1, 1, 1, -1)}, "the mask has shape"),
        ({"norms": NORMS[:1]}, "norms have shape"),
        ({"norms": NORMS[:, :, :16]}, "norms have shape"),
        ({"packed": blobs()[:-1]}, "six packed matrices per layer"),
        ({"packed": [*blobs()[:4], *blobs()[5:], blobs()[4]]}, "out of range"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(factory, changed, reason):
    with pytest.raises(RuntimeError, match=reason):
        model_of(factory, **changed)


@pytest.fixture
def saved(factory, tmp_path):
    ov.save_model(model_of(factory), tmp_path / MODEL, compress_to_fp16=False)
    return tmp_path


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("format_version", "99", "kernels build"),
        ("format_version", "1", "export the model again"),
        ("hidden", "36", "hidden states have shape"),
        ("hidden", "-32", "multiple of heads"),
        ("heads", "5", "multiple of heads"),
        ("heads", "0", "multiple of heads"),
        ("heads", "-4", "multiple of heads"),
        ("scale", "nan", "out of range"),
        ("scale", "much", "out of range"),
        ("activation", "swish", "unknown activation swish"),
        ("epsilons", "1e-12", "epsilons: expected two per layer"),
        ("epsilons", "1e-12, 1e-12, -1, 1e-12", "out of range"),
        ("input_ranges", "0.0, 1.0", "input_ranges: expected low and high"),
        ("input_ranges", ", ".join(["1.0, 0.0"] * 6 * LAYERS), "out of range"),
        ("input_ranges", ", ".join(["low, high"] * 6 * LAYERS), "not a number"),
        ("input_ranges", ", ".join(["0.0, inf"] * 6 * LAYERS), "not a number"),
        ("attention_ranges", "0.0, 1.0", "attention_ranges: expected low and high"),
        ("attention_ranges", ", ".join(["1.0, 0.0"] * 2 * LAYERS), "out of range"),
        ("attention_ranges", ", ".join(["-1e37, 1e37"] * 2 * LAYERS), "out of range"),
        ("attention_ranges", ", ".join(["none, none, 0.0, 1.0"] * LAYERS), "attention_ranges: a range of which only"),
        ("attention_ranges", ", ".join(["low, high"] * 2 * LAYERS), "attention_ranges: not a number"),
        ("input_ranges", ", ".join(["none, 1.0"] * 6 * LAYERS), "input_ranges: a range of which only"),
        ("input_ranges", ", ".join(["0.0x, 1.0"] * 6 * LAYERS), "not a number"),
        ("scale", "0.35abc", "out of range"),
    ],
)
def test_an_ir_whose_attributes_do_not_fit_its_weights_is_refused(saved, attribute, value, reason):
    text = (saved / MODEL).read_text()
    changed, n = re.subn(rf'(<data [^>]*\b{attribute}=)"[^"]*"(?=[^>]*heads=|[^>]*>)', rf'\1"{value}"', text)
    assert n == 1
    (saved / MODEL).write_text(changed)
    with pytest.raises((UserError, RuntimeError), match=reason):
        read_ir(saved)


@pytest.mark.parametrize("at", [0, 8, 40, 124, 300])
def test_an_ir_with_a_flipped_bit_anywhere_is_refused(saved, at):
    path = (saved / MODEL).with_suffix(".bin")
    data = bytearray(path.read_bytes())
    data[data.index(b"POFASPRS") + at] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises((UserError, RuntimeError), match="packed weights"):
        answer(read_ir(saved), *inputs())
