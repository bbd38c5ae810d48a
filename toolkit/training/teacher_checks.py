"""Checks of a teacher before its student is distilled from it: the tokens that it reads, and its score."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import UserError
from toolkit.core.yaml_document import dump_flow
from toolkit.data.task_kinds import Split
from toolkit.data.tasks import TaskData
from toolkit.models.classes import output_order
from toolkit.models.load import load_task_model, load_tokenizer
from toolkit.models.tokenizers import definition, different_tokens
from toolkit.recipe import KINDS
from toolkit.training.evaluation import predict

_ENOUGH = 100  # examples that are enough to judge a teacher, set aside for tuning or of dev; else it is judged on train
_GAIN = 0.1  # of the accuracy, by which another order of the classes is better: then it is the right one


def teacher_split(split: Split, folder: Path, tokenizer: Any) -> Split:
    """Returns a split as the teacher reads it: with the student's token ids, and the teacher's own further inputs.

    A teacher may need `token_type_ids`, which the tokenizer of a DistilBERT student does not provide.

    Args:
        split: Examples, tokenised for the student.
        folder: The teacher's checkpoint.
        tokenizer: The student's tokenizer.

    Raises:
        UserError: The teacher's tokenizer cannot be loaded, or gives a text other token ids.
    """
    own = load_tokenizer(folder)
    same = definition(own.backend_tokenizer) == definition(tokenizer.backend_tokenizer)
    if same and own.model_input_names == tokenizer.model_input_names:
        return split
    found = split.encoded_by(own)
    pairs = zip(split.inputs["input_ids"], found.inputs["input_ids"], strict=False)
    if differ := next((pair for pair in pairs if pair[0] != pair[1]), None):
        raise different_tokens(tokenizer.decode(differ[0], skip_special_tokens=True), *differ, folder)
    more = found.inputs.keys() - split.inputs.keys()
    return found if any(any(row) for name in more for row in found.inputs[name]) else split


def load_same_model(folder: Path, task: TaskData, tokenizer: Any) -> Any:
    """Returns a task teacher that reads the same inputs as its student.

    Raises:
        UserError: The teacher cannot be loaded, or reads other tokens than the student, or `token_type_ids`.
    """
    if teacher_split(task.train, folder, tokenizer) is not task.train:
        raise UserError(
            "the teacher tells the texts of a pair apart by token_type_ids, which the student's tokenizer lacks",
            where="transfer.reconstruction",
            instead="remove the key, or use a teacher of the student's architecture",
        )
    return load_task_model(folder, task.kind, task.labels, fitted=True, pooling=task.pooling)


def require_skilled(model: Any, task: TaskData, folder: Path, tokenizer: Any) -> None:
    """Checks that a ready teacher knows the task.

    Args:
        model: The teacher.
        task: The task, tokenised for the student.
        folder: The teacher's checkpoint.
        tokenizer: The student's tokenizer.

    Raises:
        UserError: See `doubt`.
    """
    split = next((s for s in (task.tune, task.dev) if len(s.truth) >= _ENOUGH), task.train)
    split = split if len(split.truth) else task.dev  # examples without labels may be among those of train
    logits = predict(model, teacher_split(split, folder, tokenizer), tokenizer.pad_token_id)
    found = doubt(task, split, logits, folder)
    if found is not None:
        raise found


def doubt(task: TaskData, split: Split, logits: Sequence[np.ndarray], folder: Path) -> UserError | None:
    """Returns an error if a ready model seems not to know its task; None if it does.

    Its score must be better than that of its own predictions for shuffled examples, and no order of the classes may be
    much better than the one that it is taken to have.

    Args:
        task: The task.
        split: The split of the task that it was evaluated on.
        logits: Its logits for each item of the split.
        folder: Its checkpoint.
    """
    if KINDS[task.kind].dense_teaches:  # embeddings of any model compare texts
        return None
    truth, predicted, metric = split.truth, split.predicted(logits), task.measures[0].metric
    own, chance = task.shuffled(split, logits)
    better = _better_order(*_comparable(task, truth, predicted), task.labels) if task.labels else None
    if own > np.mean(chance) + 2 * np.std(chance) and better is None:
        return None
    which = "tuning" if split is task.tune else "dev" if split is task.dev else "training"
    what = f"this model's {metric} is {own:.1%} on {len(truth):,} {which} examples; chance is {np.mean(chance):.1%}"
    if better is None:
        return UserError(what, where=str(folder), instead="a model that was trained for this task")
    if output_order(folder, task.labels) is None and not KINDS[task.kind].tagged:
        instead = f"labels: {dump_flow(better)}, the order of its outputs as it seems; or another model"
    else:
        instead = f"the right class names as `id2label` in its config.json, it seems {dump_flow(better)}"
    return UserError(f"{what}: its classes seem to be in another order", where=str(folder), instead=instead)


def _comparable(task: TaskData, truth: Any, predicted: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns truth and predictions as arrays: class numbers or margins of examples; or class numbers of words.

    Words outside of entities, as most are, tell nothing of the order of the tags, so they are left out.
    """
    if not KINDS[task.kind].tagged:
        return np.asarray(truth), np.asarray(predicted)
    right, found = np.concatenate(truth), np.concatenate(predicted)
    inside = (right != 0) | (found != 0)
    return right[inside], found[inside]


def _better_order(truth: np.ndarray, predicted: np.ndarray, labels: tuple[str, ...]) -> list[str] | None:
    """Returns the class names in the order of the outputs that fits the truth much better; None if there is none."""
    from scipy.optimize import linear_sum_assignment

    counts = _indicators(predicted, len(labels)).T @ _indicators(truth, len(labels))
    outputs, classes = linear_sum_assignment(-counts)
    if counts[outputs, classes].sum() - counts.trace() <= _GAIN * len(truth):
        return None
    return [labels[number] for number in classes]


def _indicators(classes: np.ndarray, count: int) -> np.ndarray:
    """Returns for each example and class 0 or 1, [n, C]; of class numbers [n], or of margins or labels [n, C]."""
    found: np.ndarray = classes > 0 if classes.ndim == 2 else classes[:, None] == np.arange(count)
    return found.astype(np.int64)
