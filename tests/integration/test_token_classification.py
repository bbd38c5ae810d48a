"""The entities of transformers' pipeline on an exported IR are those that are measured here, example by example."""

import itertools
from contextlib import nullcontext

import pytest

from tests.integration.test_kinds import recipe
from toolkit.core.artifacts import NullProgress
from toolkit.data.kinds.entities import entities_of
from toolkit.data.tasks import load_task
from toolkit.measure.accuracy import predict_ir
from toolkit.models.load import load_tokenizer
from toolkit.pipeline.run import Run
from toolkit.recipe.kinds.token_classification import types_of


@pytest.fixture(scope="module")
def exported(tiny_bert, files, tiny_text, tmp_path_factory):
    """Folder of a dense FP32 IR, and the task that it was trained for, read in one window each."""
    task = files["token_classification"] | {"max_seq_length": 64}
    values = recipe(tiny_bert, task, tiny_text, benchmark=False)
    values = values.model_copy(update={"transfer": None, "quantize": None, "student": None})
    values = values.model_copy(update={"export": values.export.model_copy(update={"variants": ("dense-fp32",)})})
    folder = tmp_path_factory.mktemp("tokens") / "run"
    Run(values, folder, lambda step: nullcontext(NullProgress()))()
    ir = folder / "tasks/toy/export/dense-fp32"
    return ir, load_task("toy", values.tasks["toy"], load_tokenizer(ir))


def own_entities(ir, task) -> list[list[tuple[str, int, int]]]:
    """Entities of each dev sentence: type, first and last (exclusive) character."""
    logits = predict_ir(ir, task.dev, load_tokenizer(ir).pad_token_id, per_token=True)
    assert task.scores(logits)["f1"] > 0.5  # entities of several words that are mostly right
    types, found = types_of(task.labels), []
    for (_, spans), tags in zip(task.dev.sentences, task.dev.predicted(logits), strict=True):
        of_sentence = entities_of(tags)
        found.append(sorted((types[kind], spans[first][0], spans[last][1]) for kind, first, last in of_sentence))
    return found


@pytest.mark.parametrize("strategy", ["first", "simple"])
def test_the_pipeline_finds_the_entities_that_are_measured(strategy, exported):
    from optimum.intel import OVModelForTokenClassification
    from transformers import AutoTokenizer, pipeline

    ir, task = exported
    precision = {"INFERENCE_PRECISION_HINT": "f32"}  # CPUs with AMX would pick bfloat16
    model = OVModelForTokenClassification.from_pretrained(ir, ov_config=precision)
    tokenizer = AutoTokenizer.from_pretrained(ir)
    tagger = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy=strategy)
    compared = 0
    for (text, _), wanted in zip(task.dev.sentences, own_entities(ir, task), strict=True):
        pieces = tokenizer.tokenize(text)
        if strategy == "simple" and any(piece.startswith("##") for piece in pieces):
            continue  # it reads further pieces of a word, which no training gives a tag
        found = sorted((one["entity_group"], one["start"], one["end"]) for one in tagger(text))
        assert found == wanted, text
        compared += len(wanted)
    assert compared >= 15
    assert len(set(itertools.chain.from_iterable(own_entities(ir, task)))) > 10
