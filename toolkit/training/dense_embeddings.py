"""The dense model's embeddings of a task's evaluation texts, cached on disk: the reference of compressed models."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.artifacts import Artifact
from toolkit.core.files import json_hash
from toolkit.data.kinds.embedding import Texts
from toolkit.data.task_kinds import fingerprint
from toolkit.data.tasks import TaskData
from toolkit.models.load import load_task_model
from toolkit.training.evaluation import predict
from toolkit.training.teacher_checks import teacher_split


def with_dense(task: TaskData, dense: Artifact | None, tokenizer: Any, cache: Path) -> TaskData:
    """Returns an embedding task with the dense model's embeddings of `dev` and `tune`; other tasks as they are.

    Args:
        task: The task.
        dense: Checkpoint of the dense model, the task teacher.
        tokenizer: The tokenizer of the task's examples.
        cache: Folder of the cached embeddings.

    Raises:
        UserError: The dense model cannot be loaded, or gives a text other tokens.
    """
    if not isinstance(task.dev, Texts):
        return task
    assert dense is not None, "the pipeline passes the dense model for an embedding task"
    model: Any = None

    def embedded(split: Any) -> Any:
        nonlocal model
        key = {"dense": dense.sha256, "examples": fingerprint(split), "pooling": task.pooling}
        file = cache / f"dense-{json_hash(key)[:16]}.npy"
        if not file.is_file():
            own = teacher_split(split, dense.path, tokenizer)
            if model is None:
                model = load_task_model(dense.path, task.kind, task.labels, fitted=True, pooling=task.pooling)
            cache.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{file.stem}-{os.getpid()}.npy")  # processes may compute it side by side
            np.save(partial, np.asarray(predict(model, own, tokenizer.pad_token_id)))
            partial.replace(file)
        return replace(split, dense=np.load(file))

    return replace(task, dev=embedded(task.dev), tune=embedded(task.tune) if len(task.tune) else task.tune)


def compared_with(task: TaskData, model: Any, tokenizer: Any) -> TaskData:
    """Returns an embedding task with a model's own embeddings of `dev` as the dense ones; other tasks as they are."""
    if not isinstance(task.dev, Texts):
        return task
    return replace(task, dev=replace(task.dev, dense=np.asarray(predict(model, task.dev, tokenizer.pad_token_id))))
