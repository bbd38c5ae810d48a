"""Checks of the checkpoints that a recipe names, from their files alone, before the first stage. Loads no torch."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.core.errors import UserError
from toolkit.data import task_rows
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.architectures import shape_of
from toolkit.models.checkpoint import require_finite_weights, require_unquantized
from toolkit.models.classes import class_names, output_order
from toolkit.models.embedding.folder import pooling_of
from toolkit.models.embedding.prompts import prompts_of
from toolkit.models.tokenizers import require_same_tokens
from toolkit.recipe import KINDS, Recipe, Task

_TEXTS = 1000  # training texts that are tokenised for a comparison; the stage itself compares all of them


@dataclass(frozen=True)
class Origin:
    """Checkpoint that the model of a stage comes from.

    Attributes:
        source: Reference in the recipe; its tokenizer is the one of the stage's model.
        untrained: Whether no stage of pre-training is in between, so that its head is the one that is loaded.
    """

    source: str
    untrained: bool


def require_usable(folder: Path) -> None:
    """Checks a checkpoint for what no use of it survives.

    Raises:
        UserError: It is quantized, pickled or damaged; a weight is NaN or infinite; or its classes are malformed.
    """
    class_names(folder)
    require_unquantized(folder)
    require_finite_weights(folder)


def check_task_models(recipe: Recipe, inputs: ResolvedInputs) -> None:
    """Checks that a ready teacher is one of the recipe's model, and the checkpoints of each task.

    Those of a task have its classes; teacher and student tokenise equally.

    Raises:
        UserError: The first error found.
    """
    _require_same_encoder(recipe, inputs)
    for name, task in recipe.tasks.items():
        models = origins(recipe, name)
        found = {stage: inputs.model(origin.source).folder for stage, origin in models.items()}
        folders = {stage: folder for stage, folder in found.items() if folder is not None}
        heads = [folders[stage] for stage in folders if models[stage].untrained and class_names(folders[stage])]
        if KINDS[task.kind].has_classes and heads:
            labels = task.classes or (task_rows.read_task(name, task).labels if _is_local(task, inputs) else ())
            for folder in heads if labels else ():
                output_order(folder, labels)
        if KINDS[task.kind].dense_teaches:
            _require_same_pooling(name, task, folders)
            _require_same_prompts(name, task, folders)
        sections = [recipe.section(stage, name) for stage in ("transfer", "quantize") if stage not in task.ready]
        distilled = any(section is not None and section.distillation is not None for section in sections)
        if distilled and {"task_teacher", "transfer"} <= folders.keys() and inputs.file(task.train) is not None:
            require_same_tokens(folders["transfer"], folders["task_teacher"], _texts(task))


def _require_same_encoder(recipe: Recipe, inputs: ResolvedInputs) -> None:
    """Checks that a ready teacher has the shape of `model.source`: it replaces that model in all stages.

    Raises:
        UserError: It has another shape.
    """
    if "teacher" not in recipe.ready:
        return
    teacher, model = (inputs.model(source).config for source in (recipe.ready["teacher"], recipe.model.source))
    if teacher is None or model is None:
        return
    own, other = shape_of(teacher), shape_of(model)
    differing = [
        f"{key} is {own.get(key)}, not {other.get(key)}" for key in own | other if own.get(key) != other.get(key)
    ]
    if differing:
        raise UserError(
            f"{'; '.join(differing)} as in model.source; students and task teachers would be made from it",
            where="ready.teacher",
            instead=f"model: {{source: {recipe.ready['teacher']}}}, or a teacher made from {recipe.model.source}",
        )


def _require_same_pooling(name: str, task: Task, folders: dict[str, Path]) -> None:
    """Checks that teacher and student of an embedding task pool alike.

    Raises:
        UserError: They do not, or a key of the task contradicts a folder.
    """
    keys = (task.pooling, task.normalize)
    found = {stage: pooling_of(folder, keys) for stage, folder in folders.items()}
    student, teacher = found.get("transfer"), found.get("task_teacher")
    if student is None or teacher is None or student == teacher:
        return
    key = "pooling" if student.mode != teacher.mode else "normalize"
    own, wanted = (str(p.mode if key == "pooling" else p.normalize).lower() for p in (student, teacher))
    raise UserError(
        f"{key} of the student is {own}, that of the dense model is {wanted}",
        where=f"tasks.{name}, {folders['transfer']}",
        instead=f"{key}: {wanted}, or a student made from this dense model",
    )


def _require_same_prompts(name: str, task: Task, folders: dict[str, Path]) -> None:
    """Checks that teacher and student of an embedding task have the same prompts: both read the same tokens.

    Raises:
        UserError: They do not, or the task's `default_prompt` is none of them.
    """
    found = {stage: prompts_of(folder, task) for stage, folder in folders.items()}
    student, teacher = found.get("transfer"), found.get("task_teacher")
    if student is None or teacher is None or student.of_all == teacher.of_all:
        return
    raise UserError(
        f"the student's prompts are {dict(student.texts)}, those of the dense model are {dict(teacher.texts)}",
        where=f"tasks.{name}, {folders['transfer']}",
        instead=f"prompts: {json.dumps(dict(teacher.texts))}"
        + (f" and default_prompt: {teacher.default}" if teacher.default else ""),
    )


def origins(recipe: Recipe, name: str) -> dict[str, Origin]:
    """Returns the origins of a task's models, by stage."""
    task = recipe.tasks[name]
    teacher = Origin(recipe.ready.get("teacher", recipe.model.source), "teacher" in recipe.ready or not recipe.teacher)
    student = Origin(teacher.source, untrained=False) if recipe.student else teacher
    if "student" in recipe.ready:
        student = Origin(recipe.ready["student"], untrained=True)
    found = {str(stage): Origin(source, untrained=True) for stage, source in task.ready.items()}
    for stage, origin in (("task_teacher", teacher), ("transfer", student)):
        if recipe.section(stage, name) is not None:
            found.setdefault(stage, origin)
    return found


def _is_local(task: Task, inputs: ResolvedInputs) -> bool:
    return all(inputs.file(spec) is not None for spec in (task.train, task.dev, *task.more_dev.values()) if spec)


def _texts(task: Task) -> Iterator[str]:
    """Yields the first training texts; reads the file only when the first one is needed."""
    yield from itertools.islice((text for row in task_rows.read_train(task) for text in row.texts), _TEXTS)
