"""Quantization-aware training behind one door per library."""
