"""Candidates of queries: forms of rows, groups, refusals by row, and metrics against plain formulas."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from toolkit.core.errors import UserError
from toolkit.data.kinds.bm25 import BM25
from toolkit.data.kinds.reranking import Candidates
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.data.task_rows import check_rows, read_task
from toolkit.data.tasks import load_task
from toolkit.models.load import load_tokenizer
from toolkit.pipeline.cache_keys import data_hashes
from toolkit.pipeline.estimate.data_volume import task_volume
from toolkit.recipe import Task

HEAD = "query\tpassage\tlabel\n"
PAIRS = f"{HEAD}one\tgood\t1\ntwo\tbad\t0\none\tbad\t0\ntwo\tfair\t0.5\ntwo\tgood\t1\n"


@pytest.fixture
def task(tmp_path):
    def made(train=PAIRS, suffix="tsv", dev=PAIRS, **keys):
        (tmp_path / f"train.{suffix}").write_text(train)
        (tmp_path / "dev.tsv").write_text(dev)
        files = {"train": str(tmp_path / f"train.{suffix}"), "dev": str(tmp_path / "dev.tsv")}
        return Task.model_validate({"kind": "reranking", "max_seq_length": 16, "tuning_examples": 0} | files | keys)

    return made


def pairs_of(section, split="train"):
    found = read_task("toy", section)
    return [(*row.texts, row.label) for row in (found.train if split == "train" else found.dev[""])]


def test_the_candidates_of_a_query_follow_each_other_and_metrics_are_means_over_queries(task, tiny_bert):
    section = task(more_dev={"more": task().dev}, metrics=["ndcg@10", "mrr@10"])
    assert "2 training and 4 evaluation queries" in check_rows("toy", section)
    data = load_task("toy", section, load_tokenizer(tiny_bert))
    assert [part.tolist() for part in data.dev.truth] == [[1, 0], [0, 0.5, 1]] * 2
    assert {m.name: (m.part, m.n) for m in data.measures if m.metric == "ndcg@10"} == {
        "ndcg@10": (slice(0, 2), 2),
        "ndcg@10 (more)": (slice(2, 4), 2),
    }
    scores = np.array([0.1, 0.2, 0.9, 0.5, 0.1, 1.0, 0.0, -1.0, 0.0, 1.0])[:, None]
    found = data.scores(list(scores))
    discount = [1 / math.log2(rank + 1) for rank in (1, 2, 3)]
    second = (0.5 * discount[1] + 1 * discount[2]) / (1 * discount[0] + 0.5 * discount[1])
    assert found["ndcg@10"] == pytest.approx((discount[1] + second) / 2)
    assert found["mrr@10"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert found["ndcg@10 (more)"] == found["mrr@10 (more)"] == 1


def test_equal_scores_gain_nothing_from_the_order_of_the_rows():
    candidates = Candidates([("q", "p")] * 3, {"input_ids": [[1]] * 3}, np.array([1.0, 0, 0]), np.zeros(3))
    predicted = candidates.predicted(list(np.zeros((3, 1))))
    assert Candidates.metrics["mrr@10"](candidates.truth, predicted) == pytest.approx(1 / 3)


def test_relevant_passages_after_the_tenth_do_not_count():
    labels = np.zeros(12)
    labels[10] = 1
    candidates = Candidates([("q", "p")] * 12, {"input_ids": [[1]] * 12}, labels, np.zeros(12))
    predicted = candidates.predicted(list(-np.arange(12.0)[:, None]))
    assert Candidates.metrics["ndcg@10"](candidates.truth, predicted) == 0
    assert Candidates.metrics["mrr@10"](candidates.truth, predicted) == 0


def test_positives_and_negatives_are_pairs_in_lists_or_in_columns(task):
    rows = [
        {"query": "one", "positive": ["a", "b"], "negatives": ["c", "d"]},
        {"query": "two", "positive": "e", "negatives": ["f"]},
    ]
    expected = [("one", "a", 1), ("one", "b", 1), ("one", "c", 0), ("one", "d", 0), ("two", "e", 1), ("two", "f", 0)]
    lists = "".join(json.dumps(row) + "\n" for row in rows)
    dev = "query\tpositive\tnegatives\none\ta\tb\n"
    assert pairs_of(task(lists, "jsonl", dev, columns=["query", "positive", "negatives"])) == expected
    columns = "query\tp\tn\tm\none\ta\tc\td\n"
    section = task(columns, dev=columns, columns=["query", "p", "n", "m"])
    assert pairs_of(section) == [("one", "a", 1), ("one", "c", 0), ("one", "d", 0)]


def test_rows_that_are_left_out_need_no_passages(task):
    rows = [
        {"query": "one", "lang": "en", "positive": "a", "negatives": ["c"]},
        {"query": "two", "lang": "de", "positive": [], "negatives": ["f"]},
        {"query": "three", "lang": "de", "positive": "g", "negatives": []},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    dev, columns = "query\tlang\tpositive\tnegatives\none\ten\ta\tb\n", ["query", "positive", "negatives"]
    section = task(text, "jsonl", dev, rows={"lang": ["en"]}, columns=columns)
    assert pairs_of(section) == [("one", "a", 1), ("one", "c", 0)]
    assert task_volume(section).examples == 2
    with pytest.raises(UserError, match=r"train.jsonl:2: the query has no positive passages"):
        pairs_of(task(text, "jsonl", dev, columns=columns))


def test_a_group_is_a_candidate_with_less_relevant_ones_that_take_turns(task, tiny_bert):
    rows = "".join(f"one\tp{n}\t{label}\n" for n, label in enumerate([0, 1, 0, 0.5, 0, 1, 0]))
    section = task(HEAD + rows, ranking={"group": 3})
    train = load_task("toy", section, load_tokenizer(tiny_bert)).train
    first, others = train.groups[:, 0], train.groups[:, 1:]
    assert sorted(first) == [1, 3, 5]
    assert all(
        train.labels[other] < train.labels[one] for one, part in zip(first, others, strict=True) for other in part
    )
    assert len(set(others.flatten())) >= 4  # six places, and five candidates are below another
    assert train.groups.tolist() == train.groups.tolist()
    alone = load_task("toy", task(HEAD + rows), load_tokenizer(tiny_bert)).train
    assert alone.groups.tolist() == [[n] for n in range(7)]


def test_complete_queries_are_set_aside_for_tuning(task):
    rows = "".join(f"q{n // 5}\tp{n}\t{int(n % 5 == 0)}\n" for n in range(100))
    found = read_task("toy", task(HEAD + rows, tuning_examples=1000))
    asked = [{row.texts[0] for row in rows} for rows in (found.tune, found.train)]
    assert (len(found.tune), len(asked[0]), asked[0] & asked[1]) == (10, 2, set())


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        (PAIRS.replace("0.5", "nan"), {}, r"train.tsv:5: the label 'nan' is not a number"),
        (PAIRS.replace("0.5", "2"), {}, r"train.tsv:5: the label 2 is not between 0 and 1"),
        (PAIRS.replace("0.5", "-0.1"), {}, r"train.tsv:5: the label -0.1 is not between 0 and 1"),
        (PAIRS.replace("fair", " "), {}, r"train.tsv:5: the text in column 'passage' is empty"),
        (PAIRS.replace("one\tbad\t0\n", ""), {"ranking": {"group": 2}}, r"train.tsv:2: the query 'one' has 1 passage"),
        (
            PAIRS.replace("good\t1", "good\t0"),
            {"ranking": {"group": 2}},
            r"train.tsv:2: the query 'one' has no relevant",
        ),
    ],
)
def test_a_bad_row_is_refused_with_its_line(text, keys, expected, task):
    with pytest.raises(UserError, match=expected):
        check_rows("toy", task(text, **keys))
    check_rows("toy", task(ranking={"loss": "mse"}, train=PAIRS.replace("0.5", "-7")))


@pytest.mark.parametrize(
    ("dev", "expected"),
    [
        (PAIRS.replace("good\t1", "good\t0"), r"dev.tsv:2: the query 'one' has no relevant passage"),
        (PAIRS.replace("one\tbad\t0\n", ""), r"dev.tsv:2: the query 'one' has 1 passage\(s\), all with the label 1"),
    ],
)
def test_a_query_without_anything_to_rank_is_refused(dev, expected, task):
    with pytest.raises(UserError, match=expected):
        check_rows("toy", task(dev=dev))


@pytest.mark.parametrize(
    ("row", "what"),
    [({"positive": [], "negatives": ["x"]}, "positive"), ({"positive": "x", "negatives": []}, "negative")],
)
def test_a_row_without_positives_or_negatives_is_refused_with_its_line(row, what, task):
    rows = [{"query": "q", "positive": "a", "negatives": ["b"]}, {"query": "r"} | row]
    section = task("".join(json.dumps(r) + "\n" for r in rows), "jsonl", columns=["query", "positive", "negatives"])
    with pytest.raises(UserError, match=rf"train.jsonl:2: the query has no {what} passages"):
        check_rows("toy", section)


def test_the_score_of_bm25_is_its_formula():
    index = BM25(["The wing, the WING", "a wing in air", "air"])
    mean = 9 / 3

    def term(holders, count, length):
        rarity = math.log(1 + (3 - holders + 0.5) / (holders + 0.5))
        return rarity * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / mean))

    expected = [term(2, 2, 4), term(2, 1, 4) + 2 * term(2, 1, 4), 2 * term(2, 1, 1)]
    assert index.scores("wing air air zzz") == pytest.approx(expected)
    assert index.best("air", 5) == [2, 1]  # the first document shares no word


@pytest.fixture
def beir(tmp_path):
    def made(documents=("wing of air", "wing in air", "dull wing", "else"), judged="a\t0\t4\na\t2\t1\nb\t3\t2\n"):
        (tmp_path / "qrels").mkdir(exist_ok=True)
        rows = [{"_id": str(n), "text": text} for n, text in enumerate(documents)]
        asked = [{"_id": "a", "text": "wing"}, {"_id": "b", "text": "air"}]
        for name, table in (("corpus", rows), ("queries", asked)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
        (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
        return str(tmp_path / "qrels" / "test.tsv")

    return made


def test_candidates_in_beirs_layout_are_the_relevant_documents_and_the_best_by_bm25(beir, task):
    file = beir()
    section = task().model_copy(update={"train": file, "dev": file})
    a, b = "wing of air", "wing in air"
    assert pairs_of(section)[:3] == [("wing", a, 1), ("wing", "dull wing", 0.25), ("wing", b, 0)]
    assert pairs_of(section)[3:] == [("air", "else", 0.5), ("air", a, 0), ("air", b, 0)]
    fewer = section.model_copy(update={"ranking": section.ranking.model_copy(update={"bm25": 1})})
    assert [pair[:2] for pair in pairs_of(fewer)[2:]] == [("wing", b), ("air", "else"), ("air", a)]


def test_queries_of_the_same_text_are_one_query_with_the_higher_grades(beir, task):
    file = beir(judged="a\t0\t4\nb\t0\t2\nb\t3\t2\n")
    rows = [{"_id": name, "text": "wing"} for name in "ab"]
    (Path(file).parent.parent / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = pairs_of(task().model_copy(update={"train": file, "dev": file}))
    assert found[:2] == [("wing", "wing of air", 1), ("wing", "else", 0.5)]
    assert len({pair[:2] for pair in found}) == len(found) == 4


def test_a_single_query_is_not_set_aside_for_tuning(task):
    rows = "".join(f"q\tp{n}\t{int(n == 0)}\n" for n in range(20))
    found = read_task("toy", task(HEAD + rows, tuning_examples=1000))
    assert (len(found.tune), len(found.train)) == (0, 20)


def test_bad_files_in_beirs_layout_are_refused_by_row_or_left_out(beir, task):
    def checked(**keys):
        check_rows("toy", task().model_copy(update={"train": beir(**keys)}))

    with pytest.raises(UserError, match=r"test.tsv:2: '9' is not in corpus.jsonl"):
        checked(judged="a\t9\t1\n")
    with pytest.raises(UserError, match=r"test.tsv:3: query 'b' has no relevant document"):
        checked(judged="a\t0\t1\nb\t3\t0\n")
    documents = ("wing of air", "", "dull wing", "else")
    with pytest.raises(UserError, match=r"corpus.jsonl:2: the text is empty") as caught:
        checked(documents=documents)
    assert "drop_empty: true" in caught.value.instead
    section = task().model_copy(update={"train": beir(documents=documents), "drop_empty": True})
    assert {pair[1] for pair in pairs_of(section)} == {"wing of air", "dull wing", "else"}


def test_documents_and_queries_are_part_of_the_cache_key(beir, task):
    section = task().model_copy(update={"train": beir()})
    before = data_hashes({"task": section}, ResolvedInputs())[1]
    beir(documents=("wing of air", "another", "dull wing", "else"))
    after = data_hashes({"task": section}, ResolvedInputs())[1]
    assert before["train"] == after["train"]
    assert before["judged"] != after["judged"]
