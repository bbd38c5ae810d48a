"""Model cards beside exported IRs, as a reader uses them."""

import re
from pathlib import Path
from typing import Any

import pytest

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run_code(card: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Runs the code of a card as written, beside the IR's folder, and returns the variables of each block."""
    monkeypatch.chdir(card.parent.parent)
    found = []
    for block in BLOCK.findall(card.read_text()):
        names: dict[str, Any] = {}
        exec(compile(block, str(card), "exec"), names)
        found.append(names)
    return found
