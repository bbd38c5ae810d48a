"""What the tests of recipes share."""

from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path):
    """Writes a recipe and gives its path."""

    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write
