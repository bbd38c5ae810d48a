"""Bad rows of every kind of file: each is refused with its place, by `check` and before the first stage of a run."""

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.task_files import COLUMNS, COUNTED, FORMATS, GOOD, NULLS, pairs, place, write
from toolkit.core.artifacts import NullProgress
from toolkit.core.errors import UserError
from toolkit.data import task_rows
from toolkit.data.tables import read_rows
from toolkit.pipeline.preflight import check_recipe
from toolkit.pipeline.run import Run
from toolkit.recipe import AnswerWindows, Recipe, Task


@pytest.mark.parametrize("suffix", FORMATS)
def test_good_rows_of_every_format_are_counted(tmp_path, suffix):
    path = write(tmp_path, suffix, GOOD)
    assert task_rows.check_rows("t", pairs(path)) == COUNTED
    found = task_rows.read_task("t", pairs(path))
    assert [(row.where, row.texts, row.label) for row in found.train] == [
        (place(path, number), (one, two), label) for number, (one, two, label) in enumerate(GOOD, 1)
    ]


@pytest.mark.parametrize(
    ("suffix", "value"), [*((suffix, text) for suffix in FORMATS for text in ("", "  ")), *((s, None) for s in NULLS)]
)
@pytest.mark.parametrize("column", [0, 1])
def test_empty_text_or_null_is_refused_with_its_row_or_left_out_when_asked(tmp_path, suffix, value, column):
    bad = ("x", value, "yes") if column else (value, "x", "yes")
    path = write(tmp_path, suffix, [*GOOD, bad])
    with pytest.raises(UserError, match=f"the text in column '{COLUMNS[column]}' is empty") as error:
        task_rows.check_rows("t", pairs(path))
    assert error.value.where == place(path, 4)
    assert "drop_empty" in error.value.instead
    said = f"1 row with an empty text left out (first: {Path(place(path, 4)).name})"
    assert task_rows.check_rows("t", pairs(path, drop_empty=True)) == f"{COUNTED}; {said}; {said}"
    elsewhere = pairs(path, dev="hub:nobody/nothing:a:dev", drop_empty=True)
    assert task_rows.check_rows("t", elsewhere) == f"3 rows available locally; {said}"


def test_rows_that_are_left_out_are_counted_in_each_file_and_the_first_is_named(tmp_path):
    train = write(tmp_path, "tsv", [("", "b", "no"), *GOOD, ("c", "\u200b", "yes")], name="train")
    dev = write(tmp_path, "tsv", [*GOOD, ("", "", "no")], name="dev")
    more = write(tmp_path, "tsv", GOOD, name="more")
    task = pairs(train, dev=dev, more_dev={"odd": more}, drop_empty=True)
    assert task_rows.read_task("t", task).left_out == (
        "2 rows with an empty text left out (first: train.tsv:2)",
        "1 row with an empty text left out (first: dev.tsv:5)",
    )
    with pytest.raises(UserError, match="every row has an empty text") as error:
        task_rows.check_rows("t", pairs(write(tmp_path, "tsv", [("", "b", "no")], name="none"), drop_empty=True))
    assert error.value.where.endswith("none.tsv")


@pytest.mark.parametrize("suffix", NULLS)
@pytest.mark.parametrize(
    ("value", "kind"),
    [(["a", "b"], "list"), ({"x": 1}, "object"), (5, "number"), (0.5, "number"), (True, "truth value")],
)
def test_text_that_is_something_else_is_refused_with_its_row(tmp_path, suffix, value, kind):
    path = write(tmp_path, suffix, [("a", value, "no"), ("b", value, "yes")])
    with pytest.raises(UserError, match=f"column 'two' has a {kind} where a text should be") as error:
        task_rows.check_rows("t", pairs(path))
    assert error.value.where == place(path, 1)


