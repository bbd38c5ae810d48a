"""Encoders beside BERT from text to checked IRs: other tokenizers, shared layers, rotary positions and windows."""

from contextlib import nullcontext

import numpy as np
import pytest
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from tests.helpers.encoders import tiny_encoders
from tests.integration.test_embedding import recipe as embedding_recipe
from tests.integration.test_kinds import recipe
from toolkit.core.artifacts import NullProgress
from toolkit.data.tasks import load_task
from toolkit.measure.accuracy import predict_ir
from toolkit.models.load import load_tokenizer
from toolkit.pipeline.preflight import check_recipe
from toolkit.pipeline.run import Run
from toolkit.recipe import VARIANTS, Recipe

LOSSES = {
    "KnowledgeDistillationLoss": {},
    "IntermediateLayersKnowledgeDistillationLoss": {"loss_types": ["SquareHead"]},
}


@pytest.fixture(scope="module")
def folders(tiny_bert, tiny_text, tmp_path_factory):
    return tiny_encoders(tiny_bert, tiny_text, tmp_path_factory)


@pytest.mark.parametrize(
    ("architecture", "kind", "operations"),
    [
        ("camembert", "classification", 1),  # all layers in one SparseEncoder
        ("xlm-roberta", "question_answering", 1),
        ("albert", "classification", 1),
        ("mpnet", "question_answering", 6),  # a bias of relative positions is added to its attention scores
        ("deberta-v2", "classification", 6),  # terms of relative positions are; their products are constants
        ("modernbert", "classification", 8),  # LayerNorm first, rotary positions, a gate: one SparseLinear a matrix
    ],
)
def test_an_encoder_goes_from_text_to_checked_irs(architecture, kind, operations, folders, files, tiny_text, tmp_path):
    values = recipe(folders[architecture], files[kind], tiny_text, benchmark=architecture == "modernbert")
    values = values.model_dump(exclude_unset=True)
    values["student"]["distillation"]["train"]["criterion"] = LOSSES
    values["transfer"]["distillation"]["train"]["criterion"] = LOSSES
    values["student"]["pruning"]["approach"]["weight_compression"]["pattern"] = "tile_pattern_4x1"
    chosen = Recipe.model_validate(values)
    check_recipe(chosen)
    made = {m.stage: m for m in Run(chosen, tmp_path / "run", lambda step: nullcontext(NullProgress()))()}
    assert all(check.ok for m in made.values() for check in m.checks)
    assert {"kd_loss", "layers_loss"} <= made["student"].history[-1].keys()
    pruned = made["student"].metrics["per_matrix"]
    assert len(pruned) == (8 if architecture == "modernbert" else 12)
    variants = made["export"].metrics["variants"]
    assert variants.keys() == set(VARIANTS)
    for name in ("sparse-engine-fp32", "sparse-engine-int8"):
        on_kernel = {matrix.removeprefix("__module.").partition("/")[0] for matrix in variants[name]["on_the_kernel"]}
        assert pruned.keys() == {f"{module}.weight" for module in on_kernel}
        assert variants[name]["operations"] == operations
    assert variants["sparse-engine-int8"]["in_8_bits"] == len(variants["sparse-engine-int8"]["on_the_kernel"])
    folder = tmp_path / "run/tasks/toy"
    if architecture == "albert":  # what layers share is stored once
        stored = (folder / "transfer/model.safetensors").stat().st_size
        assert (folder / "export/sparse-fp32/openvino_model.bin").stat().st_size < 1.1 * stored
        modules = [matrix["module"] for matrix in variants["sparse-fp32"]["matmuls"]]
        assert len(set(modules)) < len(modules)  # and multiplied by in each of them
    assert_same_zeros(pruned, tmp_path / "run/student", folder / "transfer")
    assert_engine_gives_the_plain_logits(folder, chosen)


@pytest.mark.parametrize("architecture", ["mpnet", "modernbert"])
def test_an_embedding_model_becomes_irs_that_sentence_transformers_opens(architecture, folders, files, tmp_path):
    table = files["regression"] | {"kind": "embedding", "label": "label"}
    del table["metrics"]
    chosen = embedding_recipe(folders[architecture], table)
    export = chosen.export.model_copy(update={"variants": ("sparse-int8", "sparse-engine-int8")})
    chosen = chosen.model_copy(update={"export": export})
    made = {m.stage: m for m in Run(chosen, tmp_path / "run", lambda step: nullcontext(NullProgress()))()}
    assert all(check.ok for m in made.values() for check in m.checks)
    assert made["export"].metrics["variants"].keys() == {"sparse-int8", "sparse-engine-int8"}
    folder = tmp_path / "run/tasks/toy/export/sparse-int8"
    texts = ["the bulus of benen is lovely .", "dull", "who calls this clever bunun a benen ? " * 3]
    precision = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}
    found = SentenceTransformer(str(folder), backend="openvino", device="cpu", model_kwargs=precision).encode(texts)
    tokenizer = load_tokenizer(folder)
    examples = [dict(tokenizer(text, truncation=True, max_length=32)) for text in texts]
    wanted = np.asarray(predict_ir(folder, examples, tokenizer.pad_token_id, per_token=False))
    assert np.ptp(wanted, axis=0).max() > 0.01
    assert np.abs(found - wanted).max() < 1e-4


def test_modernbert_answers_questions(folders, files, tiny_text, tmp_path):
    chosen = recipe(folders["modernbert"], files["question_answering"], tiny_text, benchmark=False)
    export = chosen.export.model_copy(update={"variants": ("sparse-int8",)})
    chosen = chosen.model_copy(update={"export": export, "teacher": None})
    made = {m.stage: m for m in Run(chosen, tmp_path / "run", lambda step: nullcontext(NullProgress()))()}
    assert all(check.ok for m in made.values() for check in m.checks)
    assert made["export"].metrics["variants"]["sparse-int8"]["ir"].keys() == {"f1", "exact_match"}
    ready = {"task_teacher": str(tmp_path / "run/tasks/toy/task_teacher")}
    check_recipe(
        Recipe.model_validate(
            chosen.model_dump()
            | {"tasks": {"toy": files["question_answering"] | {"ready": ready}}, "task_teacher": None}
        )
    )


def assert_same_zeros(names, *folders):
    first, *others = (load_file(folder / "model.safetensors") for folder in folders)
    for other in others:
        for name in names:
            assert ((first[name] == 0) == (other[name] == 0)).all()
            assert not (first[name] == other[name]).all()


def assert_engine_gives_the_plain_logits(folder, chosen):
    tokenizer = load_tokenizer(folder / "transfer")
    task = load_task("toy", chosen.tasks["toy"], tokenizer)
    for kind, largest in (("fp32", 1e-4), ("int8", 0.05)):
        plain, engine = (
            np.concatenate(
                [
                    logits.ravel()
                    for logits in predict_ir(
                        folder / "export" / name, task.dev, tokenizer.pad_token_id, per_token=task.dev.per_token
                    )
                ]
            )
            for name in (f"sparse-{kind}", f"sparse-engine-{kind}")
        )
        real = plain > -1e8  # padding cannot be part of an answer
        assert np.abs(engine - plain)[real].mean() <= largest * np.ptp(plain[real])
