"""Command-line options for Intel Neural Compressor files, named as in INC's example scripts."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

_PANEL = "with Intel Neural Compressor files (names as in INC's example scripts)"


def _flag(help_text: str, *names: str) -> typer.models.OptionInfo:
    """Returns an option that can be written with hyphens or, as in INC's scripts, with underscores."""
    both = dict.fromkeys((*names, *(n[:2] + n[2:].replace("-", "_") for n in names)))
    info: typer.models.OptionInfo = typer.Option(*both, help=help_text, rich_help_panel=_PANEL, show_default=False)
    return info


# Field of `IncFlags` -> type of the option, and the option.
OPTIONS: dict[str, tuple[Any, typer.models.OptionInfo]] = {
    "model": (str, _flag("model to start from: folder, hub id or package:<distribution>", "--model")),
    "teacher": (str, _flag("dense model fine-tuned on the task, for distillation", "--teacher")),
    "task": (str, _flag("sst2, mnli, qqp, qnli, … or any name", "--task", "--task-name")),
    "train_file": (
        str,
        _flag("training split: table or SQuAD JSON; default: the public task's, from the hub", "--train-file"),
    ),
    "validation_file": (str, _flag("evaluation split", "--validation-file")),
    "columns": (list[str], _flag("text column; twice for a pair", "--text-column")),
    "label": (str, _flag("label column", "--label-column")),
    "labels": (list[str], _flag("class name; repeat for each class, in label order", "--class-label")),
    "temperature": (float, _flag("distillation temperature", "--temperature")),
    "loss_weights": (
        tuple[float, float],
        _flag("weights of the task loss and the distillation loss, e.g. 0 1", "--loss-weights"),
    ),
    "learning_rate": (float, _flag("peak learning rate", "--learning-rate")),
    "num_train_epochs": (int, _flag("passes over the training examples", "--num-train-epochs")),
    "per_device_train_batch_size": (int, _flag("examples per step", "--per-device-train-batch-size")),
    "max_seq_length": (int, _flag("tokens per example", "--max-seq-length")),
    "seed": (int, _flag("seed of all randomness", "--seed")),
    "name": (str, _flag("run name", "--name")),
}
IncFiles = Annotated[
    list[Path] | None,
    typer.Option("--inc", help="INC YAML file, instead of a recipe; can be repeated", show_default=False),
]


def with_inc_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Decorator that appends the options above to a command and passes them as its last argument, `flags: IncFlags`."""

    @functools.wraps(command)
    def with_flags(**values: Any) -> None:
        from toolkit.recipe.inc import IncFlags

        given: dict[str, Any] = {name: value for name in OPTIONS if (value := values.pop(name, None)) not in (None, [])}
        given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        command(**values, flags=IncFlags(**given))

    own = list(inspect.signature(command).parameters.values())[:-1]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])
        for name, (kind, option) in OPTIONS.items()
    ]
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    with_flags.__signature__ = inspect.Signature([*keywords, *added])  # type: ignore[attr-defined]
    with_flags.__annotations__ = {p.name: p.annotation for p in (*keywords, *added)}
    return with_flags
