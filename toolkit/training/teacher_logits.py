"""What a task's teacher says to the training examples: asked once, kept on disk, read by every later epoch and stage.

A teacher in eval mode says the same to an example whenever it is asked, up to the last digits (padding and neighbours
of a batch change the order of sums). So an epoch costs no teacher, and a second training of the same task none at all.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap

from toolkit.core.artifacts import Artifact, Context
from toolkit.core.files import json_hash, write_atomic
from toolkit.data.batches import Batch
from toolkit.data.examples import Split, fingerprint
from toolkit.data.tasks import TaskData
from toolkit.models.load import load_task_model
from toolkit.models.task_heads import HEADS
from toolkit.recipe import Distillation, IntermediateSettings
from toolkit.training import distributed
from toolkit.training.datasets import steps_of
from toolkit.training.distillation import LossTerms, TaskLoss, Teacher, task_loss
from toolkit.training.evaluation import iter_logits
from toolkit.training.hardware import bf16, device, teacher_bf16

Loss = Callable[[Any, Batch], LossTerms]

_LOGITS = "logits.npy"
_DONE = "done.txt"  # batches whose logits are on disk for good
_BATCH = 32
_FLUSH_EVERY = 64  # batches


@dataclass(frozen=True)
class TeacherLogits:
    """The logits of every training example, in the order of the examples, read from disk as they are needed.

    Attributes:
        rows: Memory-mapped float32: [n, C] of a classifier or regressor, one row an example; [tokens, 2] of question
            answering, one row (start, end) a token of each window.
        ends: Of question answering: the row behind each window's last, [n]; else None.
    """

    rows: np.ndarray
    ends: np.ndarray | None

    def of(self, index: int) -> np.ndarray:
        """Of one example: [C]; [2, length] of a window."""
        if self.ends is None:
            row: np.ndarray = self.rows[index]
            return row
        window: np.ndarray = self.rows[self._part(index)].T
        return window

    def put(self, index: int, logits: np.ndarray) -> None:
        """Keeps what `of` then gives; padding behind a window's end is left out."""
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
    """The loss of a task, and the teacher's logits of each example where the loss needs no more of it than those.

    A training that sees less than all examples, unless another one had them answered already, and a loss over hidden
    features ask the teacher at every step instead.

    Args:
        distillation: How it is taught; None: by the labels alone.
        teacher: A checkpoint that knows the task; None where nobody teaches.
        task: What is trained on.
        tokenizer: Of the task's examples.
        context: Where the logits are kept (`cache`) and progress goes.

    Raises:
        UserError: The teacher cannot be loaded, or does not know the task.
    """

    if distillation is None:
        return TaskLoss(task.kind), None
    assert teacher is not None, "the pipeline gives it where there is `distillation`"
    path, train = teacher.path, distillation.train

    def load() -> Any:
        return load_task_model(path, task.kind, task.labels, fitted=True)

    settings = train.criterion.settings
    steps = steps_of(train, len(task.train))
    seen = steps * train.batch_size * train.gradient_accumulation_steps
    asked = teacher_bf16(train)
    reduced = bf16(train) if asked is None else asked
    key = {
        "teacher": teacher.sha256,
        "examples": fingerprint(task.train),
        "precision": "bf16" if reduced else "fp32",
    }
    folder = context.cache / f"logits-{json_hash(key)[:16]}"
    if isinstance(settings, IntermediateSettings) or (seen < len(task.train) and not folder.is_dir()):
        return task_loss(task.kind, Teacher(load(), device(), asked), train.criterion), None
    log = context.progress.message
    logits = teacher_logits(folder, load, task, tokenizer.pad_token_id, reduced, log)
    return TaskLoss(task.kind, settings=settings), logits.of


def teacher_logits(
    folder: Path,
    load: Callable[[], Any],
    task: TaskData,
    pad_id: int,
    bf16: bool,
    log: Callable[[str], None] = lambda _: None,
) -> TeacherLogits:
    """Asks the teacher about every training example, or opens what lies in `folder`.

    What an interrupted run has asked already is not asked again.

    Args:
        folder: Belongs to this teacher, these examples and this precision alone.
        load: Makes the teacher's model; called only where there is something to ask.
        task: Its `train` split is asked about.
        pad_id: Of the tokenizer.
        bf16: The teacher runs under bfloat16 autocast, as it would in the training.
        say: Is told that it takes a while.
    """
    lengths = task.train.lengths
    ends = np.cumsum(lengths) if task.train.per_token else None
    with distributed.main_process_first():
        if not folder.is_dir():
            partial = folder.with_suffix(".partial")
            log(f"the teacher answers the {len(lengths)} training examples, once")
            _ask(partial, load(), task.train, ends, HEADS[task.kind].width(task.labels), pad_id, bf16)
            partial.rename(folder)  # so a folder of this name is always whole
    return TeacherLogits(np.load(folder / _LOGITS, mmap_mode="r"), ends)


def _ask(
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
    kept = TeacherLogits(rows, ends)
    with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
        for number, (indices, logits) in enumerate(iter_logits(model, examples, pad_id, _BATCH, done), done + 1):
            for index, row in zip(indices, logits, strict=True):
                kept.put(int(index), row)
            if number % _FLUSH_EVERY == 0:
                rows.flush()
                write_atomic(record, str(number))
    rows.flush()
