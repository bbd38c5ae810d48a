"""EmbeddingSum: the kernel against float64, the operation's errors, and which embeddings of a model it replaces."""

import re

import numpy as np
import openvino as ov
import pytest
from openvino import opset13
from openvino.utils.node_factory import NodeFactory

from toolkit.core.errors import UserError
from toolkit.ir import embedding_sum, kernels
from toolkit.ir.inspect import inspect_ir
from toolkit.ir.runtime import MODEL, core, read_ir

F32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(scope="module", autouse=True)
def factory():
    made = NodeFactory()
    made.add_extension(str(kernels.build()))
    return made


def tables_of(rng, hidden, batch, length, rows=(50, 2, 40)):
    """A table of words, one of two rows, and one of positions, whose indices are the same for all sequences."""
    tables = []
    for count in rows:
        codes = rng.integers(-127, 128, (count, hidden)).astype(np.int8)
        tables.append((codes, (rng.random(count) / 50).astype(np.float32)))
    indices = *(rng.integers(0, count, (batch, length)) for count in rows[:2]), np.arange(length)[None]
    return [(*table, places.astype(np.int32)) for table, places in zip(tables, indices, strict=True)]


def reference(tables, norm, mask, epsilon):
    total = np.zeros((*mask.shape, norm.shape[1]))
    for codes, scales, indices in tables:
        count = len(codes)
        wanted = np.broadcast_to(np.where(indices < 0, indices + count, indices), mask.shape)
        inside = (wanted >= 0) & (wanted < count)
        rows = np.where(inside, wanted, 0)
        total += np.where(inside[..., None], codes[rows] * scales[rows][..., None].astype(np.float64), 0)
    distance = total - total.mean(-1, keepdims=True)
    scaled = distance / np.sqrt((distance**2).mean(-1, keepdims=True) + epsilon) * norm[0] + norm[1]
    return np.where(mask[..., None], scaled, 0)


@pytest.mark.parametrize(("hidden", "batch", "length"), [(384, 3, 37), (1, 2, 5), (7, 1, 1), (33, 2, 40), (16, 0, 4)])
def test_the_kernel_gives_the_float64_result_for_any_size(hidden, batch, length):
    rng = np.random.default_rng(hidden)
    tables = tables_of(rng, hidden, batch, length)
    norm, mask = rng.normal(size=(2, hidden)).astype(np.float32), rng.random((batch, length)) < 0.7
    for isa in kernels.instruction_sets():
        for threads in (1, 4):
            found = kernels.embedding_sum(tables, norm, mask, epsilon=1e-5, threads=threads, isa=isa)
            np.testing.assert_allclose(found, reference(tables, norm, mask, 1e-5), atol=2e-5, err_msg=isa)


def test_indices_count_from_the_end_and_those_outside_add_nothing_as_in_gather():
    rng = np.random.default_rng(0)
    (codes, scales, _), *_ = tables_of(rng, 24, 1, 1)
    indices = np.array([[0, -1, 49, -50, 50, -51, 2**31 - 1, -(2**31)]], dtype=np.int32)
    norm, mask = np.stack([np.ones(24), np.zeros(24)]).astype(np.float32), np.ones((1, 8), bool)
    found = kernels.embedding_sum([(codes, scales, indices)], norm, mask, epsilon=1e-5)
    np.testing.assert_allclose(found, reference([(codes, scales, indices)], norm, mask, 1e-5), atol=1e-5)
    assert not found[0, 4:].any()


@pytest.mark.parametrize(("tables", "epsilon"), [(0, 1e-5), (9, 1e-5), (1, -1.0), (1, np.nan), (1, np.inf)])
def test_arguments_out_of_range_are_refused(tables, epsilon):
    one = tables_of(np.random.default_rng(0), 8, 1, 4)[:1]
    with pytest.raises(UserError, match="out of range"):
        kernels.embedding_sum(one * tables, np.ones((2, 8)), np.ones((1, 4)), epsilon=epsilon)


