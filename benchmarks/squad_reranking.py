"""Rows to train and measure a reranker on, made from a file in SQuAD's form: query, positive, negatives.

Paragraphs are cut at the ends of sentences into passages. The positive is the passage with the answer; negatives are
drawn at random among the best by BM25 of the other paragraphs of the article. Questions whose answer occurs in other
passages of their paragraph are left out. What BM25 and a random order reach on these candidates is printed.

    python benchmarks/squad_reranking.py squad/split_train.json train.jsonl --negatives 1
    python benchmarks/squad_reranking.py squad/split_heldout.json dev.jsonl --best 14 --negatives 14 --rows 200
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.kinds.bm25 import BM25
from toolkit.data.kinds.reranking import Candidates

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def passages(paragraph: str, words: int) -> list[str]:
    """Returns a paragraph in parts of complete sentences, of at most so many words unless one sentence has more."""
    found: list[list[str]] = []
    for sentence in SENTENCE_END.split(paragraph.strip()):
        if not found or len(" ".join([*found[-1], sentence]).split()) > words:
            found.append([])
        found[-1].append(sentence)
    return [" ".join(sentences) for sentences in found]


def rows_of(article: dict[str, Any], arguments: argparse.Namespace, random: np.random.Generator) -> list[Any]:
    """Returns a row for each question of an article with one passage that has its answer, and the scores by BM25."""
    cut = [passages(paragraph["context"], arguments.words) for paragraph in article["paragraphs"]]
    texts = [text for parts in cut for text in parts]
    paragraph_of = np.repeat(np.arange(len(cut)), [len(parts) for parts in cut])
    index, rows = BM25(texts), []
    for number, paragraph in enumerate(article["paragraphs"]):
        for question in paragraph["qas"]:
            query, answer = question["question"].strip(), question["answers"][0]["text"]
            with_answer = [place for place in np.flatnonzero(paragraph_of == number) if answer in texts[place]]
            scores = index.scores(query)
            best = [place for place in np.argsort(-scores, kind="stable") if paragraph_of[place] != number]
            if len(with_answer) != 1 or len(best) < arguments.negatives:
                continue
            drawn = random.permutation(best[: arguments.best])[: arguments.negatives]
            row = {"query": query, "positive": texts[with_answer[0]], "negatives": [texts[place] for place in drawn]}
            rows.append((row, scores[[*with_answer, *drawn]]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a file in SQuAD's form")
    parser.add_argument("output", type=Path, help="JSON lines to write")
    parser.add_argument("--words", type=int, default=60, help="of a passage, at most")
    parser.add_argument("--best", type=int, default=20, help="passages by BM25 that negatives are drawn from")
    parser.add_argument("--negatives", type=int, default=1, help="for each question")
    parser.add_argument("--rows", type=int, help="questions, drawn at random; all by default")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    articles = json.loads(arguments.source.read_text(encoding="utf-8"))["data"]
    found = [pair for article in articles for pair in rows_of(article, arguments, random)]
    rows = list({row["query"]: (row, scores) for row, scores in found}.values())  # repeated questions once
    if arguments.rows:
        rows = [rows[place] for place in sorted(random.choice(len(rows), arguments.rows, replace=False))]
    arguments.output.write_text("".join(json.dumps(row) + "\n" for row, _ in rows), encoding="utf-8")

    by_words = [scores for _, scores in rows]
    truth = [np.arange(len(scores)) == 0 for scores in by_words]
    orders = {"bm25": by_words, "random": [random.random(len(scores)) for scores in by_words]}
    reached = {name: {m: f(truth, order) for m, f in Candidates.metrics.items()} for name, order in orders.items()}
    print(json.dumps({"rows": len(rows), "candidates": 1 + arguments.negatives, **reached}))


if __name__ == "__main__":
    main()
