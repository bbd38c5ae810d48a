"""Checkpoints that a recipe names are checked before the first stage, without loading them."""

import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import vocabulary
from tests.helpers.models import load_classifier
from toolkit.core.errors import UserError
from toolkit.models.embedding.folder import SentencePooling, write_pooling
from toolkit.models.embedding.prompts import Prompts, write_prompts
from toolkit.models.load import load_masked_lm, load_tokenizer, prunable_matrices, save_checkpoint
from toolkit.pipeline.preflight import check_recipe
from toolkit.pipeline.run import Run
from toolkit.recipe import Recipe
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.mask_file import MASK_FILE

DISTILLED = {"transfer": {"distillation": {"train": {"steps": 2}}}}


@pytest.fixture
def sparse(tiny_bert, tmp_path):
    """Folder of a model whose encoder matrices are half zero, and the mask of them."""
    model = load_classifier(tiny_bert, ("0", "1"))
    weights = {name: module.weight for name, module in prunable_matrices(model).items()}
    with torch.no_grad():
        for weight in weights.values():
            weight[::2] = 0.0
    save_checkpoint(model, load_tokenizer(tiny_bert), tmp_path / "sparse")
    return tmp_path / "sparse", SparsityMask.from_zeros(weights)


@pytest.fixture
def classifier(tiny_bert, tmp_path):
    def make(*names):
        save_checkpoint(load_classifier(tiny_bert, names), load_tokenizer(tiny_bert), tmp_path / "classifier")
        return tmp_path / "classifier"

    return make


@pytest.fixture
def check(tiny_bert, tiny_task_files):
    def run(task_ready=None, task=None, **changes):
        toy = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "ready": task_ready or {}}
        values = {"name": "r", "model": {"source": str(tiny_bert)}, "tasks": {"toy": toy | (task or {})}}
        return check_recipe(Recipe.model_validate(values | changes))

    return run


def test_a_mask_that_does_not_cover_the_zeros_of_a_ready_task_model_is_found(check, sparse):
    folder, mask = sparse
    ready = {"transfer": str(folder)}
    mask.save(folder / MASK_FILE)
    check(ready, export={})
    SparsityMask({}).save(folder / MASK_FILE)
    with pytest.raises(UserError, match=r"the mask does not cover the zeros: 50\.0% of"):
        check(ready, export={})


def test_zeros_outside_of_the_prunable_matrices_are_not_lost_in_silence(check, sparse, tiny_bert):
    folder, _ = sparse
    model = {"source": str(tiny_bert), "prunable": ["attention"]}
    with pytest.raises(UserError, match=r"50\.0% of .* is zero, but `model\.prunable` does not match it"):
        check(model=model, ready={"student": str(folder)}, transfer={"pruning": {"train": {"epoch": 1}}})


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_found(check, sparse, value):
    folder, _ = sparse
    model = load_masked_lm(folder)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[7, 3] = value
    save_checkpoint(model, load_tokenizer(folder), folder)
    with pytest.raises(UserError, match=r"NaN or infinite, e\.g\. bert\.embeddings\.word_embeddings\.weight"):
        check(model={"source": str(folder)})


@pytest.mark.parametrize("stage", ["task_teacher", "transfer"])
@pytest.mark.parametrize("labels", [(), ("bad", "good")])
def test_a_ready_classifier_with_other_classes_is_found(check, classifier, stage, labels):
    check({stage: str(classifier("GOOD", "BAD"))}, {"labels": labels}, export={})
    with pytest.raises(UserError, match="this classifier's classes are a, b, c; the task's are"):
        check({stage: str(classifier("a", "b", "c"))}, {"labels": labels}, export={})


