"""Forms of tables that other programs write: each gives the same rows."""

import csv
import io
import json

import pandas as pd
import pytest

from toolkit.core.errors import UserError
from toolkit.data.tables import read_rows

ROWS = [{"sentence": f"film {n} .", "label": n % 2} for n in range(12)]
FRAME = pd.DataFrame(ROWS)
QA = {"id": "q1", "title": "t", "context": "a b", "question": "b?", "answers": {"text": ["b"], "answer_start": [2]}}


def read(path, columns=("sentence", "label")) -> list[dict]:
    return [row for _, row in read_rows(path, columns)]


FORMS = {
    "records": FRAME.to_json(orient="records"),
    "records, indented": FRAME.to_json(orient="records", indent=2),
    "columns": FRAME.to_json(),
    "columns, indented": FRAME.to_json(indent=2),
    "index": FRAME.to_json(orient="index"),
    "split": FRAME.to_json(orient="split"),
    "table": FRAME.to_json(orient="table", index=False),
    "lists": json.dumps(FRAME.to_dict("list")),
    "lines": FRAME.to_json(orient="records", lines=True),
    "data": json.dumps({"version": "1", "data": ROWS}),
}


@pytest.mark.parametrize("suffix", [".json", ".JSON", ".jsonl"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_json_gives_the_same_rows(tmp_path, form, suffix):
    path = tmp_path / f"t{suffix}"
    path.write_text(FORMS[form])
    assert read(path) == ROWS


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("form", [[QA], {"data": [QA]}, {"version": "v2.0", "data": [QA, QA]}])
def test_the_flat_form_of_run_qa_is_read(tmp_path, form, rows):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(form))
    assert read(path, ("question", "context", "answers"))[0] == QA


def test_one_object_on_one_line_is_a_row(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n")
    assert read(path) == ROWS[:1]


@pytest.mark.parametrize(
    ("text", "message", "where"),
    [
        ("[]", "the file is empty", ""),
        ('[{"sentence": "a", "label": 1}, 5]', "not a JSON object", ", row 2"),
        ('[{"sentence": "a"}]', "no column 'label'", ", row 1"),
        ('{"data": [{"sentence": "a"}]}', "no column 'label'", ", row 1"),
        ('{"sentence": ["a", "b"], "label": [1]}', "'sentence' and 'label' do not have the same rows", ""),
        ('{"sentence": {"0": "a"}, "label": {"1": 1}}', "do not have the same rows", ""),
        ('{"sentence": ["a"], "lable": [1]}', "no column 'label'", ""),
        ('{"columns": ["sentence", "label"], "data": [["a"]]}', "one value for each of the 2 columns", ""),
        ('{"columns": ["sentence", "label"], "data": [5]}', "one value for each of the 2 columns", ""),
        ('{\n"sentence": "a",\n"label": 1}', "one JSON object is not a table", ""),
        ("[\n1,\n", "damaged JSON", ":3"),
        ('[{"label": 1, "label": 2}]', "two values have the name 'label'", ":1"),
        ('[\n{"label": 1, "label": 2}]', "two values have the name 'label'", ""),
        ("[" * 100_000, "not a JSON object", ":1"),
    ],
)
def test_json_that_is_no_table_is_refused_with_its_place(tmp_path, text, message, where):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert error.value.where == f"{path}{where}"


QUOTED = [
    {"sentence": 'he said "no" .', "label": "1"},
    {"sentence": "plain", "label": "0"},
    {"sentence": '"all of it"', "label": "1"},
    {"sentence": "one\nline more\ttab", "label": "0"},
]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("rows", [QUOTED, QUOTED[:2], QUOTED[3:], QUOTED[2:3]])
def test_quotation_marks_of_pandas_are_undone_in_tsv(tmp_path, rows, quoting):
    path = tmp_path / "t.tsv"
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False, quoting=quoting)
    assert read(path) == rows


@pytest.mark.parametrize(
    "texts",
    [
        ['"all of it"', "plain"],
        ['he said "no"', "plain"],
        ['"no" , he said "yes"', "plain"],
        ['"', "plain"],
        ['he said "no"', '"all ""of"" it"'],
        ['"a', 'b"'],
    ],
)
def test_quotation_marks_of_glue_are_text(tmp_path, texts):
    path = tmp_path / "t.tsv"
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t1\n" for text in texts))
    assert [row["sentence"] for row in read(path)] == texts


def test_a_quoted_file_with_a_mistake_gets_a_hint(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text('sentence\tlabel\n"a\nb"\t1\n"c" d\t0\n')
    with pytest.raises(UserError, match="1 fields where the header has 2") as error:
        read(path)
    assert "close each quoted field" in error.value.instead


@pytest.mark.parametrize("name", ["label ", " label", "\ufefflabel"])
def test_a_header_with_a_blank_is_shown_with_its_blank(tmp_path, name):
    stream = io.StringIO()
    csv.writer(stream, delimiter="\t").writerows([["sentence", name], ["a", "1"]])
    (tmp_path / "t.tsv").write_text(stream.getvalue(), encoding="utf-8")
    with pytest.raises(UserError, match="no column 'label'") as error:
        read(tmp_path / "t.tsv")
    assert error.value.instead == (f'"{name}"' if name.isprintable() else repr(name))
