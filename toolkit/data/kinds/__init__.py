"""Kinds of tasks with examples of their own: rows, encoding, predictions and metrics. Loads no torch."""
