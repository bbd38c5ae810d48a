"""Hugging Face checkpoints: where they come from, what they hold, how they are loaded and saved."""
