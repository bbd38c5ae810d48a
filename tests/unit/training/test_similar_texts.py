"""Texts that a model's embeddings find similar."""

import numpy as np
import pytest

from toolkit.core.artifacts import Artifact
from toolkit.models.load import load_tokenizer
from toolkit.training import evaluation
from toolkit.training.evaluation import SimilarTexts

TEXTS = ["a good film", "a good film .", "the bad actor told a story", "the bad actor told the story", "film"]


@pytest.fixture
def similar(tiny_bert, tmp_path):
    artifact = Artifact(path=tiny_bert, kind="dense", sha256="one")
    return SimilarTexts(artifact, load_tokenizer(tiny_bert), 16, tmp_path / "cache")


def test_a_text_is_followed_by_its_likes(similar):
    found = similar(TEXTS, 2)
    assert found.shape == (5, 2)
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert found[:4, 1].tolist() == [1, 0, 3, 2]


def test_the_first_result_is_kept(similar, monkeypatch):
    found = similar(TEXTS, 2)
    monkeypatch.setattr(evaluation, "_nearest", lambda *_: np.zeros((5, 2), dtype=np.int32))
    assert (similar(TEXTS, 2) == found).all()
    assert not similar(TEXTS, 1).any()  # another question


def test_the_order_is_that_of_the_cosines_of_centred_embeddings():
    embeddings = np.random.default_rng(0).normal(5, 1, (700, 8))  # more than are compared at once
    centred = embeddings - embeddings.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    expected = np.argsort(-(centred @ centred.T), axis=1)[:, :9]
    assert (evaluation._nearest(embeddings, 9) == expected).all()