@pytest.mark.parametrize("row", [1, 3])
def test_number_that_python_does_not_read_is_refused_with_its_line_of_json(tmp_path, row):
    path = Path(write(tmp_path, "jsonl", GOOD))
    lines = path.read_text().splitlines()
    lines[row - 1] = '{"one": "a", "two": "b", "label": ' + "1" * 5000 + "}"
    for ending in ("jsonl", "json"):
        path = tmp_path / f"long.{ending}"
        path.write_text("\n".join(lines) + "\n")
        with pytest.raises(UserError, match="a number with too many digits") as error:
            task_rows.check_rows("t", pairs(str(path)))
        assert error.value.where == f"{path}:{row}"


def test_name_that_a_json_object_has_twice_is_refused_with_its_line(tmp_path):
    path = Path(write(tmp_path, "jsonl", GOOD))
    path.write_text(path.read_text() + '{"one": "g", "two": "h", "label": "no", "two": "i"}\n')
    with pytest.raises(UserError, match="two values have the name 'two'") as error:
        task_rows.check_rows("t", pairs(str(path)))
    assert error.value.where == f"{path}:4"


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("value", ["\u200b", " \u200b \ufeff", "\u200e", "\u200b\u3000\u200b", "\u2028\u00ad"])
def test_text_of_characters_without_width_is_empty(tmp_path, suffix, value):
    path = write(tmp_path, suffix, [*GOOD, ("g", value, "yes")])
    with pytest.raises(UserError, match="the text in column 'two' is empty"):
        task_rows.check_rows("t", pairs(path))


@pytest.mark.parametrize("column", range(4))
def test_half_a_character_is_refused_with_its_row_wherever_it_stands(tmp_path, column):
    """A text cut inside an emoji: JSON holds it, no tokenizer takes it."""
    row = ["g", "h", "no", "x"]
    row[column] += " \ud83d"
    path = write(tmp_path, "jsonl", [(*good, "x") for good in GOOD] + [tuple(row)], columns=(*COLUMNS, "group"))
    task = pairs(path, dev=None, labels=(), hold_out={"column": "group"})
    with pytest.raises(UserError, match=r"contains an unpaired surrogate: \\ud83d") as error:
        task_rows.check_rows("t", task)
    assert error.value.where == place(path, 4)


def test_json_that_is_nested_without_end_is_refused_with_its_line(tmp_path):
    path = tmp_path / "deep.jsonl"
    path.write_text(json.dumps(dict(zip(COLUMNS, GOOD[0], strict=True))) + "\n" + '{"one": ' + "[" * 100_000 + "\n")
    with pytest.raises(UserError, match="not a JSON object") as error:
        task_rows.check_rows("t", pairs(str(path)))
    assert error.value.where == f"{path}:2"


@pytest.mark.parametrize(("suffix", "line"), [("tsv", ":1"), ("csv", ":1"), ("jsonl", ":1"), ("parquet", "")])
def test_missing_column_is_refused_where_the_columns_are_named_with_the_nearest(tmp_path, suffix, line):
    path = write(tmp_path, suffix, GOOD, columns=("one", "tow", "label"))
    with pytest.raises(UserError, match="no column 'two'") as error:
        task_rows.check_rows("t", pairs(path))
    assert (error.value.where, error.value.instead) == (f"{path}{line}", "tow")


def test_missing_column_of_parquet_without_rows_is_what_is_said(tmp_path):
    path = tmp_path / "file.parquet"
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in ("one", "tow", "label")}), path)
    with pytest.raises(UserError, match="no column 'two'") as error:
        task_rows.check_rows("t", pairs(str(path)))
    assert (error.value.where, error.value.instead) == (str(path), "tow")


def test_row_of_json_without_the_column_is_named(tmp_path):
    path = Path(write(tmp_path, "jsonl", GOOD))
    path.write_text(path.read_text() + '{"one": "g", "label": "no"}\n')
    with pytest.raises(UserError, match="no column 'two'") as error:
        task_rows.check_rows("t", pairs(str(path)))
    assert (error.value.where, error.value.instead) == (f"{path}:4", "one of one, label")