HIDDEN = 32


def model_of(factory, *, codes=None, scales=None, norm=None, index_type=np.int32, mask_type=bool, epsilon="1e-05"):
    """A model of one operation, with words and positions."""
    rng = np.random.default_rng(3)
    tables = tables_of(rng, HIDDEN, 1, 16)
    mask = opset13.parameter(ov.PartialShape([-1, -1]), mask_type, name="mask")
    words = opset13.parameter(ov.PartialShape([-1, -1]), index_type, name="words")
    positions = opset13.parameter(ov.PartialShape([1, -1]), np.int32, name="positions")
    inputs = [mask, opset13.constant(np.ones((2, HIDDEN), np.float32) if norm is None else norm)]
    for (table, scale, _), indices in zip((tables[0], tables[2]), (words, positions), strict=True):
        inputs += [opset13.constant(table if codes is None else codes)]
        inputs += [opset13.constant(scale[:, None] if scales is None else scales), indices]
    node = factory.create("EmbeddingSum", [value.output(0) for value in inputs], {"epsilon": epsilon})
    return ov.Model([node.output(0)], [mask, words, positions], "one")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"codes": np.zeros((50, HIDDEN + 1), np.int8)}, "codes of a table must be i8"),
        ({"codes": np.zeros((50, HIDDEN), np.uint8)}, "codes of a table must be i8"),
        ({"scales": np.ones((50, 2), np.float32)}, "scales of a table must be f32"),
        ({"scales": np.ones((3, 1), np.float32)}, "scales of a table must be f32"),
        ({"norm": np.ones((3, HIDDEN), np.float32)}, "the norm must be f32"),
        ({"norm": np.ones((2, HIDDEN), np.float64)}, "the norm must be f32"),
        ({"index_type": np.int64}, "indices must be i32"),
        ({"mask_type": np.float32}, "the mask must be boolean"),
        ({"epsilon": "-1"}, "epsilon: not a number"),
        ({"epsilon": "small"}, "epsilon: not a number"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(factory, changed, reason):
    with pytest.raises(RuntimeError, match=re.escape(reason)):
        model_of(factory, **changed)


def test_a_saved_operation_is_read_back_and_shapes_that_do_not_fit_are_refused(factory, tmp_path):
    ov.save_model(model_of(factory), tmp_path / MODEL, compress_to_fp16=False)
    request = core().compile_model(read_ir(tmp_path), "CPU", F32).create_infer_request()

    def answer(*arrays):
        request.start_async(dict(enumerate(arrays)))
        request.wait()
        return np.array(request.get_output_tensor(0).data)

    words = np.arange(12, dtype=np.int32).reshape(2, 6)
    mask, positions = np.array([[1] * 6, [1] * 4 + [0] * 2], bool), np.arange(6, dtype=np.int32)[None]
    of_words, _, of_positions = tables_of(np.random.default_rng(3), HIDDEN, 1, 16)
    tables = [(*of_words[:2], words), (*of_positions[:2], positions)]
    np.testing.assert_allclose(
        answer(mask, words, positions), reference(tables, np.ones((2, HIDDEN)), mask, 1e-5), atol=1e-5
    )
    for wrong in (words[:, :5], np.vstack([words, words[:1]])):
        with pytest.raises(RuntimeError, match="EmbeddingSum: indices have shape"):
            answer(mask, wrong, positions)


def plain(names=("words", "types"), *, float_table=False, extra_reader=False, norm=True):
    """A model of embeddings as the converter writes them, whose LayerNorm a stand-in of a SparseEncoder reads."""
    rng = np.random.default_rng(0)
    mask = opset13.parameter(ov.PartialShape([-1, -1]), bool, name="mask")
    parameters, total = [mask], None
    for name in names:
        ids = opset13.parameter(ov.PartialShape([-1, -1]), np.int64, name=name)
        parameters.append(ids)
        codes = opset13.constant(rng.integers(-127, 128, (9, HIDDEN)).astype(np.int8))
        values = opset13.multiply(
            opset13.convert(codes, "f32"), opset13.constant(rng.random((9, 1), dtype=np.float32) / 50)
        )
        table = opset13.constant(rng.random((9, HIDDEN), dtype=np.float32)) if float_table else values
        rows = opset13.gather(table, ids, opset13.constant(np.int64(0)))
        rows.set_friendly_name(f"__module.embeddings.{name}/Gather")
        total = rows if total is None else opset13.add(total, rows)
    value = opset13.mvn(total, opset13.constant(np.array([-1])), True, 1e-12, "INSIDE_SQRT") if norm else total
    if norm:
        value = opset13.add(
            opset13.multiply(value, opset13.constant(rng.random((1, 1, HIDDEN), dtype=np.float32))),
            opset13.constant(rng.random((1, 1, HIDDEN), dtype=np.float32)),
        )
    encoder = _encoder(value, mask)
    results = [encoder.output(0)] + ([opset13.relu(value).output(0)] if extra_reader else [])
    return ov.Model(results, parameters, "embeddings")


def _encoder(value, mask):
    factory = NodeFactory()
    factory.add_extension(str(kernels.build()))
    rng = np.random.default_rng(1)
    shapes = [(HIDDEN, HIDDEN)] * 4 + [(16, HIDDEN), (HIDDEN, 16)]
    blobs = [kernels.pack((rng.normal(size=s) * (rng.random(s) > 0.8)).astype(np.float32)) for s in shapes]
    norms = np.tile(np.array([[1.0], [0.0]] * 2, dtype=np.float32), (1, 1, HIDDEN)).reshape(1, 4, HIDDEN)
    attributes = {
        **{"format_version": kernels.format_version(), "hidden": HIDDEN, "heads": 4, "scale": "0.35"},
        **{"activation": "gelu_erf", "epsilons": ["1e-12"] * 2, "input_ranges": ["none"] * 12},
        "attention_ranges": ["none"] * 4,
    }
    inputs = [value, mask, opset13.constant(norms), *map(opset13.constant, blobs)]
    return factory.create("SparseEncoder", [v.output(0) for v in inputs], attributes)


@pytest.mark.parametrize("names", [("words",), ("words", "types"), ("words", "types", "positions")])
def test_embeddings_before_an_encoder_become_one_operation_with_the_same_result(names, tmp_path):
    model = plain(names)
    ids = np.array([[1, 2, 3], [4, -1, 8]])
    inputs = [np.array([[1, 1, 1], [1, 1, 0]], bool), *[ids] * len(names)]
    wanted = core().compile_model(model, "CPU", F32)(inputs)[0]
    assert embedding_sum.replace(model) == 1
    model.validate_nodes_and_infer_types()
    kinds = [op.get_type_name() for op in model.get_ordered_ops()]
    assert kinds.count("EmbeddingSum") == 1
    assert not {"Gather", "MVN", "Multiply"} & set(kinds)
    np.testing.assert_allclose(core().compile_model(model, "CPU", F32)(inputs)[0], wanted, atol=1e-5)
    ov.save_model(model, tmp_path / MODEL, compress_to_fp16=False)
    tables = inspect_ir(tmp_path).embeddings
    assert [(t.module, t.shape, t.stored_type) for t in tables] == [
        (f"embeddings.{name}", (9, HIDDEN), "i8") for name in names
    ]


@pytest.mark.parametrize(
    "changed", [{"float_table": True}, {"extra_reader": True}, {"norm": False}, {"names": tuple("abcdefghi")}]
)
def test_embeddings_of_another_form_stay_as_they_are(changed):
    model = plain(**changed)
    assert embedding_sum.replace(model) == 0
    assert "EmbeddingSum" not in {op.get_type_name() for op in model.get_ordered_ops()}
