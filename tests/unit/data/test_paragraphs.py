"""Files of pre-training text: the bad ones are told by `check` and before the first stage of a run, and read once."""

import lzma

import pytest

from toolkit.core.errors import UserError
from toolkit.data import files
from toolkit.data.files import raw_lines
from toolkit.pipeline import corpus_checks
from toolkit.pipeline.preflight import check_recipe
from toolkit.pipeline.run import Run
from toolkit.recipe import Corpus, Recipe


def write(path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


@pytest.fixture
def ok(tmp_path) -> str:
    return write(tmp_path / "ok.txt", b"one paragraph\nand another\n\n a document more \n")


@pytest.fixture
def recipe(tiny_bert):
    """Files -> a recipe that pre-trains on them."""

    def make(*files: str) -> Recipe:
        values = {"corpus": {"files": files}, "teacher": {"train": {"steps": 1}}}
        return Recipe.model_validate({"name": "r", "model": {"source": str(tiny_bert)}} | values)

    return make


def test_paragraphs_of_all_files_are_counted(recipe, ok, tmp_path):
    packed = write(tmp_path / "more.txt.xz", lzma.compress(b"one\n\ntwo\n"))
    found = dict(check_recipe(recipe(ok, packed, "hub:nobody/nothing:a:train")))
    assert found["corpus"].startswith("ok.txt, more.txt.xz; hub:nobody")
    assert found["corpus"].endswith("; 5 paragraphs")


BAD = [
    (b"", "no text in this file", ""),
    (b" \n\n\t\n", "no text in this file", ""),
    ("fine\ncaf\u00e9\n".encode("latin-1"), "cannot be read as text", ":2"),
    ("fine\n".encode("utf-16-le"), "zero bytes", ":1"),
]


@pytest.mark.parametrize(("content", "message", "line"), BAD)
@pytest.mark.parametrize("first", [True, False])
def test_file_that_is_no_text_is_refused_by_check_with_its_name_and_line(
    recipe, ok, tmp_path, content, message, line, first
):
    bad = write(tmp_path / "bad.txt", content)
    with pytest.raises(UserError, match=message) as error:
        check_recipe(recipe(*([bad, ok] if first else [ok, bad])))
    assert error.value.where == f"{bad}{line}"


@pytest.mark.parametrize(("content", "message", "line"), BAD)
def test_file_that_is_no_text_ends_a_run_before_its_first_stage(recipe, ok, tmp_path, content, message, line):
    bad = write(tmp_path / "bad.txt", content)
    with pytest.raises(UserError, match=message) as error:
        Run(recipe(ok, bad), tmp_path / "run", lambda step: pytest.fail(f"{step.label} has begun"))()
    assert error.value.where == f"{bad}{line}"


def test_text_that_was_found_good_is_not_read_again_until_it_changes(ok, tmp_path, monkeypatch):
    section, read = Corpus(files=(ok,)), []
    whole = raw_lines
    monkeypatch.setattr(files, "raw_lines", lambda path: read.append(path) or whole(path))
    assert corpus_checks.check_corpus(section, {}, tmp_path / "cache") == "3 paragraphs"
    assert corpus_checks.check_corpus(section, {}, tmp_path / "cache") == ""
    assert len(read) == 1
    write(tmp_path / "ok.txt", b"other text\n")
    assert corpus_checks.check_corpus(section, {}, tmp_path / "cache") == "1 paragraphs"
    write(tmp_path / "ok.txt", b"")
    for _ in range(2):  # what was found bad is not remembered
        with pytest.raises(UserError, match="no text"):
            corpus_checks.check_corpus(section, {}, tmp_path / "cache")
