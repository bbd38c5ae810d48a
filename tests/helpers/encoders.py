"""Tiny encoders of several architectures, each with its tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]  # special tokens by number, as RoBERTa and its relatives have them


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
    bpe.train([str(tiny_text)], vocab_size=400, special_tokens=[*FAIRSEQ, "<mask>"])
    bpe.save_model(str(tmp_path_factory.mktemp("bpe")))
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    roberta = t.RobertaConfig(vocab_size=len(learned["vocab"]), max_position_embeddings=130, pad_token_id=1, **SMALL)
    made["roberta"] = (
        t.RobertaForMaskedLM(roberta),
        t.RobertaTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=128),
    )
    made |= _with_unigrams(sorted(w for w in tokenizer.get_vocab() if w[0] not in "[#"))
    mpnet = {word: number for number, word in enumerate([*FAIRSEQ, *sorted(tokenizer.get_vocab()), "<mask>"])}
    made["mpnet"] = (
        t.MPNetForMaskedLM(t.MPNetConfig(vocab_size=len(mpnet), max_position_embeddings=130, pad_token_id=1, **SMALL)),
        t.MPNetTokenizer(vocab=mpnet, model_max_length=128),
    )
    made["modernbert"] = _modernbert(learned["vocab"], merges)
    found = {"bert": tiny_bert}
    for name, (model, own) in made.items():
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
        own.save_pretrained(found[name])
    return found


def _with_unigrams(words: list[str]) -> dict[str, tuple[Any, Any]]:
    """Returns encoders whose tokenizers are SentencePiece's unigrams: words after the mark of a space, and letters."""
    import transformers as t

    letters = sorted({letter for word in words for letter in word})
    pieces = [*((f"▁{word}", -5.0) for word in words), ("▁", -8.0), *((letter, -10.0) for letter in letters)]
    xlm = [*((token, 0.0) for token in FAIRSEQ), *pieces, ("<mask>", 0.0)]
    unused = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
    camembert = [*((token, 0.0) for token in unused), *pieces, ("<mask>", 0.0)]
    albert = [*((token, 0.0) for token in ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")), *pieces]
    deberta = [*((token, 0.0) for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")), *pieces, ("[MASK]", 0.0)]
    sizes = SMALL | {"max_position_embeddings": 130, "pad_token_id": 1}
    return {
        "xlm-roberta": (
            t.XLMRobertaForMaskedLM(t.XLMRobertaConfig(vocab_size=len(xlm), type_vocab_size=1, **sizes)),
            t.XLMRobertaTokenizer(vocab=xlm, model_max_length=128),
        ),
        "camembert": (
            t.CamembertForMaskedLM(t.CamembertConfig(vocab_size=len(camembert), type_vocab_size=1, **sizes)),
            t.CamembertTokenizer(vocab=camembert, model_max_length=128),
        ),
        "albert": (  # three layers, of which two share their weights
            t.AlbertForMaskedLM(
                t.AlbertConfig(
                    vocab_size=len(albert),
                    embedding_size=16,
                    max_position_embeddings=128,
                    num_hidden_groups=2,
                    **SMALL | {"num_hidden_layers": 3},
                )
            ),
            t.AlbertTokenizer(vocab=albert, model_max_length=128),
        ),
        "deberta-v2": (  # with the settings of DeBERTa-v3
            t.DebertaV2ForMaskedLM(
                t.DebertaV2Config(
                    vocab_size=len(deberta),
                    max_position_embeddings=128,
                    relative_attention=True,
                    position_buckets=8,
                    norm_rel_ebd="layer_norm",
                    share_att_key=True,
                    pos_att_type=["p2c", "c2p"],
                    position_biased_input=False,
                    type_vocab_size=0,
                    **SMALL,
                )
            ),
            t.DebertaV2Tokenizer(vocab=deberta, model_max_length=128),
        ),
    }


def _modernbert(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tuple[Any, Any]:
    """Returns ModernBERT of two layers, the second of which attends to a window, with byte-level BPE."""
    import transformers as t
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    specials = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    number = {key: vocabulary[token] for key, token in specials.items()}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[("<s>", number["cls_token"]), ("</s>", number["sep_token"])],
    )
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        mask_token="<mask>",
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
        **specials,
    )
    config = t.ModernBertConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=128,
        local_attention=8,  # four tokens on either side
        pad_token_id=number["pad_token"],
        cls_token_id=number["cls_token"],
        bos_token_id=number["cls_token"],
        sep_token_id=number["sep_token"],
        eos_token_id=number["sep_token"],
        initializer_range=0.1,
        layer_types=["full_attention", "sliding_attention"],
        **SMALL,
    )
    return t.ModernBertForMaskedLM(config), tokenizer
