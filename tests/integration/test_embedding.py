"""A tiny embedding model from texts to checked IRs, without labels and with them, and in sentence-transformers."""

import json
import random
from contextlib import nullcontext

import numpy as np
import pytest

from tests.conftest import BAD, GOOD, sentence
from toolkit.core.artifacts import NullProgress
from toolkit.measure.accuracy import predict_ir
from toolkit.models.load import load_tokenizer
from toolkit.pipeline.run import Run
from toolkit.recipe import VARIANTS, Recipe

STEPS = {"steps": 20, "batch_size": 8, "optimizer": {"AdamW": {"learning_rate": 1e-3}}}
ALONE = {"criterion": {"KnowledgeDistillationLoss": {"loss_weights": [0, 1]}}}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Form of the rows -> file with 60 of them."""
    folder, rng = tmp_path_factory.mktemp("embedding"), random.Random(4)
    found = {}
    for name, columns in (("texts", ["text"]), ("scored", ["one", "two", "score"]), ("triplets", ["one", "two", "no"])):
        rows = []
        for n in range(60):
            first, other = sentence(rng, GOOD), sentence(rng, (GOOD, BAD)[n % 2])
            last = sentence(rng, BAD) if name == "triplets" else str(5 * (1 - n % 2) + rng.random())
            rows.append([first, other, last][: len(columns)])
        file = folder / f"{name}.tsv"
        file.write_text("".join("\t".join(row) + "\n" for row in [columns, *rows]))
        found[name] = str(file)
    return found


def recipe(model, task, distilled=ALONE, **more):
    pruner = {
        "target_sparsity": 0.9,
        "end_step": 10,
        "update_frequency_on_step": 1,
        "pruners": [{"prune_type": "magnitude"}],
    }
    values = {
        "name": "embedding",
        "model": {"source": str(model)},
        "tasks": {"toy": {"kind": "embedding", "max_seq_length": 32} | task},
        "transfer": {
            "pruning": {"approach": {"weight_compression": pruner}},
            "distillation": {"train": STEPS | distilled},
        },
        "quantize": {
            "distillation": {"train": STEPS | distilled},
            "quantization": {"calibration": {"sampling_size": 8}},
        },
        "export": {"metric_tolerance": 0.5, "tolerance": 0.2},
    }
    return Recipe.model_validate(values | more)


def run(chosen, folder):
    made = {m.stage: m for m in Run(chosen, folder, lambda step: nullcontext(NullProgress()))()}
    assert all(check.ok for m in made.values() for check in m.checks)
    return made


def test_texts_without_labels_become_checked_irs(tiny_bert, tables, tmp_path):
    task = {
        "train": tables["texts"],
        "columns": ["text"],
        "dev": tables["scored"],
        "dev_columns": ["one", "two"],
        "dev_label": "score",
    }
    timing = {"warmup": 0, "iteration": 1, "seconds": 1, "batch_sizes": [1], "sequence_length": 32}
    made = run(recipe(tiny_bert, task, benchmark={"evaluation": {"performance": timing}}), tmp_path / "run")
    assert "task_teacher" not in made  # the dense model is the teacher as it is
    variants = made["export"].metrics["variants"]
    assert variants.keys() == set(VARIANTS)
    for figures in variants.values():
        assert figures["ir"].keys() == {"spearman_cosine", "dense_cosine", "dense_cosine_p1"}
    assert variants["dense-fp32"]["ir"]["dense_cosine"] == pytest.approx(1, abs=1e-6)
    assert 0.5 < variants["sparse-int8"]["ir"]["dense_cosine"] < 0.9999
    assert made["quantize"].metrics["tuning"]["metric"] == "dense_cosine"
