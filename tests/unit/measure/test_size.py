"""Sizes under every definition, against figures computed by hand for published models."""

import gzip

import numpy as np
import pytest
from safetensors.numpy import save_file

from toolkit.measure import size
from toolkit.measure.size import Footprint, Matrix

# Parameters of the published models: encoder matrices, embeddings, the rest.
BERT_BASE = (84_934_656, 23_837_184, 710_400)
BERT_LARGE = (301_989_888, 31_782_912, 1_369_088)


def at_90(encoder: int, embeddings: int, other: int) -> Footprint:
    return Footprint((Matrix(encoder, round(encoder * 0.1)),), embeddings, other)


@pytest.mark.parametrize(
    ("label", "megabytes", "ratio"),
    [
        (size.VALUES, 8.5, 40.0),
        (size.MASKED, 19.1, 17.8),
        (size.INDEXED, 17.0, 20.0),
        (size.ENTROPY, 13.5, 25.2),
    ],
)
def test_encoder_of_bert_base_at_90_percent_and_8_bits_has_the_known_size(label, megabytes, ratio):
    footprint = at_90(*BERT_BASE)
    bytes_ = footprint.sizes(value_bytes=1, sparse=True)[label]
    assert bytes_ / 1e6 == pytest.approx(megabytes, abs=0.05)
    assert footprint.reference()["encoder"] / bytes_ == pytest.approx(ratio, abs=0.05)


@pytest.mark.parametrize(
    ("model", "label", "megabytes"),
    [
        (BERT_BASE, size.WHOLE_FP32, 117),
        (BERT_BASE, size.WHOLE_INT8, 46),
        (BERT_BASE, size.PLAIN, 183),
        (BERT_LARGE, size.WHOLE_FP32, 201),
        (BERT_LARGE, size.PLAIN, 435),
    ],
)
def test_whole_model_at_90_percent_and_8_bits_has_the_known_size(model, label, megabytes):
    assert at_90(*model).sizes(value_bytes=1, sparse=True)[label] / 1e6 == pytest.approx(megabytes, abs=0.5)


def test_matrices_in_fp32_count_four_bytes_a_value_in_an_8_bit_model():
    footprint = Footprint((Matrix(1000, 100, "a"), Matrix(1000, 200, "b")), 50, 10)
    sizes = footprint.sizes(value_bytes=1, sparse=True, fp32={"b"}, int8_embeddings=False)
    assert sizes[size.VALUES] == 100 + 4 * 200
    assert sizes[size.PLAIN] == 1000 + 4 * 1000 + 4 * 60
    assert size.WHOLE_INT8 not in sizes
    assert footprint.sizes(value_bytes=1, sparse=False, fp32={"b"})[size.VALUES] == 1000 + 4 * 1000


def test_dense_model_keeps_all_values_and_has_no_mask():
    footprint = at_90(*BERT_BASE)
    sizes = footprint.sizes(value_bytes=4, sparse=False)
    assert sizes[size.VALUES] == sizes[size.MASKED] == footprint.reference()["encoder"]
    assert sizes[size.PLAIN] == footprint.reference()["whole model"]
    assert size.WHOLE_INT8 not in sizes
    assert size.ENTROPY not in sizes


def test_entropy_is_one_bit_a_weight_at_half_and_nothing_where_all_is_kept():
    assert Matrix(1000, 500).mask_entropy() == pytest.approx(1000)
    assert Matrix(1000, 1000).mask_entropy() == 0
    assert Matrix(1000, 0).mask_entropy() == 0


def test_counting_reads_matrices_embeddings_and_the_rest_from_a_checkpoint(tmp_path):
    tensors = {
        "bert.embeddings.word_embeddings.weight": np.zeros((50, 8), np.float32),
        "bert.embeddings.position_ids": np.zeros((1, 16), np.int64),
        "bert.embeddings.LayerNorm.weight": np.zeros(8, np.float32),
        "bert.encoder.layer.0.output.dense.weight": np.zeros((8, 32), np.float32),
        "classifier.weight": np.zeros((2, 8), np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    footprint = size.count_weights(tmp_path, {"bert.encoder.layer.0.output.dense.weight": 26})
    assert footprint == Footprint(
        (Matrix(256, 26, "bert.encoder.layer.0.output.dense.weight"),), embeddings=400, other=8 + 16
    )


def test_file_sizes_are_those_of_the_file_and_of_its_gzip(tmp_path):
    content = np.random.default_rng(0).integers(0, 3, 3_000_000, np.uint8).tobytes()
    (tmp_path / "openvino_model.bin").write_bytes(content)
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    sizes = size.file_sizes(tmp_path)
    assert sizes[size.FILE] == len(content)
    assert sizes[size.GZIP] == pytest.approx(len(gzip.compress(content, 6)), rel=0.001)
    assert sizes[size.BUNDLE] < sizes[size.FILE]
    assert {p.name for p in tmp_path.iterdir()} == {"openvino_model.bin", "openvino_model.xml"}
