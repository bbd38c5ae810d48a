"""A reranker and a multi-label classifier as other libraries open them, and in the report."""

import json
import random
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder

import pruneofa
from tests.conftest import BAD, GOOD, NOUNS, sentence
from tests.helpers.cards import run_code
from tests.helpers.page import Page
from toolkit import reporting
from toolkit.core.artifacts import NullProgress
from toolkit.measure.accuracy import predict_ir
from toolkit.models.load import load_tokenizer
from toolkit.pipeline.graph import finished_manifests
from toolkit.pipeline.run import Run
from toolkit.recipe import Recipe

STEPS = {"steps": 20, "batch_size": 8, "optimizer": {"AdamW": {"learning_rate": 1e-3}}}
LONGEST = 24
F32 = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}  # else bf16 on some CPUs


def run(model, task, folder, **more):
    pruner = {"target_sparsity": 0.5, "end_step": 10, "update_frequency_on_step": 1}
    approach = {"weight_compression": pruner | {"pruners": [{"prune_type": "magnitude"}]}}
    values = {
        "name": "toy",
        "model": {"source": str(model)},
        "tasks": {"toy": {"max_seq_length": LONGEST} | task},
        "task_teacher": {"train": STEPS},
        "transfer": {"pruning": {"approach": approach}, "distillation": {"train": STEPS}},
        "quantize": {"quantization": {"approach": "post_training_static_quant", "calibration": {"sampling_size": 8}}},
        "export": {"metric_tolerance": 0.9, "tolerance": 0.5},
    }
    chosen = Recipe.model_validate(values | more)
    made = {m.stage: m for m in Run(chosen, folder, lambda step: nullcontext(NullProgress()))()}
    assert all(check.ok for m in made.values() for check in m.checks)
    return made


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    """A folder in BEIR's layout: each of 20 queries has two relevant documents of 60, which are longer than LONGEST."""
    folder, rng = tmp_path_factory.mktemp("beir"), random.Random(3)
    (folder / "qrels").mkdir()
    asked = rng.sample(NOUNS, 20)
    texts = [" ".join([asked[n % 20], *(sentence(rng, GOOD) for _ in range(6))]) for n in range(60)]
    for name, found in (("corpus", texts), ("queries", asked)):
        rows = [{"_id": str(n), "text": text} for n, text in enumerate(found)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = [f"{n}\t{n + 20 * more}\t{2 - more}" for n in range(20) for more in range(2)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return str(folder / "qrels" / "test.tsv")


@pytest.fixture(scope="module")
def varied(tiny_bert, tmp_path_factory):
    """The tiny BERT with larger weights: its own differ so little between texts that any scores would be close."""
    folder = tmp_path_factory.mktemp("varied") / "model"
    shutil.copytree(tiny_bert, folder)
    tensors = load_file(folder / "model.safetensors")
    layers = {name: 8 * t if ".layer." in name and t.dim() == 2 else t for name, t in tensors.items()}
    save_file(layers, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def reranker(varied, beir, tmp_path_factory):
    """A run on a BEIR folder, half of whose queries are held out: stage -> manifest, and the folder of the task."""
    task = {
        "kind": "reranking",
        "train": beir,
        "hold_out": {"column": "query", "fraction": 0.5},
        "ranking": {"group": 2, "bm25": 6},
        "metrics": ["ndcg@10", "mrr@10"],
    }
    timing = {"warmup": 0, "iteration": 1, "seconds": 1, "batch_sizes": [1], "sequence_length": LONGEST}
    folder = tmp_path_factory.mktemp("reranker") / "run"
    made = run(varied, task, folder, benchmark={"evaluation": {"performance": timing}})
    return made, folder / "tasks" / "toy"


def test_a_beir_folder_becomes_checked_irs(reranker):
    variants = reranker[0]["export"].metrics["variants"]
    for figures in variants.values():
        assert figures["ir"].keys() == {"ndcg@10", "mrr@10"}
        assert 0 < figures["ir"]["ndcg@10"] <= 1
    history = reranker[0]["transfer"].history
    assert history[-1]["kd_loss"] != history[0]["kd_loss"]
    assert reranker[0]["quantize"].metrics["tuning"]["metric"] == "ndcg@10"


def test_the_report_speaks_of_ndcg_and_not_of_accuracy(reranker, tmp_path):
    reporting.build([finished_manifests(reranker[1].parent.parent)], tmp_path)
    for shown in (Page((tmp_path / "report.html").read_text()).shown, (tmp_path / "report.md").read_text()):
        assert "ndcg@10" in shown
        assert "accuracy" not in shown.lower()


def pairs(beir):
    folder = Path(beir).parent.parent
    asked, texts = (
        [json.loads(line)["text"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("queries", "corpus")
    )
    return [(asked[n % 20], texts[n]) for n in range(40)] + [(asked[0], texts[1])]


@pytest.mark.parametrize("variant", ["dense-fp32", "sparse-fp32", "sparse-int8"])
def test_an_ir_gives_the_same_scores_in_sentence_transformers(variant, reranker, beir):
    folder, rows = reranker[1] / "export" / variant, pairs(beir)
    opened = CrossEncoder(str(folder), backend="openvino", device="cpu", model_kwargs=F32)
    assert isinstance(opened.activation_fn, torch.nn.Sigmoid)
    found = opened.predict(rows, batch_size=8)
    tokenizer = load_tokenizer(folder)
    examples = [dict(tokenizer(*row, truncation=True, max_length=LONGEST)) for row in rows]
    assert max(len(e["input_ids"]) for e in examples) == LONGEST  # it must truncate as the task does
    logits = np.asarray(predict_ir(folder, examples, tokenizer.pad_token_id, per_token=False))[:, 0]
    assert np.abs(found - 1 / (1 + np.exp(-logits))).max() < 0.1 * found.std()  # they differ from pair to pair


def test_a_reranker_is_loaded_as_a_classifier_and_not_as_an_embedding_model(reranker):
    opened = pruneofa.load(reranker[1] / "export" / "sparse-int8")
    assert type(opened).__name__ == "OVModelForSequenceClassification"


def test_the_code_of_a_card_runs(reranker, monkeypatch):
    run = reranker[1].parent.parent
    reporting.write_cards(finished_manifests(run), run)
    own, cross_encoder = run_code(reranker[1] / "export" / "sparse-int8" / "README.md", monkeypatch)
    assert own["score"] == pytest.approx(float(cross_encoder["scores"][0]), abs=1e-4)


def test_a_checkpoint_gives_the_same_scores_as_its_ir(reranker, beir):
    rows = pairs(beir)
    torch_model = CrossEncoder(str(reranker[1] / "transfer"), device="cpu")
    ir = CrossEncoder(str(reranker[1] / "export/sparse-fp32"), backend="openvino", device="cpu", model_kwargs=F32)
    assert np.abs(torch_model.predict(rows) - ir.predict(rows)).max() < 1e-3


def test_scores_that_are_no_probabilities_come_as_they_are(tiny_bert, tmp_path):
    rng = random.Random(1)
    rows = [(NOUNS[n // 4], sentence(rng, GOOD), 3 * (n % 4) - 2) for n in range(60)]
    file = tmp_path / "scores.tsv"
    file.write_text("query\tpassage\tlabel\n" + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    task = {"kind": "reranking", "train": str(file), "dev": str(file), "ranking": {"loss": "mse"}}
    made = run(tiny_bert, task, tmp_path / "run", transfer=None, quantize=None, export={"variants": ["dense-fp32"]})
    history = made["task_teacher"].history
    assert history[-1]["task_loss"] < history[0]["task_loss"]
    folder = tmp_path / "run/tasks/toy/export/dense-fp32"
    opened = CrossEncoder(str(folder), backend="openvino", device="cpu", model_kwargs=F32)
    assert isinstance(opened.activation_fn, torch.nn.Identity)
    tokenizer = load_tokenizer(folder)
    examples = [dict(tokenizer(*row[:2], truncation=True, max_length=LONGEST)) for row in rows]
    logits = np.asarray(predict_ir(folder, examples, tokenizer.pad_token_id, per_token=False))[:, 0]
    assert np.abs(opened.predict([row[:2] for row in rows]) - logits).max() < 1e-4


@pytest.mark.parametrize("kind", ["reranking", "multi_label"])
def test_a_transfer_starts_from_kept_weights_computed_again(kind, tiny_bert, files, tiny_text, tmp_path):
    compression = {"target_sparsity": 0.5, "end_step": 2, "update_frequency_on_step": 1}
    made = run(
        tiny_bert,
        files[kind],
        tmp_path / "run",
        corpus={"files": [str(tiny_text)], "max_seq_length": 32, "limit": 40},
        student={"pruning": {"approach": {"weight_compression": compression}}, "distillation": {"train": STEPS}},
        transfer={"reconstruction": {"examples": 60}, "distillation": {"train": STEPS}},
        quantize=None,
        export={"variants": ["sparse-fp32"]},
    )
    assert made["transfer"].metrics["reconstruction"]


def test_several_classes_at_once_in_the_pipeline_of_transformers(tiny_bert, files, tmp_path):
    from optimum.intel import OVModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    made = run(tiny_bert, files["multi_label"], tmp_path / "run")
    reporting.build([finished_manifests(tmp_path / "run")], tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "f1_micro" in report
    assert "accuracy" not in report.lower()
    assert made["transfer"].metrics["dev"].keys() == {"f1_micro", "f1_macro", "average_precision"}
    folder = tmp_path / "run/tasks/toy"
    text = {"text": sentence(random.Random(0), GOOD), "text_pair": sentence(random.Random(1), BAD)}
    tokenizer = AutoTokenizer.from_pretrained(folder / "transfer")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "transfer").eval()
    assert model.config.problem_type == "multi_label_classification"
    with torch.no_grad():
        wanted = torch.sigmoid(model(**tokenizer(*text.values(), return_tensors="pt")).logits[0]).tolist()
    ir = OVModelForSequenceClassification.from_pretrained(folder / "export/sparse-fp32", **F32)
    for opened in (model, ir):
        found = pipeline("text-classification", model=opened, tokenizer=tokenizer, top_k=None)(text)
        assert {one["label"]: one["score"] for one in found} == pytest.approx(
            dict(zip(["none", "other", "same"], wanted, strict=True)), abs=1e-3
        )
