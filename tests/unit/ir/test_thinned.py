"""Copies of an INT8 IR with more zeros: which weights are zero, and that the sparse engine takes them."""

import numpy as np
import pytest

from tests.helpers.quantization import Case
from toolkit.ir import kernels
from toolkit.ir.constants import constant_of
from toolkit.ir.inspect import inspect_ir, module_of
from toolkit.ir.runtime import read_ir
from toolkit.ir.sparse_engine import to_sparse_engine
from toolkit.ir.thinned import thin

QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def case(tiny_bert, tiny_task_files):
    return Case(tiny_bert, tiny_task_files)


@pytest.fixture(scope="module")
def plain(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinned") / "int8"
    case.export(case.quantized()[0], folder)
    return folder


def codes(folder):
    """Torch module -> stored codes of its matrix."""
    found = [op for op in read_ir(folder).get_ordered_ops() if op.get_type_name() == "MatMul"]
    return {module_of(op): np.array(constant_of(op).data) for op in found if constant_of(op) is not None}


@pytest.mark.parametrize("block", [1, 4])
def test_the_smallest_blocks_of_the_named_matrices_are_zero_and_all_else_is_as_before(plain, tmp_path, block):
    before = codes(plain)
    modules = {module for module in before if ".layer." in module} - {QUERY}
    thin(plain, tmp_path, modules, 0.95, block)
    after = codes(tmp_path)
    for module, old in before.items():
        new = after[module]
        if module not in modules:
            assert np.array_equal(new, old)
            continue
        size = np.abs(old.astype(int)).reshape(len(old) // block, block, -1).sum(1)
        kept = new.reshape(len(old) // block, block, -1).any(1)
        assert np.array_equal(new, old * np.repeat(kept, block, axis=0))
        assert (~kept).sum() >= 0.95 * size.size
        assert not kept.any() or size[kept].min() >= size[~kept].max()


@pytest.mark.parametrize("block", [1, 4])
def test_the_sparse_engine_takes_every_matrix(plain, tmp_path, block):
    kernels.build()
    modules = {module for module in codes(plain) if ".layer." in module}
    thin(plain, tmp_path / "thin", modules, 0.7, block)
    made = to_sparse_engine(tmp_path / "thin", tmp_path / "engine")
    assert len(made.matrices) == made.in_8_bits == len(modules)
    stored = {m.module: m for m in inspect_ir(tmp_path / "engine").matmuls}
    assert all(stored[module].zero_fraction >= 0.7 for module in modules)