@pytest.mark.parametrize("suffix", FORMATS)
def test_file_without_rows_is_refused(tmp_path, suffix):
    path = tmp_path / f"file.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({name: pa.array([], pa.string()) for name in COLUMNS}), path)
    else:
        path.write_text({"tsv": "\t".join(COLUMNS), "csv": ",".join(COLUMNS), "jsonl": ""}[suffix])
    with pytest.raises(UserError, match="the file is empty") as error:
        task_rows.check_rows("t", pairs(str(path)))
    assert error.value.where == str(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_text_that_is_not_utf8_is_refused_with_its_place(tmp_path, suffix):
    path = tmp_path / f"file.{suffix}"
    if suffix == "parquet":
        raw = pa.array([b"a", "caf\u00e9".encode("latin-1")])
        texts = pa.StringArray.from_buffers(2, *raw.buffers()[1:])
        pq.write_table(pa.table({"one": texts, "two": ["b", "d"], "label": ["no", "yes"]}), path)
    else:
        write(tmp_path, suffix, [*GOOD[:2], ("caf", "d", "no")])
        path.write_bytes(path.read_bytes().replace(b"caf", b"caf\xe9"))
    with pytest.raises(UserError, match=r"cannot be read as text|not UTF-8") as error:
        task_rows.check_rows("t", pairs(str(path)))
    assert error.value.where == (f"{path}, row 1 or later" if suffix == "parquet" else place(str(path), 3))


@pytest.mark.parametrize(("suffix", "mark"), [("tsv", "\t"), ("csv", ",")])
def test_column_that_is_named_twice_is_refused_with_the_line_of_the_header(tmp_path, suffix, mark):
    path = tmp_path / f"file.{suffix}"
    path.write_text("\n" + mark.join(["one", "two", "one", "label"]) + "\n" + mark.join("abc0") + "\n")
    with pytest.raises(UserError, match="two columns have the name 'one'") as error:
        list(read_rows(path))
    assert error.value.where == f"{path}:2"


@pytest.mark.parametrize("labels", [["no", "yes"], []])
def test_column_that_parquet_has_twice_is_refused(tmp_path, labels):
    path = tmp_path / "file.parquet"
    columns = [pa.array(["a", "b"][: len(labels)], pa.string())] * 2 + [pa.array(labels, pa.string())] * 2
    pq.write_table(pa.Table.from_arrays(columns, names=["one", "two", "label", "label"]), path)
    with pytest.raises(UserError, match="two columns have the name 'label'") as error:
        task_rows.check_rows("t", pairs(str(path)))
    assert error.value.where == str(path)


def test_damaged_page_of_parquet_is_an_error_with_the_file(tmp_path):
    path = Path(write(tmp_path, "parquet", GOOD * 400))
    content = bytearray(path.read_bytes())
    content[40:200] = b"\xff" * 160
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a Parquet file") as error:
        task_rows.check_rows("t", pairs(str(path)))
    assert error.value.where == str(path)


@pytest.mark.parametrize("suffix", NULLS)
def test_null_in_a_column_of_rows_or_hold_out_is_an_empty_text(tmp_path, suffix):
    table = [(*row, kind) for row, kind in zip(GOOD, ("x", None, "x"), strict=True)]
    path = write(tmp_path, suffix, [*table, ("g", "h", "yes", "x")], columns=(*COLUMNS, "kind"))
    assert [r.texts[0] for r in task_rows.read_task("t", pairs(path, rows={"kind": ("x",)})).train] == ["a", "e", "g"]
    assert [r.group for r in task_rows.read_file(path, pairs(path, dev=None, hold_out={"column": "kind"}), [])] == [
        "x",
        "",
        "x",
        "x",
    ]


def squad(folder: Path, **changes) -> str:
    """SQuAD's JSON with two questions, the second one changed."""
    asked = {"id": "q2", "question": "what ?", "answers": [{"text": "b", "answer_start": 2}]}
    first = {"context": "a b", "qas": [asked | {"id": "q1"}]}
    second = {"context": changes.pop("context", "a b"), "qas": [asked | changes]}
    path = folder / "squad.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": [first, second]}]}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "message", "instead"),
    [
        ({"question": ""}, "the text in column 'question' is empty", "drop_empty"),
        ({"question": None}, "the text in column 'question' is empty", "drop_empty"),
        ({"context": " "}, "the text in column 'context' is empty", "drop_empty"),
        ({"context": None}, "the text in column 'context' is empty", "drop_empty"),
        ({"answers": []}, "the question has no answer", "leave the row out"),
        ({"answers": [{"text": "b", "answer_start": 0}]}, "not at character 0", "answer_start 2"),
        ({"answers": [{"text": "", "answer_start": 0}]}, "not at character 0", "verbatim"),
        ({"answers": [{"text": "z", "answer_start": 0}]}, "not at character 0", "verbatim"),
        ({"answers": [{"text": "b", "answer_start": -1}]}, "not at character -1", "answer_start 2"),
        ({"answers": [{"text": "b", "answer_start": 2.5}]}, "not in SQuAD's form", "[17]"),
        ({"answers": [{"text": "b", "answer_start": "2"}]}, "not in SQuAD's form", "[17]"),
        ({"answers": [{"text": "b", "answer_start": True}]}, "not in SQuAD's form", "[17]"),
        ({"answers": [{"text": "b", "answer_start": None}]}, "not in SQuAD's form", "[17]"),
        ({"answers": [{"text": None, "answer_start": 2}]}, "not in SQuAD's form", "[17]"),
        ({"answers": [{"text": 5, "answer_start": 2}]}, "not in SQuAD's form", "[17]"),
        ({"answers": None}, "not in SQuAD's form", "paragraphs"),
        ({"answers": [{"text": "b"}]}, "not in SQuAD's form", "paragraphs"),
    ],
)
def test_bad_question_of_squad_json_is_refused_with_its_id(tmp_path, changes, message, instead):
    path = squad(tmp_path, **changes)
    task = Task(preset="squad", train=path, dev=path, windows=AnswerWindows(stride=16))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        task_rows.check_rows("t", task)
    assert error.value.where == f"{path}, question q2"
    assert instead in error.value.instead


