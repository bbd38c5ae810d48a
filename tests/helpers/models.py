"""Models of the kind that most tests need."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.models.load import load_task_model


def load_classifier(folder: Path, labels: Sequence[str]) -> Any:
    """Loads a model with a head for these classes; a missing head is initialised from torch's seed."""
    return load_task_model(folder, "classification", labels, fitted=False)
