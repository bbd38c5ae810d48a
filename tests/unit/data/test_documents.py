"""Pre-training text of every form: the text column of tables is read, and nothing else is taken for text."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolkit.core.errors import UserError
from toolkit.data.corpus import load_corpus
from toolkit.data.documents import documents
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.load import load_tokenizer
from toolkit.pipeline.cache_keys import data_hashes
from toolkit.pipeline.estimate.data_volume import corpus_volume
from toolkit.pipeline.preflight import check_corpus
from toolkit.recipe import Corpus, Recipe
from toolkit.recipe.load import parse_recipe

TEXTS = ["a warm night\n\nby the sea", "", *(f"the {n} . film" for n in ("old", "new", "late", "loud"))]
ROWS = [{"text": text, "id": number} for number, text in enumerate(TEXTS)]
FOUND = [["a warm night", "by the sea"], [], *([text] for text in TEXTS[2:])]


def quoted(text: str) -> str:
    return f'"{text}"'


FORMS = {
    "t.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "t.NDJSON": "".join(json.dumps(row) + "\n" for row in ROWS),
    "array.json": json.dumps(ROWS, indent=1),
    "t.csv": "text,id\n" + "".join(f"{quoted(row['text'])},{row['id']}\n" for row in ROWS),
    "T.TSV": "text\tid\n"
    + "".join(f"{quoted(r['text']) if chr(10) in r['text'] else r['text']}\t{r['id']}\n" for r in ROWS),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_of_a_table_the_text_column_is_read(tmp_path, name, compressed):
    path = tmp_path / (f"{name}.GZ" if compressed else name)
    path.write_bytes(gzip.compress(FORMS[name].encode()) if compressed else FORMS[name].encode())
    assert list(documents(str(path), "text")) == FOUND
    assert check_corpus(Corpus(files=(str(path),)), {}) == "6 paragraphs"
    assert corpus_volume(Corpus(files=(str(path),), pack=False), {}).examples == round(6 * 0.95)


def test_of_parquet_the_named_column_is_read(tmp_path):
    pq.write_table(pa.table({"body": TEXTS, "id": range(6)}), tmp_path / "t.parquet")
    assert list(documents(str(tmp_path / "t.parquet"), "body")) == FOUND


def test_a_corpus_of_a_table_is_that_of_the_same_plain_text(tiny_bert, tmp_path):
    texts = [f"the {word} film .\nit is {word} ." for word in ("old", "new", "late", "loud", "warm", "grim") * 5]
    (tmp_path / "t.txt").write_text("\n\n".join(texts))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"id": 0, "text": text}) + "\n" for text in texts))
    found = []
    for name in ("t.txt", "t.jsonl"):
        section = Corpus(files=(str(tmp_path / name),), max_seq_length=16)
        data = load_corpus(section, {}, load_tokenizer(tiny_bert), tmp_path / name.replace(".", "-"))
        found.append([split[n].tolist() for split in (data.train, data.valid) for n in range(len(split))])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("column", "value", "message", "instead"),
    [
        ("txt", "x", "no column 'txt'", "corpus.column: text"),
        ("body", "x", "no column 'body'", "corpus.column: one of text, id"),
        ("id", "x", "does not contain text, but e.g. 0", "corpus.column: text"),
        ("text", " ", "no text in column 'text'", "corpus.column: <a text column>"),
    ],
)
def test_a_column_that_is_none_or_no_text_is_refused(tmp_path, column, value, message, instead):
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": value, "id": 0}) + "\n")
    with pytest.raises(UserError, match=message) as error:
        list(documents(str(tmp_path / "t.jsonl"), column))
    assert error.value.instead == instead


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('\n{"text": "a"}\n', "JSON"),
        ('{ "text": "a"}\n', "JSON"),
        ('[\n {"text": "a"}]', "JSON"),
        ('[{"text": "a"}]', "JSON"),
        ('<?xml version="1.0"?>\n<p>a</p>', "markup"),
        ("<!DOCTYPE html>\n<p>a</p>", "markup"),
        ('<doc id="1" title="a">\na\n</doc>', "markup"),
    ],
)
def test_text_files_with_something_else_in_them_are_refused(tmp_path, text, kind):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(UserError, match=f"this file contains {kind}, not plain text") as error:
        list(documents(str(tmp_path / "t.txt"), "text"))
    assert str(error.value.where).endswith(":2" if text.startswith("\n") else ":1")


@pytest.mark.parametrize("text", ["{a} , b\n", "[ a ] b\n", "<3 films\n", "{{cite}} a\n"])
def test_plain_text_with_brackets_is_plain_text(tmp_path, text):
    (tmp_path / "t.txt").write_text(text)
    assert list(documents(str(tmp_path / "t.txt"), "text")) == [[text.strip()]]


def test_a_table_and_a_text_of_the_same_bytes_have_different_keys(tmp_path):
    keys = []
    for name in ("t.jsonl", "t.txt"):
        (tmp_path / name).write_text(FORMS["t.jsonl"])
        roles = data_hashes({"corpus": Corpus(files=(str(tmp_path / name),)), "corpus_tasks": {}}, ResolvedInputs())[1]
        keys.append(roles["corpus"])
    assert keys[0] != keys[1]


def test_a_column_of_plain_text_has_no_effect_and_is_refused():
    text = "name: r\nmodel: {source: m}\ncorpus: {files: [a.txt], column: body}\n"
    with pytest.raises(UserError, match=r"corpus\.column: has no effect"):
        parse_recipe(text, "r.yaml")
    assert isinstance(parse_recipe(text.replace("a.txt", "a.JSONL.xz"), "r.yaml"), Recipe)