def test_questions_with_an_empty_text_are_left_out_when_asked(tmp_path):
    path = squad(tmp_path, question=None)
    task = Task(preset="squad", train=path, dev=path, windows=AnswerWindows(stride=16), drop_empty=True)
    said = "1 row with an empty text left out (first: squad.json, question q2)"
    assert task_rows.check_rows("t", task) == f"1 training rows, 1 evaluation rows; {said}; {said}"


@pytest.mark.parametrize("suffix", NULLS)
@pytest.mark.parametrize(
    "answers",
    [
        {"text": "b", "answer_start": [2]},
        {"text": "b", "answer_start": 2},
        {"text": ["b"], "answer_start": [2.5]},
        {"text": ["b"], "answer_start": [float("nan")]},
        {"text": ["b"], "answer_start": [float("inf")]},
        {"text": ["b"], "answer_start": ["2"]},
        {"text": ["b"], "answer_start": "2"},
        {"text": ["b", "b"], "answer_start": [2]},
    ],
)
def test_answers_that_are_no_list_of_texts_with_whole_places_are_refused_with_their_row(tmp_path, suffix, answers):
    path = write(tmp_path, suffix, [("q", "a b", answers)], columns=("question", "context", "answers"))
    with pytest.raises(UserError, match="the answers are not in SQuAD's form") as error:
        task_rows.check_rows("t", Task(preset="squad", train=path, dev=path, windows=AnswerWindows(stride=16)))
    assert error.value.where == place(path, 1)


