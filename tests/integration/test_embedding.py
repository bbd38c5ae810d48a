"""A tiny embedding model from texts to checked IRs, without labels and with them, and in sentence-transformers."""

import json
import random
import shutil
from contextlib import nullcontext
from pathlib import Path

import mteb
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from sentence_transformers import SentenceTransformer

import pruneofa
from tests.conftest import BAD, GOOD, sentence
from tests.helpers.cards import run_code
from tests.helpers.examples import service_modules
from tests.helpers.page import Page
from toolkit import reporting
from toolkit.core.artifacts import NullProgress
from toolkit.data.kinds.retrieval import read_retrieval
from toolkit.data.tasks import load_task
from toolkit.measure.accuracy import predict_ir
from toolkit.models.embedding.prompts import Prompts, write_prompts
from toolkit.models.load import load_tokenizer
from toolkit.pipeline.graph import finished_manifests
from toolkit.pipeline.run import Run
from toolkit.recipe import VARIANTS, Recipe, Task

STEPS = {"steps": 20, "batch_size": 8, "optimizer": {"AdamW": {"learning_rate": 1e-3}}}
TASK = {"kind": "embedding", "max_seq_length": 32}
PROMPTS = Prompts({"query": "the early story of ", "passage": "dull and late and grim : "})
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
    (folder / "qrels").mkdir()
    found["beir"] = str(folder / "qrels" / "test.tsv")
    for name, count in (("corpus", 30), ("queries", 10)):
        rows = [{"_id": f"{n}", "text": sentence(rng, GOOD)} for n in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = ["query-id\tcorpus-id\tscore", *(f"{n}\t{n}\t1" for n in range(10))]
    Path(found["beir"]).write_text("\n".join(judged) + "\n")
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
        "tasks": {"toy": TASK | task},
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


def first_column(file):
    return [line.split("\t")[0] for line in Path(file).read_text().splitlines()[1:]]


def unlabelled_task(tables):
    dev = {"dev": tables["scored"], "dev_columns": ["one", "two"], "dev_label": "score"}
    return {"train": tables["texts"], "columns": ["text"], "retrieval": {"beir": tables["beir"]}} | dev


@pytest.fixture(scope="module")
def unlabelled(tiny_bert, tables, tmp_path_factory):
    """A run without labels: stage -> manifest, and the folder of the task. The model has prompts for retrieval."""
    dense = tmp_path_factory.mktemp("dense") / "model"
    shutil.copytree(tiny_bert, dense)
    write_prompts(dense, PROMPTS)
    timing = {"warmup": 0, "iteration": 1, "seconds": 1, "batch_sizes": [1], "sequence_length": 32}
    benchmark = {"evaluation": {"performance": timing}}
    folder = tmp_path_factory.mktemp("unlabelled") / "run"
    return run(recipe(dense, unlabelled_task(tables), benchmark=benchmark), folder), folder / "tasks" / "toy"


def test_texts_without_labels_become_checked_irs(unlabelled):
    made, _ = unlabelled
    assert "task_teacher" not in made  # the dense model is the teacher as it is
    variants = made["export"].metrics["variants"]
    assert variants.keys() == set(VARIANTS)
    for figures in variants.values():
        ranks = {f"{metric} (beir)" for metric in ("ndcg@10", "mrr@10", "recall@100")}
        assert figures["ir"].keys() == {"spearman_cosine", "dense_cosine", "dense_cosine_p1"} | ranks
    assert variants["dense-fp32"]["ir"]["dense_cosine"] == pytest.approx(1, abs=1e-6)
    assert 0.5 < variants["sparse-int8"]["ir"]["dense_cosine"] < 0.9999
    assert made["quantize"].metrics["tuning"]["metric"] == "dense_cosine"
    assert made["benchmark"].metrics["variants"]["sparse-int8"]["accuracy"] == variants["sparse-int8"]["ir"]


def test_distillation_without_labels_brings_the_embeddings_closer(unlabelled):
    losses = [point["kd_loss"] for point in unlabelled[0]["transfer"].history]
    assert losses[-1] < losses[0]


def test_the_report_speaks_of_cosines_and_not_of_accuracy(unlabelled, tmp_path):
    reporting.build([finished_manifests(unlabelled[1].parent.parent)], tmp_path)
    for shown in (Page((tmp_path / "report.html").read_text()).shown, (tmp_path / "report.md").read_text()):
        assert "spearman_cosine" in shown
        assert "dense_cosine_p1" in shown
        assert "accuracy" not in shown.lower()


@pytest.mark.parametrize("variant", ["sparse-int8", "sparse-engine-int8"])
def test_the_code_of_a_card_runs(variant, unlabelled, monkeypatch):
    run = unlabelled[1].parent.parent
    reporting.write_cards(finished_manifests(run), run)
    runs = run_code(unlabelled[1] / "export" / variant / "README.md", monkeypatch)
    assert [(len(names["queries"]), len(names["documents"])) for names in runs] == [(1, 1)] * (
        1 if "engine" in variant else 2
    )


@pytest.mark.parametrize("variant", ["dense-fp32", "sparse-fp32", "sparse-int8"])
def test_an_ir_is_the_same_embedding_in_sentence_transformers(variant, unlabelled, tables):
    folder = unlabelled[1] / "export" / variant
    texts = first_column(tables["scored"])
    precision = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}
    opened = SentenceTransformer(str(folder), backend="openvino", device="cpu", model_kwargs=precision)
    assert [type(module).__name__ for module in opened] == ["Transformer", "Pooling", "Normalize"]
    assert opened.max_seq_length == 32
    found = opened.encode(texts, batch_size=8)
    tokenizer = load_tokenizer(folder)
    examples = [dict(tokenizer(text, truncation=True, max_length=32)) for text in texts]
    expected = predict_ir(folder, examples, tokenizer.pad_token_id, per_token=False)
    assert np.abs(found - np.asarray(expected)).max() < 1e-5
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_an_ir_on_the_sparse_engine_opens_as_the_same_embedding(unlabelled, tables):
    texts = first_column(tables["scored"])
    folder = unlabelled[1] / "export" / "sparse-engine-fp32"
    plain = pruneofa.load(folder.with_name("sparse-fp32"))
    opened = pruneofa.load(folder)
    assert isinstance(opened, SentenceTransformer)
    assert np.abs(opened.encode(texts) - plain.encode(texts)).max() < 1e-4


