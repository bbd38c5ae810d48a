"""Rows of an embedding task: forms, refusals by row, and metrics against plain formulas."""

import shutil

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from toolkit.core.errors import UserError
from toolkit.data.corpus import load_corpus
from toolkit.data.kinds.embedding import Texts
from toolkit.data.task_rows import check_rows
from toolkit.data.tasks import load_task, load_tasks
from toolkit.models.embedding.prompts import Prompts, write_prompts
from toolkit.models.load import load_tokenizer
from toolkit.recipe import Corpus, Task

TEXTS = "text\nthe lovely story\na dull story\n"
SCORED = "one\ttwo\tscore\nthe story\ta story\t4.5\nthe story\ta dull end\t1\nlovely\tlovely\t5\n"


@pytest.fixture
def task(tmp_path):
    def made(train=TEXTS, dev=SCORED, suffix="tsv", **keys):
        for name, text in (("train", train), ("dev", dev)):
            (tmp_path / f"{name}.{suffix}").write_text(text)
        given = {"columns": ["text"], "dev_columns": ["one", "two"], "dev_label": "score"} | keys
        files = {name: str(tmp_path / f"{name}.{suffix}") for name in ("train", "dev")}
        return Task.model_validate({"kind": "embedding", "max_seq_length": 16} | files | given)

    return made


def test_each_text_is_an_example_and_its_row_is_what_is_measured(task, tiny_bert):
    data = load_task("toy", task(), load_tokenizer(tiny_bert))
    assert (len(data.train), data.train.together, "labels" in data.train[0]) == (2, 1, False)
    assert (len(data.dev), data.dev.together, data.dev_n) == (6, 2, 3)
    assert [data.dev[i]["labels"] for i in range(4)] == [4.5, 4.5, 1.0, 1.0]
    assert data.metrics == ("spearman_cosine", "dense_cosine", "dense_cosine_p1")
    assert data.tuning_metric == "dense_cosine"  # the training rows have no scores


@pytest.mark.parametrize(
    ("keys", "train", "dev"),
    [
        ({}, ["the lovely story", "a dull story"], ["the story", "a story"]),
        (
            {"default_prompt": "passage"},
            ["late the lovely story", "late a dull story"],
            ["late the story", "late a story"],
        ),
    ],
)
def test_texts_begin_with_their_prompts_and_are_truncated_with_them(keys, train, dev, task, tiny_bert):
    tokenizer = load_tokenizer(tiny_bert)
    data = load_task("toy", task(prompts={"query": "early ", "passage": "late "}, **keys), tokenizer)

    def ids(texts, longest=16):
        return tokenizer(texts, truncation=True, max_length=longest)["input_ids"]

    assert data.train.inputs["input_ids"] == ids(train)
    assert data.dev.inputs["input_ids"][:2] == ids(dev)
    assert data.train.encoded_by(tokenizer).inputs["input_ids"] == ids(train, int(data.train.lengths.max()))
    pairs = task(
        *[SCORED] * 2,
        prompts={"query": "early ", "passage": "late "},
        columns=["one", "two"],
        dev_columns=[],
        dev_label=None,
    )
    found = load_task("toy", pairs, tokenizer).train.inputs["input_ids"]
    assert found[:2] == ids(["early the story", "late a story"])


@pytest.fixture
def with_and_without_prompts(tiny_bert, tmp_path):
    """Tokenizers of two folders that differ in their prompts alone."""
    folders = tmp_path / "prompted", tmp_path / "plain"
    for folder in folders:
        shutil.copytree(tiny_bert, folder)
    write_prompts(folders[0], Prompts({"query": "early "}, "query"))
    return [load_tokenizer(folder) for folder in folders]


