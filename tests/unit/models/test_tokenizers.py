"""Comparison of two checkpoints' tokenizers by what they make of texts, before anything is trained."""

import json

import pytest

from tests.conftest import vocabulary
from toolkit.core.errors import UserError
from toolkit.models.load import load_tokenizer
from toolkit.models.tokenizers import require_same_tokens, stored_tokenizers

TEXTS = ["a lovely story", "It is DULL"]


@pytest.fixture
def other(tiny_bert, tmp_path):
    """A copy of the tiny model's tokenizer with another vocabulary, or other settings."""

    def make(words=None, **settings):
        from transformers import BertTokenizer

        given = {word: index for index, word in enumerate(words or vocabulary())}
        BertTokenizer(vocab=given, **settings).save_pretrained(tmp_path / "other")
        return tmp_path / "other"

    return make


@pytest.mark.parametrize(
    "change", [{"do_lower_case": False}, {"words": vocabulary()[::-1]}, {"words": [*vocabulary()[:5], "a", "lovely"]}]
)
def test_another_casing_or_vocabulary_is_refused_with_an_example(tiny_bert, other, change):
    folder = other(**change)
    with pytest.raises(
        UserError, match=r"the teacher's tokenizer is not the student's: '.+' is .* to the student"
    ) as e:
        require_same_tokens(tiny_bert, folder, TEXTS)
    assert e.value.where == str(folder)


def test_equal_tokens_are_accepted_whatever_else_differs(tiny_bert, other):
    require_same_tokens(tiny_bert, other(model_max_length=77), ())
    require_same_tokens(tiny_bert, other(words=[*vocabulary(), "longer"]), TEXTS)
    (other() / "tokenizer.json").unlink()
    require_same_tokens(tiny_bert, other().with_name("none"), TEXTS)


@pytest.mark.parametrize("kind", ["bert", "electra", "mpnet", "odd"])
@pytest.mark.parametrize("name", [None, "BertTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("settings", [{}, {"do_lower_case": True}, {"do_lower_case": False}])
def test_the_tokenizer_that_is_loaded_is_among_those_that_are_compared(
    tiny_bert, other, tmp_path, kind, name, settings
):
    """transformers takes a BERT tokenizer's casing from its settings, or from tokenizer.json, as it sees fit."""
    folder = other(do_lower_case=False)
    known = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {key: known[key] for key in known if key not in ("do_lower_case", "tokenizer_class")}
    named = {"tokenizer_class": name} if name else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept | settings | named))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    loaded = load_tokenizer(folder)
    for text in TEXTS:
        assert loaded(text)["input_ids"] in [one.encode(text).ids for one in stored_tokenizers(folder)]
