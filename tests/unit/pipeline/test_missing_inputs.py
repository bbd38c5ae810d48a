"""All missing models and files of a recipe are reported at once."""

import pytest

from toolkit.core.errors import UserError
from toolkit.pipeline.preflight import check_recipe
from toolkit.recipe import Recipe


def recipe(tiny_bert, train, dev, **changes):
    task = {"train": str(train), "dev": str(dev), "max_seq_length": 16}
    values = {
        "name": "mine",
        "model": {"source": str(tiny_bert)},
        "tasks": {"one": task, "two": task | {"more_dev": {"other": "nowhere/other.tsv"}}},
        "task_teacher": {"train": {"steps": 1}},
    }
    return Recipe.model_validate(values | changes)


def test_all_missing_inputs_are_listed_each_once(tiny_bert, tmp_path):
    missing = (tmp_path / "train.tsv", tmp_path / "dev.tsv", "nowhere/other.tsv", tmp_path / "student")
    with pytest.raises(UserError) as caught:
        check_recipe(recipe(tiny_bert, *missing[:2], ready={"student": str(missing[3])}))
    said = str(caught.value)
    assert said.startswith("4 inputs of the recipe 'mine' are missing\n")
    for path in missing:
        assert said.count(f"{path}: ") == 1
    assert said.count("Instead: ") == 1


def test_one_missing_file_is_reported_as_before(tiny_bert, tiny_task_files):
    with pytest.raises(UserError, match="no such file") as caught:
        check_recipe(recipe(tiny_bert, tiny_task_files.train, tiny_task_files.dev))
    assert caught.value.where == "nowhere/other.tsv"


def test_documents_and_queries_beside_judgements_are_looked_for_too(tiny_bert, tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n")
    task = {"kind": "reranking", "train": str(tmp_path / "qrels" / "test.tsv"), "dev": str(tmp_path / "qrels/test.tsv")}
    with pytest.raises(UserError) as caught:
        check_recipe(recipe(tiny_bert, "x", "x", tasks={"one": task}))
    assert all(f"{tmp_path / name}: no such file" in str(caught.value) for name in ("corpus.jsonl", "queries.jsonl"))
