"""`report`: the page and the tables, from the manifests alone. It has no inputs but them, and no cache key."""

from collections.abc import Sequence
from pathlib import Path

from toolkit import reporting
from toolkit.artifacts import Manifest


def run(manifests: Sequence[Manifest], folder: Path) -> Path:
    """Writes `report.html` and `report.md` into `folder`; returns the page."""
    return reporting.build(manifests, folder)
