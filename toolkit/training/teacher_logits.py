"""Teacher logits of a task's training split, computed once and cached on disk for all later epochs and stages.

The dense embeddings of an embedding task's evaluation texts, to which compressed ones are compared, are cached alike.

In eval mode the logits of an example are always the same, up to the last digits (padding and the batch change the order
of sums). The teacher therefore runs once per example, and not at all when the same task is trained again.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap

from toolkit.core.artifacts import Artifact, Context
from toolkit.core.errors import UserError
from toolkit.core.files import json_hash, write_atomic
from toolkit.data.batches import Batch
from toolkit.data.kinds.embedding import Texts
from toolkit.data.task_kinds import Split, fingerprint
from toolkit.data.tasks import TaskData
from toolkit.models.architectures import hidden_size
from toolkit.models.load import load_task_model
from toolkit.models.task_heads import HEADS
from toolkit.recipe import Distillation
from toolkit.training import distributed
from toolkit.training.datasets import steps_of
from toolkit.training.distillation import LossTerms, TaskLoss, Teacher, task_loss
from toolkit.training.evaluation import iter_logits, predict
from toolkit.training.hardware import bf16, device, teacher_bf16
from toolkit.training.teacher_checks import require_skilled, teacher_split

Loss = Callable[[Any, Batch], LossTerms]

_LOGITS = "logits.npy"
_DONE = "done.txt"  # number of batches whose logits are safely on disk
_BATCH = 32
_FLUSH_EVERY = 64  # batches


@dataclass(frozen=True)
class TeacherLogits:
    """Memory-mapped logits of every training example, in the order of the examples.

    Attributes:
        rows: float32: [n, C] with one row per example; for logits per token [tokens, C] with one row per token.
        ends: For logits per token: end of each example in `rows`, exclusive, [n]; else None.
    """

    rows: np.ndarray
    ends: np.ndarray | None

    def of(self, index: int) -> np.ndarray:
        """Returns the logits of one example: [C], or [C, length] for logits per token."""
        if self.ends is None:
            row: np.ndarray = self.rows[index]
            return row
        window: np.ndarray = self.rows[self._part(index)].T
        return window

    def put(self, index: int, logits: np.ndarray) -> None:
        """Stores the logits of one example, without padding."""
        if self.ends is None:
            self.rows[index] = logits
            return
        part = self._part(index)
        self.rows[part] = logits[:, : part.stop - part.start].T

    def _part(self, index: int) -> slice:
        assert self.ends is not None
        return slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))


def task_distillation(
    distillation: Distillation | None, teacher: Artifact | None, task: TaskData, tokenizer: Any, context: Context
) -> tuple[Loss, Callable[[int], np.ndarray] | None]:
    """Returns the loss of a task, and index of an example -> its teacher logits if cached logits are used.

    The teacher runs at every step instead if the loss compares hidden features, or if the training sees less than all
    examples and no cached logits exist.

    Args:
        distillation: Settings of distillation; None: label loss only.
        teacher: Checkpoint of a model of the task; None without distillation.
        task: The task to train on.
        tokenizer: The tokenizer of the task's examples.
        context: Folder of the cached logits (`cache`), and progress.

    Raises:
        UserError: The teacher cannot be loaded, is not a model of the task, reads other tokens than the student, or is
            a ready checkpoint whose score is that of chance.
    """
    if distillation is None:
        return TaskLoss(task.kind), None
    assert teacher is not None, "the pipeline passes a teacher if there is `distillation`"
    path, train = teacher.path, distillation.train

    def load() -> tuple[Any, Split]:
        """Returns the teacher, checked, and the train split as it reads it."""
        split = teacher_split(task.train, path, tokenizer)
        model = load_task_model(path, task.kind, task.labels, fitted=True, pooling=task.pooling)
        if "task_teacher" in context.ready:
            require_skilled(model, task, path, tokenizer)
        context.require_unchanged()
        return model, split

    criterion = train.criterion
    groups = task.train.groups
    steps = steps_of(train, len(groups))
    seen = steps * train.batch_size * train.gradient_accumulation_steps * groups.shape[1]
    own_precision = teacher_bf16(train)
    reduced = bf16(train) if own_precision is None else own_precision
    key: dict[str, Any] = {
        "teacher": teacher.sha256,
        "examples": fingerprint(task.train),
        "classes": task.labels,
        "precision": "bf16" if reduced else "fp32",
    }
    key |= {"pooling": task.pooling} if isinstance(task.dev, Texts) else {}
    folder = context.cache / f"logits-{json_hash(key)[:16]}"
    if criterion.layers is not None or (seen < len(task.train) and not folder.is_dir()):
        model, split = load()
        if split is task.train:
            return task_loss(task.kind, Teacher(model, device(), own_precision), criterion), None
        if criterion.layers is not None:
            raise UserError(
                "the teacher tells the texts of a pair apart by token_type_ids, which the student's tokenizer lacks",
                where=str(path),
                instead="a teacher of the student's architecture, or KnowledgeDistillationLoss alone",
            )
    log = context.progress.message
    logits = teacher_logits(folder, load, task, tokenizer.pad_token_id, reduced, log)
    return TaskLoss(task.kind, settings=criterion.logits), logits.of


def teacher_logits(
    folder: Path,
    load: Callable[[], tuple[Any, Split]],
    task: TaskData,
    pad_id: int,
    bf16: bool,
    log: Callable[[str], None] = lambda _: None,
) -> TeacherLogits:
    """Computes the teacher's logits of every training example into `folder`, or opens the folder if it exists.

    An interrupted computation is resumed.

    Args:
        folder: Cache folder of this teacher, these examples and this precision.
        load: Loads the teacher's model, and the train split as it reads it; called only if logits are to be computed.
        task: The task whose `train` split is used.
        pad_id: The tokenizer's padding id.
        bf16: Whether the teacher runs under bfloat16 autocast, as it would in training.
        log: Receives progress messages.
    """
    lengths = task.train.lengths
    ends = np.cumsum(lengths) if task.train.per_token else None
    with distributed.main_process_first():
        if not folder.is_dir():
            partial = folder.with_suffix(".partial")
            model, split = load()
            log(f"computing teacher logits for {len(lengths):,} training examples (cached afterwards)")
            width = HEADS[task.kind].width(task.labels) or hidden_size(model.config.to_dict())
            _compute(partial, model, split, ends, width, pad_id, bf16)
            partial.rename(folder)  # atomic: a folder of this name is always complete
    return TeacherLogits(np.load(folder / _LOGITS, mmap_mode="r"), ends)


def _compute(
    folder: Path, model: Any, examples: Split, ends: np.ndarray | None, width: int, pad_id: int, bf16: bool
) -> None:
    path, record = folder / _LOGITS, folder / _DONE
    done = int(record.read_text()) if record.is_file() else 0
    if not done:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shape = (len(examples) if ends is None else int(ends[-1]), width)
        open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()
    rows = open_memmap(path, mode="r+")
    cached = TeacherLogits(rows, ends)
    with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
        for number, (indices, logits) in enumerate(iter_logits(model, examples, pad_id, _BATCH, done), done + 1):
            for index, row in zip(indices, logits, strict=True):
                cached.put(int(index), row)
            if number % _FLUSH_EVERY == 0:
                rows.flush()
                write_atomic(record, str(number))
    rows.flush()


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
