"""Retrieval in BEIR's layout: documents, queries and relevance judgements; the rank metrics. Loads no torch."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from toolkit.core.errors import UserError
from toolkit.data.files import fetch_file
from toolkit.data.labels import number_of
from toolkit.data.tables import read_rows, text
from toolkit.models.embedding.prompts import Prompts
from toolkit.recipe import KINDS, Task
from toolkit.recipe.references import task_files

CUT = 10  # ranks of nDCG and MRR
RECALL_CUT = 100  # ranks of recall, as in BEIR
_LAYOUT = "<folder>/qrels/<split>.tsv, beside <folder>/corpus.jsonl and <folder>/queries.jsonl"


@dataclass(frozen=True)
class Retrieval:
    """Queries with their relevant documents.

    Attributes:
        name: Name of the set in the recipe.
        queries: The queries that are judged.
        documents: All documents; a title is followed by its text.
        relevant: For each query, index of a document -> its grade, above 0.
    """

    name: str
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    relevant: tuple[dict[int, float], ...]

    def with_prompts(self, prompts: Prompts) -> "Retrieval":
        """Returns the same set with the model's prompts before queries and documents."""
        queries = tuple(prompts.query + text for text in self.queries)
        documents = tuple(prompts.document + text for text in self.documents)
        return replace(self, queries=queries, documents=documents)


def files_of(qrels: str) -> tuple[str, str, str]:
    """Returns the three files of a set, given its judgements: judgements, documents, queries."""
    folder = Path(qrels).parent.parent
    return qrels, str(folder / "corpus.jsonl"), str(folder / "queries.jsonl")


def is_judged(file: Path | str) -> bool:
    """Returns whether a file is one of judgements, by its folder."""
    return Path(file).parent.name == "qrels"


def judged_files(task: Task) -> list[tuple[str, str, str]]:
    """Returns the three files of each file of judgements that a reranking task names as a split."""
    specs = task_files(task) if KINDS[task.kind].per_query else []
    return [files_of(spec) for spec in specs if is_judged(spec)]


def read_retrieval(
    name: str, qrels: str, *, drop_empty: bool = False, queries: Collection[str] | None = None
) -> Retrieval:
    """Reads a set; queries that the judgements do not name are left out.

    Args:
        name: Name of the set in the recipe.
        qrels: File of the judgements, with the columns query-id, corpus-id and score.
        drop_empty: Whether documents and queries with an empty text are left out; otherwise they are an error.
        queries: Texts of the only queries that are read; None: all.

    Raises:
        UserError: A file is missing or damaged, a text is empty, an id is unknown or not unique, a score is not a
            number, or a query has no relevant document.
    """
    judged, corpus, asked = (_found(file, qrels) for file in files_of(qrels))
    documents, known_queries = _texts(corpus, True, drop_empty), _texts(asked, False, drop_empty)
    places = {key: number for number, key in enumerate(key for key, words in documents.items() if words)}
    grades: dict[str, dict[int, float]] = {}
    first: dict[str, str] = {}
    for where, row in read_rows(judged, ("query-id", "corpus-id", "score")):
        query, document = text(row["query-id"]), text(row["corpus-id"])
        for key, known, file in ((query, known_queries, asked), (document, documents, corpus)):
            if key not in known:
                raise UserError(f"{key!r} is not in {file.name}", where=where, instead="an _id of that file")
        if not known_queries[query] or (queries is not None and known_queries[query] not in queries):
            continue
        first.setdefault(query, where)
        found = grades.setdefault(query, {})
        grade = number_of(row["score"], where)
        if grade > 0 and document in places:
            found[places[document]] = grade
    for query, found in grades.items():
        if not found:
            what = f"query {query!r} has no relevant document"
            raise UserError(what, where=first[query], instead="a score above 0, or leave the query out")
    chosen = tuple(known_queries[query] for query in grades)
    return Retrieval(name, chosen, tuple(documents[key] for key in places), tuple(grades.values()))


def ranked(queries: np.ndarray, documents: np.ndarray, relevant: tuple[dict[int, float], ...]) -> np.ndarray:
    """Returns nDCG@10, MRR@10 and recall@100 of each query, [queries, 3].

    Args:
        queries: Normalised embeddings [queries, size].
        documents: Normalised embeddings [documents, size].
        relevant: For each query, index of a document -> its grade.
    """
    found = np.zeros((len(queries), 3))
    for number, (query, grades) in enumerate(zip(queries, relevant, strict=True)):
        order = np.argsort(-(documents @ query), kind="stable")[:RECALL_CUT]
        gains = np.array([grades.get(int(place), 0.0) for place in order])
        graded = np.array(list(grades.values()))
        found[number] = ndcg(gains, graded), reciprocal_rank(gains), np.count_nonzero(gains) / len(grades)
    return found


def ndcg(gains: np.ndarray, grades: np.ndarray) -> float:
    """Returns nDCG@10, with linear gains and the discount log2(rank + 1), as trec_eval has it and BEIR reports it.

    Args:
        gains: Grades of the documents in their order, [n]; those below 0 count as 0.
        grades: Grades of all documents that could be found, [m], at least one of them above 0.
    """
    discounts = 1 / np.log2(np.arange(2, CUT + 2))
    found, best = (np.maximum(part[:CUT], 0) for part in (gains, np.sort(grades)[::-1]))
    ideal = (best * discounts[: len(best)]).sum()
    return float((found * discounts[: len(found)]).sum() / ideal) if ideal else 0.0


def reciprocal_rank(gains: np.ndarray) -> float:
    """Returns 1 / rank of the first of ten documents whose grade is above 0, or 0."""
    hits = np.flatnonzero(gains[:CUT] > 0)
    return float(1 / (hits[0] + 1)) if len(hits) else 0.0


def _found(file: str, qrels: str) -> Path:
    try:
        return fetch_file(file)
    except UserError:
        raise UserError("no such file", where=file, instead=_LAYOUT if file != qrels else f"a file {_LAYOUT}") from None


def _texts(path: Path, titled: bool, drop_empty: bool) -> dict[str, str]:
    """Returns the texts of a file by id, in the order of the file; with `drop_empty` some may be empty."""
    found: dict[str, str] = {}
    for where, row in read_rows(path, ("_id", "text")):
        key = text(row["_id"])
        parts = [text(row.get("title")), text(row["text"])] if titled else [text(row["text"])]
        joined = " ".join(parts).strip()
        if not key or key in found:
            raise UserError(f"the _id {key!r} is {'not unique' if key else 'missing'}", where=where)
        if not joined and not drop_empty:
            raise UserError("the text is empty", where=where, instead="a text, or drop_empty: true")
        found[key] = joined
    return found
