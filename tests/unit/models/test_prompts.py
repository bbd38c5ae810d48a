"""Prompts of embedding models: what a sentence-transformers folder and a recipe say, and where they are kept."""

import json

import pytest

from toolkit.core.errors import UserError
from toolkit.models.embedding.folder import SentencePooling, write_pooling
from toolkit.models.embedding.prompts import LIBRARY, Prompts, prompts_of, stored_prompts
from toolkit.models.load import load_masked_lm, load_task_model, load_tokenizer, save_checkpoint
from toolkit.recipe import Task

E5 = {"query": "query: ", "passage": "passage: "}


def task(**keys):
    return Task.model_validate({"kind": "embedding", "train": "a.txt", "dev": "b.txt", "columns": ["text"]} | keys)


def said(folder, prompts, default=None):
    (folder / LIBRARY).write_text(json.dumps({"prompts": prompts, "default_prompt_name": default}))
    return folder


def test_the_default_prompt_is_that_of_texts_that_are_neither_queries_nor_documents():
    found = Prompts(E5, "passage")
    assert (found.query, found.document) == ("query: ", "passage: ")
    assert Prompts({"query": "q "}).document == ""
    assert Prompts({"query": "q "}, "query").of_all == ("q ", "", "q ")  # as encode_document does
    assert Prompts({"passage": "p ", "document": "d "}).document == "d "
    assert Prompts({"query": ""}, "query").query == ""


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ("p ",)),
        ({"columns": ["a", "b"], "label": "score"}, ("p ", "p ")),  # similar texts: no query among them
        ({"columns": ["a", "b"]}, ("q ", "p ")),
        ({"columns": ["a", "b", "c"]}, ("q ", "p ", "p ")),
    ],
)
def test_pairs_without_a_score_are_a_query_and_documents(keys, expected):
    assert Prompts({"query": "q ", "passage": "p "}, "passage").of_columns(task(**keys)) == expected


def test_a_recipe_replaces_the_prompts_of_the_folder(tmp_path):
    assert not prompts_of(tmp_path, task())
    said(tmp_path, E5, "query")
    assert prompts_of(tmp_path, task()) == Prompts(E5, "query")
    assert prompts_of(tmp_path, task(default_prompt="passage")) == Prompts(E5, "passage")
    assert prompts_of(tmp_path, task(prompts={"query": "find "})) == Prompts({"query": "find "})
    assert not prompts_of(tmp_path, task(prompts={}))
    with pytest.raises(UserError, match="the model has no prompt 'document'") as error:
        prompts_of(tmp_path, task(default_prompt="document"))
    assert error.value.instead == "default_prompt: query or passage"


@pytest.mark.parametrize("prompts", [{}, None, {"query": "", "document": ""}, {"query": None, "document": None}])
def test_a_folder_with_empty_prompts_has_none(prompts, tmp_path):
    assert not stored_prompts(said(tmp_path, prompts))


@pytest.mark.parametrize("text", ["[", "[1]", '{"prompts": ["query: "]}', '{"prompts": {"query": 1}}'])
def test_damaged_prompts_are_refused(text, tmp_path):
    (tmp_path / LIBRARY).write_text(text)
    with pytest.raises(UserError, match=r"not a JSON file|not a text|not texts by name"):
        stored_prompts(tmp_path)
    with pytest.raises(UserError, match="not the name of one"):
        stored_prompts(said(tmp_path, E5, "document"))


def test_a_model_that_pools_without_its_prompt_is_refused_if_it_has_one(tmp_path):
    write_pooling(said(tmp_path, E5), SentencePooling(), 32, 64)
    config = tmp_path / "1_Pooling" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"include_prompt": False}))
    with pytest.raises(UserError, match="include_prompt"):
        prompts_of(tmp_path, task())
    assert not prompts_of(tmp_path, task(prompts={}))


def test_prompts_and_pooling_are_kept_from_stage_to_stage(tiny_bert, tmp_path):
    dense, student, transfer = (tmp_path / name for name in ("dense", "student", "transfer"))
    model = load_task_model(tiny_bert, "embedding", (), fitted=True, pooling=("cls", False))
    save_checkpoint(model, load_tokenizer(tiny_bert), dense, task(prompts=E5, default_prompt="query"))
    kept = Prompts(E5 | {"document": "passage: "}, "query")
    assert stored_prompts(dense) == kept
    assert kept.of_all == Prompts(E5, "query").of_all != Prompts(E5, "passage").of_all
    save_checkpoint(load_masked_lm(dense), load_tokenizer(dense), student)  # pre-training knows of no task
    made = load_task_model(student, "embedding", (), fitted=True)
    assert made.pooling == SentencePooling("cls", False)
    save_checkpoint(made, load_tokenizer(student), transfer, task())
    assert stored_prompts(transfer) == kept
    save_checkpoint(made, load_tokenizer(student), tmp_path / "none", task(prompts={}))
    assert not (tmp_path / "none" / LIBRARY).exists()
