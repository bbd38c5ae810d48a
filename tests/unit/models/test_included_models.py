"""The sparse models that come with the package, and the files that they are stored in."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from toolkit.core.errors import UserError
from toolkit.core.files import file_hash
from toolkit.models import included_models
from toolkit.models.depth import depth_metrics, is_shallow
from toolkit.models.included_models import MODELS, IncludedModel, card, included_model
from toolkit.models.kept_weights import read_card, read_kept, write_kept
from toolkit.models.sources import fetch_model, local_model

NAME = "encoder.layer.0.output.dense.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An included model of one matrix and one bias, whose dense model also has an embedding."""
    rng = np.random.default_rng(0)
    dense, folder = tmp_path / "dense", tmp_path / "included"
    dense.mkdir()
    folder.mkdir()
    (dense / "config.json").write_text("{}")
    weights = {NAME: rng.normal(size=(8, 6)), "bias": rng.normal(size=8), "embeddings": rng.normal(size=(5, 6))}
    save_file({n: w.astype(np.float32) for n, w in weights.items()}, dense / "model.safetensors")
    mask = rng.random((8, 6)) < 0.3
    weight = np.where(mask, rng.normal(size=(8, 6)), 0).astype(np.float16).astype(np.float32)
    trained = {NAME: weight, "bias": np.arange(8, dtype=np.float32)}
    write_kept(folder / "tiny.safetensors", trained, {NAME: mask}, {"tokens": 3})
    hashes = file_hash(folder / "tiny.safetensors"), file_hash(dense / "model.safetensors")
    monkeypatch.setattr(included_models, "INCLUDED", folder)
    monkeypatch.setattr(included_models, "package_path", lambda source: dense)
    monkeypatch.setitem(MODELS, "tiny", IncludedModel(hashes[0], "package:dense", hashes[1]))
    return dense, trained, mask


def test_matrices_without_a_mask_are_rounded_to_a_step_of_their_row_if_wanted(tmp_path):
    rng, path = np.random.default_rng(1), tmp_path / "codes.safetensors"
    weight = rng.normal(size=(6, 40)).astype(np.float32) * np.array([[1e-3], [1], [50], [0], [1e-9], [2]])
    trained = {NAME: weight.astype(np.float32), "bias": rng.normal(size=6).astype(np.float32)}
    write_kept(path, trained, {}, {}, codes=True)
    found, masks = read_kept(path)
    assert (masks, found[NAME].dtype) == ({}, np.float32)
    step = np.abs(weight).max(axis=1, keepdims=True) / 128
    assert (np.abs(found[NAME] - weight) <= step * 0.501).all()
    assert (found[NAME] != 0).all(axis=1).tolist() == [True, True, True, False, True, True]
    assert np.array_equal(found["bias"], trained["bias"])
    write_kept(path, trained, {}, {})
    assert np.array_equal(read_kept(path)[0][NAME], trained[NAME])


def test_a_file_gives_back_parameters_masks_and_card(tiny):
    _, trained, mask = tiny
    found, masks = read_kept(included_models.INCLUDED / "tiny.safetensors")
    assert found.keys() == trained.keys()
    assert all(np.array_equal(found[n], trained[n]) for n in trained)
    assert np.array_equal(masks[NAME], mask)
    assert read_card(included_models.INCLUDED / "tiny.safetensors") == {"tokens": 3}


def test_the_folder_is_the_dense_model_with_the_trained_parameters(tiny):
    dense, trained, _ = tiny
    folder = fetch_model("included:tiny")
    expected = load_file(dense / "model.safetensors") | trained
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[n], expected[n]) for n in expected)
    assert (folder / "config.json").read_text() == "{}"


def test_a_model_of_fewer_layers_has_no_others_and_says_which_it_keeps(tiny, monkeypatch):
    dense, trained, mask = tiny
    other = {n.replace(".0.", f".{i}."): t for i in range(4) for n, t in trained.items() if n == NAME}
    save_file(other | {"embeddings": np.ones((5, 6), np.float32)}, dense / "model.safetensors")
    (dense / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 4}')
    path = included_models.INCLUDED / "tiny.safetensors"
    write_kept(path, {NAME: trained[NAME]}, {NAME: mask}, {"layers": [2]})
    hashes = file_hash(path), file_hash(dense / "model.safetensors")
    monkeypatch.setitem(MODELS, "tiny", IncludedModel(hashes[0], "package:dense", hashes[1]))
    folder = fetch_model("included:tiny")
    assert load_file(folder / "model.safetensors").keys() == {NAME, "embeddings"}
    config = json.loads((folder / "config.json").read_text())
    assert depth_metrics(config) == {"kept_layers": [2], "layers_before": 4}
    assert config["num_hidden_layers"] == 1


def test_it_is_put_together_once(tiny):
    first = included_model("included:tiny")
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert included_model("included:tiny") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert list(first.parent.iterdir()) == [first], "a partial folder was left behind"


@pytest.mark.parametrize("damaged", ["included", "dense"])
def test_a_file_of_another_version_is_refused(tiny, damaged, cache):
    path = included_models.INCLUDED / "tiny.safetensors" if damaged == "included" else tiny[0] / "model.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match="is not the one that included:tiny was made with") as error:
        included_model("included:tiny")
    assert str(path) in str(error.value)
    assert not list(cache.rglob("model.safetensors"))


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UserError, match="included:minilm-80-1x1"):
        local_model("included:minilm-99")


def test_a_cache_that_cannot_be_written_is_named(tiny, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        included_model("included:tiny")


@pytest.mark.parametrize("name", list(MODELS))
def test_the_files_of_the_package_have_their_hashes_zeros_and_cards(name):
    path = included_models.INCLUDED / f"{name}.safetensors"
    assert file_hash(path) == MODELS[name].sha256
    assert path.stat().st_size < 8e6
    facts = card(name)
    trained, masks = read_kept(path)
    zeros, weights = sum(int((~m).sum()) for m in masks.values()), sum(m.size for m in masks.values())
    assert len(masks) == (6 * len(facts.get("layers", range(6))) if facts["sparsity"] else 0)
    assert zeros == pytest.approx(facts["sparsity"] * weights, abs=1e-3 * weights)
    assert all(not trained[n][~mask].any() for n, mask in masks.items())
    rows = facts["rows"]
    for mask in masks.values():
        blocks = mask.reshape(-1, rows, mask.shape[1])
        assert (blocks.all(axis=1) == blocks.any(axis=1)).all()
    assert {"text", "machine", "made_by", "real_tokens", "stsb_dev"} <= json.loads(json.dumps(facts)).keys()


@pytest.mark.parametrize("name", list(MODELS))
def test_an_included_model_is_a_checkpoint_of_a_task_model_with_zeros_or_fewer_layers(name):
    from toolkit.models.load import load_task_model, prunable_matrices
    from toolkit.sparsity.mask import checkpoint_mask

    folder = fetch_model(f"included:{name}")
    matrices = prunable_matrices(load_task_model(folder, "classification", ["no", "yes"], fitted=False))
    stated = card(name)["sparsity"]
    assert is_shallow(folder) == (not stated)
    if stated:
        assert checkpoint_mask(folder, matrices).sparsity() == pytest.approx(stated, abs=1e-3)
