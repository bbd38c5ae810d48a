"""Quantization with NNCF, per-operation settings, and accuracy-driven tuning."""