def test_the_service_of_the_examples_answers_with_the_embedding(unlabelled, tables):
    folder, texts = unlabelled[1] / "export" / "sparse-engine-fp32", first_column(tables["scored"])
    with service_modules() as modules:
        predictor = modules["predictor"]
        found = predictor.predictor(folder).run([predictor.Text(text) for text in texts])
    assert np.abs(np.array(found) - pruneofa.load(folder).encode(texts)).max() < 1e-5


@pytest.mark.parametrize("variant", ["dense-fp32", "sparse-int8", "sparse-engine-int8"])
def test_queries_and_documents_have_their_prompts_here_as_in_sentence_transformers(variant, unlabelled, tables):
    folder = unlabelled[1] / "export" / variant
    opened = pruneofa.load(folder)
    assert (opened.prompts["query"], opened.default_prompt_name) == (PROMPTS.query, None)
    texts, tokenizer = first_column(tables["scored"]), load_tokenizer(folder)
    for name, prompt in PROMPTS.texts.items():
        examples = [dict(tokenizer(prompt + text, truncation=True, max_length=32)) for text in texts]
        expected = predict_ir(folder, examples, tokenizer.pad_token_id, per_token=False)
        found = opened.encode(texts, prompt_name=name, batch_size=8)
        assert np.abs(found - np.asarray(expected)).max() < 1e-4
        assert np.abs(found - opened.encode(texts)).max() > 1e-2
    measured = load_task("toy", Task.model_validate(TASK | unlabelled_task(tables)), tokenizer).dev
    found = read_retrieval("beir", tables["beir"])
    expected = predict_ir(folder, measured, tokenizer.pad_token_id, per_token=False)[-40:]  # 10 queries, 30 documents
    embeddings = opened.encode_query(list(found.queries)), opened.encode_document(list(found.documents))
    assert np.abs(np.concatenate(embeddings) - np.asarray(expected)).max() < 1e-4


def test_mteb_evaluates_an_exported_folder_with_the_score_that_was_measured(unlabelled, tables):
    rows = [line.split("\t") for line in Path(tables["scored"]).read_text().splitlines()[1:]]
    columns = dict(zip(("sentence1", "sentence2", "score"), zip(*rows, strict=True), strict=True))

    class Local(AbsTaskSTS):
        metadata = TaskMetadata(
            name="Local",
            description="the dev rows of this file's recipe",
            dataset={"path": "local", "revision": "1"},
            type="STS",
            category="t2t",
            eval_splits=["dev"],
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
            bibtex_citation="",
        )
        min_score, max_score = 0, 6

        def load_data(self, **_):
            data = columns | {"score": [float(score) for score in columns["score"]]}
            self.dataset, self.data_loaded = DatasetDict({"dev": Dataset.from_dict(data)}), True

    variant = "sparse-engine-int8"
    found = mteb.evaluate(pruneofa.load(unlabelled[1] / "export" / variant), [Local()], cache=None)
    measured = unlabelled[0]["export"].metrics["variants"][variant]["ir"]["spearman_cosine"]
    assert found.task_results[0].scores["dev"][0]["cosine_spearman"] == pytest.approx(measured, abs=1e-3)


def test_a_checkpoint_is_the_same_embedding_in_sentence_transformers(unlabelled, tables):
    texts = first_column(tables["scored"])
    torch_model = SentenceTransformer(str(unlabelled[1] / "transfer"), device="cpu")
    precision = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}
    folder = unlabelled[1] / "export/sparse-fp32"
    ir = SentenceTransformer(str(folder), backend="openvino", device="cpu", model_kwargs=precision)
    assert np.abs(torch_model.encode(texts) - ir.encode(texts)).max() < 1e-3


@pytest.mark.parametrize("form", ["scored", "pairs", "triplets"])
def test_a_dense_model_is_fitted_to_labels_and_teaches_with_them(form, tiny_bert, tables, tmp_path):
    task = {
        "scored": {"train": tables["scored"], "dev": tables["scored"], "columns": ["one", "two"], "label": "score"},
        "pairs": {"train": tables["scored"], "dev": tables["scored"], "columns": ["one", "two"]},
        "triplets": {"train": tables["triplets"], "dev": tables["triplets"], "columns": ["one", "two", "no"]},
    }[form]
    chosen = recipe(tiny_bert, task, {}, task_teacher={"train": STEPS}, quantize=None, export=None)
    made = run(chosen, tmp_path / "run")
    first = {"scored": "spearman_cosine", "pairs": "dense_cosine", "triplets": "cosine_accuracy"}[form]
    for stage in ("task_teacher", "transfer"):
        assert next(iter(made[stage].metrics["dev"])) == first
        history = made[stage].history
        assert history[-1]["task_loss"] < history[0]["task_loss"]
    assert made["task_teacher"].metrics["dev"]["dense_cosine"] == pytest.approx(1, abs=1e-6)
    assert made["transfer"].metrics["dev"]["dense_cosine"] < 0.9999
    assert made["transfer"].history[0]["kd_loss"] > 0