@pytest.mark.parametrize("suffix", NULLS)
def test_whole_floats_are_places_of_answers(tmp_path, suffix):
    answers = {"text": ["b"], "answer_start": [2.0]}
    path = write(tmp_path, suffix, [("q", "a b", answers)], columns=("question", "context", "answers"))
    task = Task(preset="squad", train=path, dev=path, windows=AnswerWindows(stride=16))
    assert task_rows.check_rows("t", task) == "1 training rows, 1 evaluation rows"


@pytest.mark.parametrize("suffix", NULLS)
def test_null_in_place_of_answers_is_a_missing_label(tmp_path, suffix):
    answers = [{"text": ["b"], "answer_start": [2]}, None]
    path = write(tmp_path, suffix, [("q", "a b", a) for a in answers], columns=("question", "context", "answers"))
    with pytest.raises(UserError, match="the label in column 'answers' is missing") as error:
        task_rows.check_rows("t", Task(preset="squad", train=path, dev=path, windows=AnswerWindows(stride=16)))
    assert error.value.where == place(path, 2)


@pytest.mark.parametrize("at_hand", ["train", "dev", "more_dev"])
def test_rows_at_hand_are_looked_at_while_others_are_still_on_the_hub(tmp_path, at_hand):
    path = write(tmp_path, "tsv", [*GOOD, ("g", "h", "maybe")])
    files = {"train": "hub:nobody/nothing:a:train", "dev": "hub:nobody/nothing:a:dev"}
    files |= {"more_dev": {"odd": path}} if at_hand == "more_dev" else {at_hand: path}
    with pytest.raises(UserError, match="the label 'maybe' is not one of"):
        task_rows.check_rows("t", pairs("", **files))
    assert task_rows.check_rows("t", pairs("", **files, rows={"label": ("no", "yes")})) == "3 rows available locally"


@pytest.fixture
def recipe(tmp_path, tiny_bert, tiny_text):
    """A recipe of two tasks, with pre-training; the last row of the second task's measured split is bad."""
    steps = {"train": {"steps": 1, "batch_size": 8}}
    good = write(tmp_path, "tsv", GOOD, name="good")
    bad = write(tmp_path, "csv", [*GOOD, ("g", "", "no")], name="bad")
    task = {"train": good, "columns": ["one", "two"]}
    return Recipe.model_validate(
        {
            "name": "r",
            "model": {"source": str(tiny_bert)},
            "corpus": {"files": [str(tiny_text)], "max_seq_length": 32, "limit": 40},
            "tasks": {"first": task | {"dev": good}, "second": task | {"dev": bad}},
            "teacher": steps,
            "task_teacher": steps,
        }
    )


def test_check_reads_all_rows_of_all_tasks(recipe):
    with pytest.raises(UserError, match="the text in column 'two' is empty") as error:
        check_recipe(recipe)
    assert error.value.where == f"{recipe.tasks['second'].dev}:5"


def test_bad_row_ends_a_run_before_its_first_stage(recipe, tmp_path):
    with pytest.raises(UserError, match="the text in column 'two' is empty") as error:
        Run(recipe, tmp_path / "run", lambda step: pytest.fail(f"{step.label} has begun"))()
    assert error.value.where == f"{recipe.tasks['second'].dev}:5"
    assert not (tmp_path / "run/teacher").exists()


def test_rows_of_finished_tasks_are_not_read_again(recipe, tmp_path, monkeypatch):
    whole = recipe.model_copy(update={"tasks": {"first": recipe.tasks["first"]}, "teacher": None, "corpus": None})
    Run(whole, tmp_path / "run", lambda step: nullcontext(NullProgress()))()
    monkeypatch.setattr(task_rows, "check_rows", lambda name, task: pytest.fail(f"read {name} again"))
    Run(whole, tmp_path / "run", lambda step: nullcontext(NullProgress()))()
