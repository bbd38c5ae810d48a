"""Base layer: errors, artifacts, files, machine. Imports no other package of the toolkit, and no torch at import."""
