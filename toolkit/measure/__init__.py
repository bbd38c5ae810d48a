"""Measurement of accuracy, model size, latency and memory."""
