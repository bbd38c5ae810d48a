"""Training settings, teacher and source checkpoint of a step that has not run yet."""

import json
from typing import Any

from toolkit.core import machine
from toolkit.core.artifacts import Artifact, Manifest
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.architectures import shape_of
from toolkit.models.config import CONFIG, read_config
from toolkit.models.depth import shallower
from toolkit.pipeline.cache_keys import section_values
from toolkit.pipeline.graph import Step
from toolkit.recipe import Criterion, DistillationTrain, Quantize, Student, Train, Transfer, Unlabelled


def train_of(step: Step) -> Train | None:
    """Returns the training settings of a step, whose `batch_size` counts pairs of text; None if it does not train."""
    train: Train | None = getattr(step.sections.get(step.stage.name), "train", None)
    group = group_of(step)
    return train and (train if group == 1 else train.model_copy(update={"batch_size": train.batch_size * group}))


def group_of(step: Step) -> int:
    """Returns how many examples of a step's batch the recipe's `batch_size` counts as one: candidates of a query."""
    task = step.sections.get("task")
    return task.ranking.group if task is not None else 1


def criterion_of(train: Train) -> Criterion:
    """Returns the distillation loss; the default one if there is no teacher."""
    return train.criterion if isinstance(train, DistillationTrain) else Criterion()


def teacher_bf16_of(step: Step) -> bool:
    """Returns whether the teacher of a step runs in bfloat16."""
    from toolkit.training.hardware import bf16

    train = train_of(step)
    assert train is not None, "a step with a teacher trains"
    precision = train.teacher_precision if isinstance(train, DistillationTrain) else None
    return bf16(train.model_copy(update={"precision": precision or train.precision}))


def teacher_of(step: Step) -> Step | Artifact | None:
    """Returns the step or artifact that a step's model is distilled from; None without distillation."""
    if step.stage.name == "student":
        return step.inputs["teacher"]
    section = step.sections[step.stage.name]
    return step.inputs["task_teacher"] if getattr(section, "distillation", None) else None


def root_of(source: Step | Artifact) -> Artifact:
    """Returns the checkpoint that a step's model was initially loaded from."""
    while isinstance(source, Step):
        source = next(iter(source.inputs.values()))  # the first input is the model to continue with
    return source


def config_of(source: Step | Artifact, inputs: ResolvedInputs) -> str | None:
    """Returns the `config.json` of a step's model as text, with the published sizes of a hub model; None if unknown."""
    config = inputs.model(str(root_of(source).path)).config
    layers = _kept_layers(source)
    if config and layers is not None:
        config = shallower(config, layers)
    return json.dumps(config) if config else None


def _kept_layers(source: Step | Artifact) -> int | tuple[int, ...] | None:
    """Returns the layers that the student keeps which a step's model comes from, or their number; None: all."""
    while isinstance(source, Step):
        section = source.sections.get("student")
        if isinstance(section, Student) and section.layers is not None:
            return section.layers
        source = next(iter(source.inputs.values()))
    return None


def tokenizer_of(artifact: Artifact, inputs: ResolvedInputs) -> Any:
    """Returns the tokenizer of a checkpoint; None if the checkpoint is not cached."""
    if inputs.model(str(artifact.path)).folder is None:
        return None
    from toolkit.models.load import load_tokenizer

    return load_tokenizer(artifact.path)


# Settings with little or no effect on the time of a training step: schedules, and which weights are zero.
_FREE = {"steps", "epoch", "learning_rate", "weight_decay", "warmup_ratio", "max_grad_norm", "log_every"}
_FREE |= {"checkpoint_every", "approach", "learning_rate_rewinding", "temperature"}


def steps_alike(before: Manifest, step: Step, train: Train, inputs: ResolvedInputs) -> bool:
    """Returns whether an earlier run of the stage in the same folder predicts the time per step.

    It must agree in CPU model, arithmetic, model size, sequence length, batch size and losses.
    """
    from toolkit.training.hardware import bf16

    here = before.machine.get("cpu") == machine.describe()["cpu"]
    timed = before.metrics.get("seconds_per_step") and before.metrics.get("steps")
    if not timed or not here or before.metrics.get("bf16", False) != bf16(train):
        return False
    now = config_of(step, inputs)
    if not (step.folder / CONFIG).is_file() or now is None:
        return False
    if shape_of(read_config(step.folder)) != shape_of(json.loads(now)):
        return False
    reads = "task" if step.sections.get("task") else "corpus"
    read = before.config.get(reads) or {}
    lengths = [part.get("max_seq_length") for part in read.get("sources") or [read]]
    name = step.stage.name
    same = _time_settings(before.config.get(name)) == _time_settings(section_values(name, step.sections[name]))
    section = step.sections[reads]
    same = same and (read.get("ranking") or {}).get("group", 1) == group_of(step)
    return same and lengths == [part.max_seq_length for part in getattr(section, "sources", ()) or (section,)]


def _time_settings(section: Any) -> Any:
    """Returns a section as JSON values, without the settings in `_FREE`."""
    if not isinstance(section, dict):
        return section
    return {name: _time_settings(value) for name, value in section.items() if name not in _FREE}


def unlabelled_of(step: Step) -> Unlabelled | None:
    """Returns what a step adds to the examples with labels."""
    section = step.sections[step.stage.name]
    return section.unlabelled if isinstance(section, Transfer | Quantize) else None
