"""What is known of a step before it is made: how it trains, who teaches it, and from which checkpoint it comes."""

import json
from typing import Any

from toolkit.core import machine
from toolkit.core.artifacts import Artifact, Manifest
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.architectures import shape_of
from toolkit.pipeline.cache_keys import section_values
from toolkit.pipeline.graph import Step
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
    from toolkit.training.hardware import bf16

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


def config_of(artifact: Artifact, inputs: ResolvedInputs) -> str | None:
    """Its `config.json`, or what is known of a model on the hub."""
    config = inputs.model(str(artifact.path)).config
    return json.dumps(config) if config else None


def tokenizer_of(artifact: Artifact, inputs: ResolvedInputs) -> Any:
    """None where the checkpoint is not at hand."""
    if inputs.model(str(artifact.path)).folder is None:
        return None
    from toolkit.models.load import load_tokenizer

    return load_tokenizer(artifact.path)


# What a step of training does not take longer for, or hardly: its schedules, and which weights are zero.
_FREE = {"steps", "epoch", "learning_rate", "weight_decay", "warmup_ratio", "max_grad_norm", "log_every"}
_FREE |= {"checkpoint_every", "approach", "learning_rate_rewinding", "temperature"}


def steps_alike(before: Manifest, step: Step, train: Train, inputs: ResolvedInputs) -> bool:
    """Whether an earlier run of the stage, in the same folder, took steps like these: on a CPU like this one, in the
    same arithmetic, with a model of the same size, as long sequences, batches and losses as now.
    """
    from toolkit.training.hardware import bf16

    here = before.machine.get("cpu") == machine.describe()["cpu"]
    if not before.metrics.get("seconds_per_step") or not here or before.metrics.get("bf16", False) != bf16(train):
        return False
    made, now = step.folder / "config.json", config_of(root_of(step), inputs)
    if not made.is_file() or now is None or shape_of(json.loads(made.read_text())) != shape_of(json.loads(now)):
        return False
    reads = "task" if step.sections.get("task") else "corpus"
    length = (before.config.get(reads) or {}).get("max_seq_length")
    name = step.stage.name
    same = _what_takes_time(before.config.get(name)) == _what_takes_time(section_values(name, step.sections[name]))
    return same and length == step.sections[reads].max_seq_length


def _what_takes_time(section: Any) -> Any:
    """A stage's section, as JSON, without what costs nothing."""
    if not isinstance(section, dict):
        return section
    return {name: _what_takes_time(value) for name, value in section.items() if name not in _FREE}
