"""What is known of a step before it is made: how it trains, who teaches it, and from which checkpoint it comes."""

import json
from typing import Any

from toolkit import sources
from toolkit.artifacts import Artifact, Manifest
from toolkit.measure import system
from toolkit.pipeline import Step
from toolkit.recipe import Criterion, DistillationTrain, Student, Train


def train_of(step: Step) -> Train | None:
    """How a stage trains; None: it does not."""
    section = step.sections.get(step.stage.name)
    return section.distillation.train if isinstance(section, Student) else getattr(section, "train", None)


def criterion_of(train: Train) -> Criterion:
    """The loss; the default one where there is no teacher."""
    return train.criterion if isinstance(train, DistillationTrain) else Criterion()


def teacher_bf16_of(step: Step) -> bool:
    """Whether a taught step's teacher runs in bfloat16."""
    from toolkit.precision import bf16

    train = train_of(step)
    assert train is not None, "what is taught trains"
    said = train.teacher_precision if isinstance(train, DistillationTrain) else None
    return bf16(train.model_copy(update={"precision": said or train.precision}))


def teacher_of(step: Step) -> Step | Artifact | None:
    """What teaches a step's model, where it is taught."""
    if step.stage.name == "student":
        return step.inputs["teacher"]
    section = step.sections[step.stage.name]
    return step.inputs["task_teacher"] if getattr(section, "distillation", None) else None


def root_of(made: Step | Artifact) -> Artifact:
    """The checkpoint that a step's model was first loaded from."""
    while isinstance(made, Step):
        made = next(iter(made.inputs.values()))  # what the stage goes on with
    return made


def config_of(artifact: Artifact) -> str | None:
    """Its `config.json`, or what is known of a model on the hub."""
    config = sources.config_at_hand(str(artifact.path))
    return json.dumps(config) if config else None


def tokenizer_of(artifact: Artifact) -> Any:
    """None where the checkpoint is not at hand."""
    if sources.model_at_hand(str(artifact.path)) is None:
        return None
    from toolkit import models

    return models.load_tokenizer(artifact.path)


def steps_alike(before: Manifest, step: Step, train: Train) -> bool:
    """Whether an earlier run of the stage took steps like these, on a CPU like this one, in the same arithmetic."""
    from toolkit.precision import bf16

    here = before.machine.get("cpu") == system.machine()["cpu"]
    if not before.metrics.get("seconds_per_step") or not here or before.metrics.get("bf16", False) != bf16(train):
        return False
    now = step.sections.get("task") or step.sections["corpus"]
    then = before.config.get("task") or before.config.get("corpus") or {}
    keys = ("batch_size", "gradient_accumulation_steps")
    return then.get("max_seq_length") == now.max_seq_length and _find(before.config, keys) == [
        getattr(train, key) for key in keys
    ]


def _find(config: dict[str, Any], keys: tuple[str, ...]) -> list[Any] | None:
    """The values of a manifest's `train` section, wherever in its stage's section it lies."""
    for name, value in config.items():
        if isinstance(value, dict):
            found = [value.get(k) for k in keys] if name == "train" else _find(value, keys)
            if found is not None:
                return found
    return None
