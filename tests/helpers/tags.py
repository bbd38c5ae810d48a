"""A small task of tagged words."""

from pathlib import Path
from typing import Any

from toolkit.data.tasks import TaskData, load_task
from toolkit.recipe import Task


def tagged_task(folder: Path, tokenizer: Any) -> TaskData:
    """Sixteen sentences of one to eight words, with a tag of B-X, I-X or O each."""
    rows = ["".join(f"bar {('B-X', 'I-X', 'O')[n % 3]}\n" for n in range(1 + i % 8)) for i in range(16)]
    path = folder / "tags.conll"
    path.write_text("\n".join(rows))
    keys = {"train": str(path), "dev": str(path), "max_seq_length": 32, "tuning_examples": 0}
    return load_task("t", Task.model_validate({"kind": "token_classification"} | keys), tokenizer)
