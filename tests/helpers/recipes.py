"""A small recipe that loads, to be changed by tests."""

SMALL = """\
name: small
model: {source: some/model}
corpus:
  files: [text.txt]
tasks:
  sst2:
    train: train.tsv
    dev: dev.tsv
student:
  pruning:
    approach:
      weight_compression:
        target_sparsity: 0.9
        end_step: 50
  distillation:
    train:
      epoch: 3
transfer:
  distillation:
    train: {steps: 10}
quantize:
  distillation:
    train: {steps: 5}
"""
