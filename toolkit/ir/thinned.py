"""Copies of an INT8 IR with more zeros, whose latency is that of a model pruned alike: it depends on no other value."""

from collections.abc import Collection
from pathlib import Path

from toolkit.ir.constants import constant_of
from toolkit.ir.inspect import module_of
from toolkit.ir.products import has_constant_matrix
from toolkit.ir.runtime import MODEL, read_ir


def thin(source: Path, target: Path, modules: Collection[str], zeros: float, block: int) -> None:
    """Writes a copy of an IR in which the smallest codes of some matrices are zero; its predictions mean nothing.

    Args:
        source: IR folder whose matrices are stored as 8-bit codes, [rows, columns] each.
        target: Folder to write; receives the model only.
        modules: Names of the torch modules whose matrices get zeros.
        zeros: Fraction of the blocks that become zero in each matrix, rounded up.
        block: Number of rows of a block, which divides those of every matrix; 1: single codes.
    """
    import numpy as np
    import openvino as ov
    from openvino import opset13

    model = read_ir(source)
    missing = set(modules)
    for op in model.get_ordered_ops():
        if op.get_type_name() != "MatMul" or module_of(op) not in missing or not has_constant_matrix(op):
            continue
        constant = constant_of(op)
        assert constant is not None
        assert constant.get_element_type().get_type_name() == "i8", f"{op.get_friendly_name()} is not in 8 bits"
        codes = np.array(constant.data)
        blocks = codes.reshape(len(codes) // block, block, -1)
        size = np.abs(blocks.astype(np.int32)).sum(axis=1)
        smallest = np.argsort(size, axis=None, kind="stable")[: int(np.ceil(zeros * size.size))]
        row, column = np.unravel_index(smallest, size.shape)
        blocks[row, :, column] = 0
        thinned = opset13.constant(blocks.reshape(codes.shape))
        constant.output(0).replace(thinned.output(0))
        thinned.set_friendly_name(constant.get_friendly_name())
        missing.discard(module_of(op))
    assert not missing, f"the IR has no matrix of {', '.join(sorted(missing))}"
    target.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, target / MODEL, compress_to_fp16=False)
