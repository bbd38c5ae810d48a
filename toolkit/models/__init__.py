"""Hugging Face models: sources, checkpoint files, loading and saving."""
