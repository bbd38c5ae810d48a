"""Tasks and a mixed corpus that several tests read."""

import csv
import json
import random

import pytest

from tests.conftest import GOOD, sentence
from tests.helpers.mix import PLANTED, corpus_of
from toolkit.data.task_rows import read_task
from toolkit.recipe import Task


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A task of pairs with a held-out tenth, one of single texts with a dev file, and one of questions."""
    folder, rng = tmp_path_factory.mktemp("mix"), random.Random(5)

    def table(name, columns, rows):
        with (folder / name).open("w", newline="") as stream:
            csv.writer(stream, delimiter="\t").writerows([columns, *rows])
        return str(folder / name)

    pairs = [(sentence(rng, GOOD), sentence(rng, GOOD), n % 2, f"film {n % 29}") for n in range(300)]
    task = Task(
        train=table("pairs.tsv", ("a", "b", "label", "film"), pairs),
        hold_out={"column": "film", "fraction": 0.1},
        columns=("a", "b"),
        tuning_examples=40,
    )
    unseen = {row.texts for part in ([*read_task("p", task).dev[""]], read_task("p", task).tune) for row in part}
    marked = [
        (f"{a} {PLANTED}", f"{PLANTED} {b}", *rest) if (a, b) in unseen else (a, b, *rest) for a, b, *rest in pairs
    ]
    table("pairs.tsv", ("a", "b", "label", "film"), marked)
    assert {row.texts for row in read_task("p", task).tune} < {(a, b) for a, b, *_ in marked if PLANTED in a}

    singles = [(sentence(rng, GOOD), n % 2) for n in range(200)]
    dev = [(f"{text} {PLANTED}", label) for text, label in singles[:20]]
    single = Task(
        train=table("one.tsv", ("sentence", "label"), singles),
        dev=table("dev.tsv", ("sentence", "label"), dev),
        tuning_examples=0,
    )
    context = " ".join(sentence(rng, GOOD) for _ in range(9))
    asked = [
        {
            "question": sentence(rng, GOOD),
            "context": f"{n} {context}",
            "answers": {"text": [str(n)], "answer_start": [0]},
        }
        for n in range(50)
        for _ in range(2)
    ]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    questions = Task(
        kind="question_answering",
        train=str(folder / "asked.jsonl"),
        dev=str(folder / "asked.jsonl"),
        columns=("question", "context"),
        label="answers",
        max_seq_length=100,
        windows={"stride": 8, "max_question_length": 8},
        tuning_examples=0,
    )
    return {"pair": task, "one": single, "qa": questions}


@pytest.fixture
def mix(tiny_text):
    return corpus_of(
        {"files": [str(tiny_text)], "max_seq_length": 48, "weight": 5},
        {"files": [str(tiny_text)], "shape": "sentences", "max_seq_length": 24, "weight": 2},
        {"tasks": ["one"], "shape": "texts", "max_seq_length": 32, "weight": 1},
        {"tasks": ["pair"], "shape": "pairs", "max_seq_length": 40, "weight": 2},
    )
