"""Sentence-embedding models: pooling, losses, and the files of sentence-transformers."""
