"""Data pipeline from files to batches: tables, tasks, pre-training text, masking and sampling."""
