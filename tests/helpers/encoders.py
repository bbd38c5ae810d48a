"""Tiny encoders of several architectures, each with its tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def tiny_encoders(tiny_bert: Path, tiny_text: Path, tmp_path_factory: Any) -> dict[str, Path]:
    """Model type -> checkpoint of a masked language model; the same weights whatever tests ran before."""
    import transformers as t
    from tokenizers import ByteLevelBPETokenizer

    torch.manual_seed(0)
    words = len(json.loads((tiny_bert / "tokenizer.json").read_text())["model"]["vocab"])
    tokenizer = t.AutoTokenizer.from_pretrained(tiny_bert)
    distil = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    made = {
        "distilbert": (
            t.DistilBertForMaskedLM(t.DistilBertConfig(vocab_size=words, max_position_embeddings=128, **distil)),
            t.DistilBertTokenizer(vocab=tokenizer.get_vocab(), model_max_length=128),
        ),
        "electra": (
            t.ElectraForMaskedLM(
                t.ElectraConfig(vocab_size=words, embedding_size=16, max_position_embeddings=128, **SMALL)
            ),
            tokenizer,
        ),
    }
    bpe = ByteLevelBPETokenizer()
    bpe.train([str(tiny_text)], vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bpe.save_model(str(tmp_path_factory.mktemp("bpe")))
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    roberta = t.RobertaConfig(vocab_size=len(learned["vocab"]), max_position_embeddings=130, pad_token_id=1, **SMALL)
    made["roberta"] = (
        t.RobertaForMaskedLM(roberta),
        t.RobertaTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=128),
    )
    found = {"bert": tiny_bert}
    for name, (model, own) in made.items():
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
        own.save_pretrained(found[name])
    return found
