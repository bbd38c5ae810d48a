"""Training: losses, teacher, data, callbacks, data-parallel processes, and the one training loop."""