def test_class_names_of_another_type_are_found(check, classifier):
    folder = classifier("bad", "good")
    config = json.loads((folder / "config.json").read_text()) | {"id2label": ["bad", "good"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="id2label is a list"):
        check({"task_teacher": str(folder)}, export={})


def test_a_teacher_that_tokenises_otherwise_is_found_where_it_teaches(check, sparse, tiny_bert, tmp_path):
    from transformers import BertTokenizer

    teacher = tmp_path / "teacher"
    save_checkpoint(load_classifier(tiny_bert, ("0", "1")), load_tokenizer(tiny_bert), teacher)
    BertTokenizer(vocab={word: n for n, word in enumerate(vocabulary()[::-1])}).save_pretrained(teacher)
    ready = {"student": str(sparse[0])}
    check({"task_teacher": str(teacher)}, ready=ready, transfer={"pruning": {"train": {"epoch": 1}}})
    with pytest.raises(UserError, match="the teacher's tokenizer is not the student's"):
        check({"task_teacher": str(teacher)}, ready=ready, **DISTILLED)


def test_zeros_that_no_lock_selects_are_not_lost_without_a_word(sparse, tiny_bert, tiny_task_files, tmp_path):
    told = []
    progress = SimpleNamespace(start=lambda total: None, update=lambda *_, **__: None, message=told.append)
    lock = {"weight_compression": {"pruners": [{"prune_type": "pattern_lock", "names": ["attention"]}]}}
    toy = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    values = {
        "name": "r",
        "model": {"source": str(tiny_bert)},
        "ready": {"student": str(sparse[0])},
        "tasks": {"toy": toy},
        "transfer": {"pruning": {"approach": lock, "train": {"steps": 1, "batch_size": 2}}},
    }
    Run(Recipe.model_validate(values), tmp_path / "run", lambda step: nullcontext(progress))()
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert told == [f"the zeros of 4 matrices that no pruner selects are trained: e.g. {name}"]


def embedding_checks(dense, student, files):
    """Returns a function that checks a recipe that transfers an embedding student, with further keys of its task."""
    texts = {"train": str(files.train), "dev": str(files.dev), "columns": ["sentence"]}
    alone = {"steps": 2, "criterion": {"KnowledgeDistillationLoss": {"loss_weights": [0, 1]}}}

    def checked(**keys):
        values = {
            "name": "r",
            "model": {"source": str(dense)},
            "ready": {"student": str(student)},
            "tasks": {"toy": {"kind": "embedding"} | texts | keys},
            "transfer": {"distillation": {"train": alone}},
        }
        return check_recipe(Recipe.model_validate(values))

    return checked


@pytest.mark.parametrize("key", ["pooling", "normalize"])
def test_teacher_and_student_of_an_embedding_task_must_pool_alike(key, sparse, tiny_bert, tiny_task_files, tmp_path):
    folder, _ = sparse
    dense = tmp_path / "dense"
    shutil.copytree(tiny_bert, dense)
    own = SentencePooling("cls", True) if key == "pooling" else SentencePooling("mean", False)
    write_pooling(dense, own, 32, 64)
    checked = embedding_checks(dense, folder, tiny_task_files)
    with pytest.raises(UserError, match=f"{key} of the student is (mean|true), that of the dense model is (cls|false)"):
        checked()
    checked(**{key: "cls" if key == "pooling" else False})
    write_pooling(folder, own, 32, 64)
    checked()
    with pytest.raises(UserError, match=f"the task's {key} is (mean|true), but this model's is (cls|false)"):
        checked(**{key: "mean" if key == "pooling" else True})


def test_teacher_and_student_of_an_embedding_task_must_have_the_same_prompts(
    sparse, tiny_bert, tiny_task_files, tmp_path
):
    dense = tmp_path / "dense"
    shutil.copytree(tiny_bert, dense)
    write_prompts(dense, Prompts({"query": "q: "}, "query"))
    checked = embedding_checks(dense, sparse[0], tiny_task_files)
    with pytest.raises(
        UserError, match=r"the student's prompts are {}, those of the dense model are {'query'"
    ) as error:
        checked()
    assert error.value.instead == 'prompts: {"query": "q: ", "document": ""} and default_prompt: query'
    checked(prompts={"query": "q: "}, default_prompt="query")
    checked(prompts={})
