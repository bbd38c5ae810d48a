"""PruneOFA Toolkit: prune a BERT-like model once, transfer it to many tasks, ship it in 8 bits."""

__version__ = "0.2.0"
