"""Retrieval sets in BEIR's layout: rank metrics against plain formulas, and what is refused by row."""

import json
import math

import numpy as np
import pytest

from toolkit.core.errors import UserError
from toolkit.data.kinds.retrieval import ranked, read_retrieval
from toolkit.data.task_rows import check_rows
from toolkit.data.tasks import load_task
from toolkit.models.load import load_tokenizer
from toolkit.recipe import Task

DOCUMENTS = [{"_id": f"d{n}", "title": f"title {n}", "text": f"the story of {n}"} for n in range(12)]
QUERIES = [{"_id": "q1", "text": "a story"}, {"_id": "q2", "text": "a dull end"}, {"_id": "q3", "text": "not judged"}]
JUDGED = "query-id\tcorpus-id\tscore\nq1\td3\t2\nq1\td5\t1\nq2\td0\t1\nq2\td1\t0\n"


@pytest.fixture
def folder(tmp_path):
    def made(documents=DOCUMENTS, queries=QUERIES, judged=JUDGED):
        (tmp_path / "qrels").mkdir(exist_ok=True)
        for name, rows in (("corpus", documents), ("queries", queries)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "qrels" / "test.tsv").write_text(judged)
        return str(tmp_path / "qrels" / "test.tsv")

    return made


def test_a_set_has_all_documents_and_the_judged_queries(folder):
    found = read_retrieval("toy", folder())
    assert found.queries == ("a story", "a dull end")
    assert found.documents[3] == "title 3 the story of 3"
    assert found.relevant == ({3: 2.0, 5: 1.0}, {0: 1.0})


def test_only_the_queries_that_are_asked_for_are_checked(folder):
    without = folder(judged=JUDGED.replace("q2\td0\t1\n", ""))
    with pytest.raises(UserError, match="query 'q2' has no relevant document"):
        read_retrieval("toy", without)
    assert read_retrieval("toy", without, queries=("a story",)).relevant == ({3: 2.0, 5: 1.0},)


def test_rank_metrics_are_those_of_the_ranks():
    documents = np.eye(12)
    order = [4, 3, 7, 5, 0, 1, 2, 6, 8, 9, 10, 11]  # of the first query, best first
    query = np.zeros(12)
    query[order] = np.linspace(1, 0.1, 12)
    late = np.zeros(12)
    late[0] = -1.0  # the only relevant document is the last one
    found = ranked(np.stack([query, late]), documents, ({3: 2.0, 5: 1.0}, {0: 1.0}))
    gain = 2 / math.log2(3) + 1 / math.log2(5)  # ranks 2 and 4
    assert found[0] == pytest.approx([gain / (2 / math.log2(2) + 1 / math.log2(3)), 1 / 2, 1.0])
    assert found[1] == pytest.approx([0.0, 0.0, 1.0])


def test_queries_and_documents_are_measured_beside_the_dev_rows(folder, tiny_bert, tmp_path):
    (tmp_path / "texts.tsv").write_text("text\nthe story\na dull end\n")
    file = str(tmp_path / "texts.tsv")
    keys = {"kind": "embedding", "train": file, "dev": file, "columns": ["text"], "retrieval": {"toy": folder()}}
    section = Task.model_validate(keys)
    assert "toy: 2 queries, 12 documents" in check_rows("t", section)
    task = load_task("t", section, load_tokenizer(tiny_bert))
    assert len(task.dev) == 2 + 2 + 12
    embeddings = np.zeros((16, 12), np.float32)
    embeddings[4:] = np.eye(12)
    embeddings[[0, 1]] = 1.0
    embeddings[2, [3, 5]] = 2, 1
    embeddings[3, 1] = 1
    dev = task.dev.__class__(**vars(task.dev) | {"dense": embeddings})
    scores = task.__class__(**vars(task) | {"dev": dev}).scores(list(embeddings))
    assert scores["dense_cosine"] == pytest.approx(1)
    assert scores["mrr@10 (toy)"] == pytest.approx((1 + 1 / 2) / 2)
    assert scores["ndcg@10 (toy)"] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert scores["recall@100 (toy)"] == pytest.approx(1)
    assert {m.name: m.n for m in task.measures}["ndcg@10 (toy)"] == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"judged": JUDGED + "q3\td1\t0\n"}, r"test.tsv:6: query 'q3' has no relevant document"),
        ({"judged": JUDGED + "q9\td1\t1\n"}, r"test.tsv:6: 'q9' is not in queries.jsonl"),
        ({"judged": JUDGED + "q1\td99\t1\n"}, r"test.tsv:6: 'd99' is not in corpus.jsonl"),
        ({"judged": JUDGED + "q1\td4\tnan\n"}, r"test.tsv:6: the label 'nan' is not a number"),
        ({"judged": "query\tdoc\tscore\nq1\td3\t2\n"}, "no column 'query-id'"),
        ({"documents": [*DOCUMENTS, DOCUMENTS[0]]}, r"corpus.jsonl:13: the _id 'd0' is not unique"),
        ({"documents": [*DOCUMENTS, {"_id": "d12", "title": "", "text": " "}]}, r"corpus.jsonl:13: the text is empty"),
        ({"queries": [{"_id": "q1"}]}, "no column 'text'"),
    ],
)
def test_a_bad_row_of_a_set_is_refused_with_its_line(changes, expected, folder):
    with pytest.raises(UserError, match=expected):
        read_retrieval("toy", folder(**changes))


def test_a_set_without_its_documents_is_refused_with_the_layout(folder, tmp_path):
    file = folder()
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(UserError, match=r"corpus\.jsonl: no such file"):
        read_retrieval("toy", file)
