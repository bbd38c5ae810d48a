"""Damaged mask files: they are read and fit the weights, or they are a UserError."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tests.fuzz.damage import VALUES, damaged, damaged_bytes, refused_or
from tests.fuzz.folders import tensors, write_checkpoint
from toolkit.models.checkpoint import encoder_matrices
from toolkit.sparsity.mask_file import MASK_FILE, read_mask, require_fitting_mask

MATRICES = {n: w for n, w in tensors().items() if w.ndim == 2 and ".layer." in n}
SHAPES = {name: list(weight.shape) for name, weight in MATRICES.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("fuzzed") / "model")


def use(folder: Path) -> None:
    refused_or(lambda: read_mask(folder / MASK_FILE))
    refused_or(lambda: require_fitting_mask(folder, encoder_matrices(folder)))


def write(folder: Path, shapes: str) -> None:
    bits = {name: np.packbits(weight != 0) for name, weight in MATRICES.items()}
    save_file(bits, folder / MASK_FILE, metadata={"shapes": shapes})


def test_the_mask_that_is_damaged_is_valid(folder):
    write(folder, json.dumps(SHAPES))
    require_fitting_mask(folder, encoder_matrices(folder))
    assert read_mask(folder / MASK_FILE).keys() == MATRICES.keys()


@given(shapes=st.one_of(damaged(SHAPES), VALUES))
def test_a_mask_with_other_shapes_is_refused_or_used(folder, shapes):
    write(folder, json.dumps(shapes).encode("utf-8", "replace").decode())
    use(folder)


@given(data=st.data())
def test_a_damaged_mask_is_refused_or_used(folder, data):
    write(folder, json.dumps(SHAPES))
    (folder / MASK_FILE).write_bytes(data.draw(damaged_bytes((folder / MASK_FILE).read_bytes())))
    use(folder)