def test_models_of_other_prompts_do_not_share_their_texts(task, with_and_without_prompts):
    prompted, plain = with_and_without_prompts
    found = load_tasks("toy", task(), {"a": prompted, "b": plain, "c": prompted})
    assert found["a"] is found["c"] is not found["b"]
    lengths = [len(data.dev.inputs["input_ids"][0]) for data in found.values()]
    assert lengths[0] == lengths[2] == lengths[1] + 1


def test_a_tokenised_corpus_of_pairs_belongs_to_the_prompts(task, with_and_without_prompts, tmp_path):
    text = "text\n" + "".join(f"the story{' lovely' * (n % 8)}\n" for n in range(400))
    corpus = Corpus.model_validate({"sources": [{"tasks": ["toy"], "shape": "pairs", "max_seq_length": 16}]})
    tokens = []
    for tokenizer in with_and_without_prompts:
        found = load_corpus(corpus, {"toy": task(text)}, tokenizer, tmp_path / "cache")
        tokens.append(found.train.tokens / len(found.train))
    assert tokens[0] == tokens[1] + 1


def test_metrics_are_those_of_the_cosines():
    rng = np.random.default_rng(0)
    own, dense = rng.normal(size=(40, 8)), rng.normal(size=(40, 8))
    scores = rng.uniform(0, 5, 20).astype(np.float32)
    pairs = Texts([("a", "b")] * 20, {"input_ids": [[1]] * 40}, scores, 2, dense)
    predicted = pairs.predicted(list(own.astype(np.float32)))

    def cosines(a, b):
        return [float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in zip(a, b, strict=True)]

    of_pairs, to_dense = cosines(own[::2], own[1::2]), cosines(own, dense)
    found = {name: measure(pairs.truth, predicted) for name, measure in Texts.metrics.items()}
    assert found["spearman_cosine"] == pytest.approx(spearmanr(of_pairs, scores)[0], abs=1e-6)
    assert found["pearson_cosine"] == pytest.approx(pearsonr(of_pairs, scores)[0], abs=1e-5)
    assert found["dense_cosine"] == pytest.approx(np.mean(to_dense), abs=1e-6)
    assert found["dense_cosine_p1"] == pytest.approx(np.percentile(to_dense, 1), abs=1e-6)


def test_the_accuracy_of_triplets_is_how_often_the_positive_is_closer():
    anchor, near, far = [1.0, 0.0], [0.9, 0.1], [0.0, 1.0]
    embeddings = np.array([anchor, near, far, anchor, far, near], dtype=np.float32)
    triplets = Texts([("a", "p", "n")] * 2, {"input_ids": [[1]] * 6}, None, 3)
    assert Texts.metrics["cosine_accuracy"](triplets.truth, triplets.predicted(list(embeddings))) == 0.5


def test_the_lines_of_a_plain_text_file_are_texts(task, tmp_path):
    section = task(
        train="the story\n\n  a dull end\n", dev="one text\nanother\n", suffix="txt", dev_columns=[], dev_label=None
    )
    assert check_rows("toy", section).startswith("2 training rows, 2 evaluation rows")
    assert section.metrics == ("dense_cosine", "dense_cosine_p1")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"dev": SCORED.replace("4.5", "nan")}, r"dev.tsv:2: the label 'nan' is not a number"),
        ({"dev": SCORED.replace("4.5", "")}, r"dev.tsv:2: the label in column 'score' is missing"),
        ({"dev": SCORED.replace("4.5", "high")}, r"dev.tsv:2: the label 'high' is not a number"),
        ({"dev": SCORED.replace("4.5", "1").replace("\t5", "\t1")}, "all 3 pairs of the dev split have the score 1"),
        ({"dev": SCORED.replace("a dull end", " ")}, r"dev.tsv:3: the text in column 'two' is empty"),
        ({"train": "text\nfine\n\u200b\n"}, r"train.tsv:3: the text in column 'text' is empty"),
        ({"train": "sentence\nfine\n"}, "no column 'text'"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(keys, expected, task):
    with pytest.raises(UserError, match=expected):
        check_rows("toy", task(**keys))
