"""Public facts of the models and data sets that the paper uses, so that recipes can be checked and planned offline.

Sizes are those of the published `config.json` files and data set cards.
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

# Hub id -> what its config.json says of its size.
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


def config_of(source: str) -> dict[str, Any] | None:
    """What is known of a model on the hub, whatever its revision; None: nothing. Old ids have no owner."""
    name = source.partition("@")[0]
    return CONFIGS.get(name) or next((c for known, c in CONFIGS.items() if known.endswith(f"/{name}")), None)


# `<dataset>:<config>:<split>` -> rows.
ROWS = {
    "nyu-mll/glue:sst2:train": 67_349,
    "nyu-mll/glue:sst2:validation": 872,
    "nyu-mll/glue:mnli:train": 392_702,
    "nyu-mll/glue:mnli:validation_matched": 9_815,
    "nyu-mll/glue:mnli:validation_mismatched": 9_832,
    "nyu-mll/glue:qqp:train": 363_846,
    "nyu-mll/glue:qqp:validation": 40_430,
    "nyu-mll/glue:qnli:train": 104_743,
    "nyu-mll/glue:qnli:validation": 5_463,
    "nyu-mll/glue:mrpc:train": 3_668,
    "nyu-mll/glue:mrpc:validation": 408,
    "nyu-mll/glue:rte:train": 2_490,
    "nyu-mll/glue:rte:validation": 277,
    "nyu-mll/glue:wnli:train": 635,
    "nyu-mll/glue:wnli:validation": 71,
    "nyu-mll/glue:cola:train": 8_551,
    "nyu-mll/glue:cola:validation": 1_043,
    "nyu-mll/glue:stsb:train": 5_749,
    "nyu-mll/glue:stsb:validation": 1_500,
    "rajpurkar/squad::train": 87_599,
    "rajpurkar/squad::validation": 10_570,
}

# Model type -> the encoder's matrices in one layer: name, and its shape in units of (hidden, feed-forward) size.
_BERT_LAYER = {
    "attention.self.query": "hh",
    "attention.self.key": "hh",
    "attention.self.value": "hh",
    "attention.output.dense": "hh",
    "intermediate.dense": "fh",
    "output.dense": "hf",
}
_DISTILBERT_LAYER = {
    "attention.q_lin": "hh",
    "attention.k_lin": "hh",
    "attention.v_lin": "hh",
    "attention.out_lin": "hh",
    "ffn.lin1": "fh",
    "ffn.lin2": "hf",
}


def matrix_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Parameter name -> (rows, columns) of the encoder's matrices, from the sizes in one of `CONFIGS`."""
    distil = config["model_type"] == "distilbert"
    sizes = {
        "h": config["dim" if distil else "hidden_size"],
        "f": config["hidden_dim" if distil else "intermediate_size"],
    }
    layers = config["n_layers" if distil else "num_hidden_layers"]
    stack = "distilbert.transformer.layer" if distil else f"{config['model_type']}.encoder.layer"
    return {
        f"{stack}.{number}.{name}.weight": (sizes[shape[0]], sizes[shape[1]])
        for number in range(layers)
        for name, shape in (_DISTILBERT_LAYER if distil else _BERT_LAYER).items()
    }
