"""Config sizes of public models, so that recipes can be checked and planned offline.

The values are copied from the published `config.json` files.
"""

from typing import Any

_BERT_BASE = {
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
}
_BERT_LARGE = _BERT_BASE | {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
_ROBERTA_BASE = _BERT_BASE | {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514}
_ELECTRA_BASE = _BERT_BASE | {"model_type": "electra"}
_DISTILBERT = {
    "model_type": "distilbert",
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
}

# Hub id -> size-related entries of its config.json.
CONFIGS: dict[str, dict[str, Any]] = {
    "google-bert/bert-base-uncased": _BERT_BASE,
    "google-bert/bert-large-uncased": _BERT_LARGE,
    "distilbert/distilbert-base-uncased": _DISTILBERT,
    "FacebookAI/roberta-base": _ROBERTA_BASE,
    "google/electra-base-discriminator": _ELECTRA_BASE,
    "Intel/bert-base-uncased-sparse-85-unstructured-pruneofa": _BERT_BASE,
    "Intel/bert-base-uncased-sparse-90-unstructured-pruneofa": _BERT_BASE,
    "Intel/bert-base-uncased-sparse-80-1x4-block-pruneofa": _BERT_BASE,
    "Intel/bert-large-uncased-sparse-80-1x4-block-pruneofa": _BERT_LARGE,
    "Intel/bert-large-uncased-sparse-90-unstructured-pruneofa": _BERT_LARGE,
    "Intel/distilbert-base-uncased-sparse-85-unstructured-pruneofa": _DISTILBERT,
    "Intel/distilbert-base-uncased-sparse-90-unstructured-pruneofa": _DISTILBERT,
    # The task teachers of the shipped recipes.
    "textattack/bert-base-uncased-SST-2": _BERT_BASE,
    "textattack/bert-base-uncased-QNLI": _BERT_BASE,
    "csarron/bert-base-uncased-squad-v1": _BERT_BASE,
}


def published_config(source: str) -> dict[str, Any] | None:
    """Returns the known config entries of a hub model at any revision; None if unknown. Old ids have no owner."""
    name = source.partition("@")[0]
    return CONFIGS.get(name) or next((c for known, c in CONFIGS.items() if known.endswith(f"/{name}")), None)
