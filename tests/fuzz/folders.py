"""Small valid inputs, made without torch: a checkpoint, a task's files, a text, and a recipe of all of them."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "id2label": {"0": "bad", "1": "good"},
    "label2id": {"bad": 0, "good": 1},
}
RECIPE = """\
name: fuzzed
model: {source: model}
corpus: {files: [text.txt], tasks: [toy], max_seq_length: 32}
teacher: {train: {steps: 2}}
student:
  pruning:
    backend: magnitude
    approach:
      weight_compression:
        target_sparsity: 0.5
        end_step: 2
        pruners: [!Pruner {names: [attention], exclude_names: [value]}, !Pruner {prune_type: pattern_lock}]
  distillation: {train: {steps: 4}, positions: {sample: 0.3}}
tasks:
  toy:
    train: train.tsv
    dev: dev.tsv
    columns: [sentence]
    labels: [bad, good]
    rows: {label: [bad, good]}
    max_seq_length: 32
    ready: {task_teacher: model}
    transfer: {distillation: {train: {epoch: 2, optimizer: {SGD: {learning_rate: 0.1}}}}}
  other:
    {train: train.tsv, hold_out: {column: film, fraction: 0.5}, max_seq_length: 16}
task_teacher: {train: {epoch: 1}}
transfer:
  distillation:
    train:
      steps: 3
      criterion:
        IntermediateLayersKnowledgeDistillationLoss:
          layer_mappings: [[bert.encoder.layer.0, bert.encoder.layer.0], [bert.embeddings, 0, bert.encoder, 0]]
quantize:
  distillation: {train: {steps: 2, criterion: {KnowledgeDistillationLoss: {temperature: 1}}}}
  quantization:
    optype_wise: {MatMul: {activation: {dtype: fp32}}}
    op_wise: {classifier: {weight: {dtype: fp32}}}
  tuning: {accuracy_criterion: {relative: 0.01}, exit_policy: {max_trials: 3}}
export: {variants: [dense-fp32, sparse-int8]}
benchmark: {evaluation: {performance: {batch_sizes: [1], sequence_length: 32, configs: {cores_per_instance: 1}}}}
"""


def tensors() -> dict[str, np.ndarray]:
    """The weights of a BERT of one layer; half of each encoder matrix is zero."""
    rng = np.random.default_rng(0)
    h, f = 8, 16
    matrices = {f"attention.self.{name}": (h, h) for name in ("query", "key", "value")}
    matrices |= {"attention.output.dense": (h, h), "intermediate.dense": (f, h), "output.dense": (h, f)}
    found = {}
    for name, shape in matrices.items():
        weight = rng.normal(size=shape).astype(np.float32)
        weight.ravel()[::2] = 0
        found[f"bert.encoder.layer.0.{name}.weight"] = weight
        found[f"bert.encoder.layer.0.{name}.bias"] = np.zeros(shape[0], np.float32)
    for name in ("attention.output", "output"):
        for part in ("weight", "bias"):
            found[f"bert.encoder.layer.0.{name}.LayerNorm.{part}"] = np.ones(h, np.float32)
    for name, rows in (("word", 40), ("position", 64), ("token_type", 2)):
        found[f"bert.embeddings.{name}_embeddings.weight"] = rng.normal(size=(rows, h)).astype(np.float32)
    for part in ("weight", "bias"):
        found[f"bert.embeddings.LayerNorm.{part}"] = np.ones(h, np.float32)
    for name, rows in (("bert.pooler.dense", h), ("classifier", 2)):
        found[f"{name}.weight"], found[f"{name}.bias"] = np.ones((rows, h), np.float32), np.zeros(rows, np.float32)
    return found


def write_checkpoint(folder: Path) -> Path:
    """Writes a classifier with `config.json`, weights and a WordPiece tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(), folder / "model.safetensors")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: number for number, word in enumerate([*special, *"abcdefghij", "##a", "##b"])}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{token[1:-1].lower()}_token": token for token in special}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizerFast", **names}))
    return folder


def write_data(folder: Path) -> None:
    """Writes `train.tsv`, `dev.tsv` and `text.txt`."""
    texts = ["a b\tbad", "c\tgood"] * 8
    rows = [f"{text}\tfilm{number // 2 % 4}" for number, text in enumerate(texts)]
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel\tfilm", *rows]) + "\n")
    (folder / "text.txt").write_text("a b c d e f\n\na b\n" * 8)
