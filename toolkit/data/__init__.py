"""From files to batches: tables, tasks, pre-training text, masking, sampling."""
