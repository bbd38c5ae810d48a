"""Presets for public tasks: default values for keys that a recipe with `preset` does not set.

A new public task is one more entry here. Class names are in the order of the label ids in the published files.
"""

from typing import Any, Literal

Preset = Literal[
    "sst2", "mnli", "qqp", "qnli", "squad", "mrpc", "rte", "wnli", "cola", "stsb", "conll2003", "wnut17", "msmarco"
]


def _glue(config: str, dev: str = "validation") -> dict[str, Any]:
    return {"train": f"hub:nyu-mll/glue:{config}:train", "dev": f"hub:nyu-mll/glue:{config}:{dev}"}


def _tags(*types: str) -> list[str]:
    return ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


_TWO_SENTENCES = ["sentence1", "sentence2"]

PRESETS: dict[str, dict[str, Any]] = {
    "sst2": _glue("sst2") | {"columns": ["sentence"], "labels": ["negative", "positive"]},
    "mnli": _glue("mnli", "validation_matched")
    | {
        "more_dev": {"mismatched": "hub:nyu-mll/glue:mnli:validation_mismatched"},
        "columns": ["premise", "hypothesis"],
        "labels": ["entailment", "neutral", "contradiction"],
    },
    "qqp": _glue("qqp")
    | {
        "columns": ["question1", "question2"],
        "labels": ["not_duplicate", "duplicate"],
        "metrics": ["accuracy", "f1"],
        "drop_empty": True,  # Quora's file has pairs with a missing question
    },
    "qnli": _glue("qnli") | {"columns": ["question", "sentence"], "labels": ["entailment", "not_entailment"]},
    "mrpc": _glue("mrpc")
    | {"columns": _TWO_SENTENCES, "labels": ["not_equivalent", "equivalent"], "metrics": ["accuracy", "f1"]},
    "rte": _glue("rte") | {"columns": _TWO_SENTENCES, "labels": ["entailment", "not_entailment"]},
    "wnli": _glue("wnli") | {"columns": _TWO_SENTENCES, "labels": ["not_entailment", "entailment"]},
    "cola": _glue("cola")
    | {
        "columns": ["sentence"],
        "labels": ["unacceptable", "acceptable"],
        "metrics": ["matthews_correlation", "accuracy"],
    },
    "stsb": _glue("stsb")
    | {"kind": "regression", "columns": _TWO_SENTENCES, "label": "label", "metrics": ["pearson", "spearman"]},
    "conll2003": {  # the hub's own Parquet files: the data set itself is a script
        "kind": "token_classification",
        "train": "hub:eriktks/conll2003@refs/convert/parquet::train",
        "dev": "hub:eriktks/conll2003@refs/convert/parquet::validation",
        "columns": ["tokens"],
        "label": "ner_tags",
        "labels": _tags("PER", "ORG", "LOC", "MISC"),
    },
    "wnut17": {  # the same rows as leondz/wnut_17, which is a script
        "kind": "token_classification",
        "train": "hub:manu/wnut_17::train",
        "dev": "hub:manu/wnut_17::validation",
        "columns": ["tokens"],
        "label": "ner_tags",
        "labels": _tags("corporation", "creative-work", "group", "location", "person", "product"),
    },
    "msmarco": {  # training queries only, each with one relevant passage and one that BM25 finds
        "kind": "reranking",
        "train": "hub:sentence-transformers/msmarco-bm25:triplet:train",
        "hold_out": {"column": "query", "fraction": 0.01},
        "columns": ["query", "positive", "negative"],
        "note": "MS MARCO, training queries held out, two passages each; not its dev set",
    },
    "squad": {
        "kind": "question_answering",
        "train": "hub:rajpurkar/squad::train",
        "dev": "hub:rajpurkar/squad::validation",
        "columns": ["question", "context"],
        "label": "answers",
        "metrics": ["f1", "exact_match"],
        "max_seq_length": 384,
    },
}
