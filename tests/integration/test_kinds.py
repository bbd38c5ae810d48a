"""Every kind of task and every architecture from text to checked INT8 IR, on tiny models with random weights."""

from contextlib import nullcontext

import pytest
import torch

from tests.helpers.cards import run_code
from tests.helpers.encoders import tiny_encoders
from toolkit import reporting
from toolkit.core.artifacts import NullProgress
from toolkit.data.tasks import load_task
from toolkit.measure.accuracy import predict_ir
from toolkit.models.load import load_task_model, load_tokenizer
from toolkit.pipeline.run import Run
from toolkit.quantization import nncf
from toolkit.recipe import VARIANTS, Recipe
from toolkit.training.evaluation import predict

MATRICES = 12  # of two layers: query, key, value, output, and the two of the feed-forward part


@pytest.fixture(scope="module")
def folders(tiny_bert, tiny_text, tmp_path_factory):
    return tiny_encoders(tiny_bert, tiny_text, tmp_path_factory)


def recipe(model, task, text, benchmark: bool) -> Recipe:
    steps = {"steps": 3, "batch_size": 8}
    learnt = {"steps": 80, "batch_size": 16, "optimizer": {"AdamW": {"learning_rate": 3e-3}}}
    # After three steps a number hardly varies, and every difference is large beside its range; and no word has a tag.
    fitted = learnt if task.get("kind") in ("regression", "token_classification") else steps
    pruner = {"target_sparsity": 0.9, "end_step": 2, "update_frequency_on_step": 1}
    values = {
        "name": "kinds",
        "model": {"source": str(model)},
        "tasks": {"toy": task},
        "corpus": {"files": [str(text)], "max_seq_length": 32, "limit": 40},
        "teacher": {"train": steps},
        "student": {
            "pruning": {"approach": {"weight_compression": pruner | {"pruners": [{"prune_type": "magnitude"}]}}},
            "distillation": {"train": steps},
        },
        "task_teacher": {"train": fitted},
        "transfer": {"distillation": {"train": fitted}},
        "quantize": {"distillation": {"train": fitted}, "quantization": {"calibration": {"sampling_size": 8}}},
        "export": {"metric_tolerance": 0.5, "tolerance": 0.2},
    }
    if benchmark:
        timing = {"warmup": 0, "iteration": 1, "seconds": 1, "batch_sizes": [1], "sequence_length": 40}
        values["benchmark"] = {"evaluation": {"performance": timing}}
    return Recipe.model_validate(values)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("bert", "question_answering"),
        ("distilbert", "question_answering"),
        ("roberta", "question_answering"),
        ("roberta", "classification"),
        ("electra", "regression"),
        ("bert", "multi_label"),
        ("bert", "reranking"),
        ("bert", "token_classification"),
    ],
)
def test_a_task_of_any_kind_becomes_checked_irs(architecture, kind, folders, files, tiny_text, tmp_path, monkeypatch):
    chosen = recipe(folders[architecture], files[kind], tiny_text, benchmark=architecture == "bert")
    run = Run(chosen, tmp_path / "run", lambda step: nullcontext(NullProgress()))
    made = {m.stage: m for m in run()}  # a broken check is an error
    assert all(check.ok for m in made.values() for check in m.checks)
    assert len(made["student"].metrics["per_matrix"]) == MATRICES
    measured = {
        "classification": {"accuracy": 30, "f1": 30, "accuracy (odd)": 20, "f1 (odd)": 20},
        "regression": {"pearson": 30, "spearman": 30},
        "question_answering": {"f1": 30, "exact_match": 30},
        "multi_label": {"f1_micro": 30, "f1_macro": 30, "average_precision": 30},
        "reranking": {"ndcg@10": 10, "mrr@10": 10},  # queries
        "token_classification": {"f1": 30, "precision": 30, "recall": 30},
    }[kind]
    close = kind in ("regression", "reranking", "multi_label")
    for variant, figures in made["export"].metrics["variants"].items():
        other = figures["plain" if "engine" in variant else "torch"]
        assert other.keys() == figures["ir"].keys() == measured.keys()
        if variant.endswith("fp32"):  # after three steps all scores are low, but rounding changes none of the answers
            assert other == pytest.approx(figures["ir"], abs=1e-3 if close else 1e-9), variant
        assert figures["dev_n"] == {"classification": 50, "reranking": 10}.get(kind, 30)
        assert figures["counts"] == measured
    assert set(made["export"].metrics["variants"]) == set(VARIANTS)
    if architecture == "bert":
        assert made["benchmark"].metrics["counts"] == measured
        reporting.write_cards(run.manifests, tmp_path / "run")
        assert len(run_code(tmp_path / "run/tasks/toy/export/sparse-int8/README.md", monkeypatch)) == 2
    if kind == "question_answering" and architecture == "bert":
        assert_same_answers(tmp_path / "run/tasks/toy", chosen.tasks["toy"])


def assert_same_answers(folder, section):
    """Each IR against its torch model, question by question: scores near zero would be equal whatever is answered."""
    tokenizer = load_tokenizer(folder / "transfer")
    task = load_task("toy", section, tokenizer)

    def plain():
        return load_task_model(folder / "transfer", task.kind, task.labels, fitted=True).eval()

    for variant, model, least in (
        ("sparse-fp32", plain(), 30),
        ("sparse-int8", nncf.load(folder / "quantize", plain), 27),
    ):
        wanted = [str(one) for one in task.dev.predicted(predict(model, task.dev, tokenizer.pad_token_id))]
        ir, pad_id = folder / "export" / variant, tokenizer.pad_token_id
        got = [str(one) for one in task.dev.predicted(predict_ir(ir, task.dev, pad_id, per_token=task.dev.per_token))]
        assert len(set(wanted)) > 10  # what is said depends on the question
        assert sum(w == g for w, g in zip(wanted, got, strict=True)) >= least, variant


def test_question_answering_ir_opens_with_optimum_intel_and_answers_as_torch_does(folders, files, tiny_text, tmp_path):
    from optimum.intel import OVModelForQuestionAnswering
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    values = recipe(folders["bert"], files["question_answering"], tiny_text, benchmark=False)
    values = values.model_copy(update={"transfer": None, "quantize": None, "student": None})
    values = values.model_copy(update={"export": values.export.model_copy(update={"variants": ("dense-fp32",)})})
    Run(values, tmp_path / "run", lambda step: nullcontext(NullProgress()))()
    folder = tmp_path / "run/tasks/toy"
    tokenizer = AutoTokenizer.from_pretrained(folder / "export/dense-fp32")
    inputs = tokenizer("who is bar ?", "the lovely story of bar and its end", return_tensors="pt")
    precision = {"INFERENCE_PRECISION_HINT": "f32"}  # CPUs with AMX would pick bfloat16
    opened = OVModelForQuestionAnswering.from_pretrained(folder / "export/dense-fp32", ov_config=precision)(**inputs)
    with torch.no_grad():
        wanted = AutoModelForQuestionAnswering.from_pretrained(folder / "task_teacher").eval()(**inputs)
    assert torch.allclose(opened.start_logits, wanted.start_logits, atol=1e-4)
    assert torch.allclose(opened.end_logits, wanted.end_logits, atol=1e-4)
