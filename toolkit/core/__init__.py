"""The base layer: errors, artifacts, files, machine. Imports nothing else of the toolkit, and no torch."""
