"""Accuracy, size, speed and machine, measured."""
