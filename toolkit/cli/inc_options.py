"""Command-line options for Intel Neural Compressor files, named as in INC's example scripts."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit.core.errors import UserError

_PANEL = "with Intel Neural Compressor files (names as in INC's example scripts)"


def _flag(help_text: str, *names: str) -> typer.models.OptionInfo:
    """Returns an option that can be written with hyphens or, as in INC's scripts, with underscores."""
    both = dict.fromkeys((*names, *(n[:2] + n[2:].replace("-", "_") for n in names)))
    info: typer.models.OptionInfo = typer.Option(*both, help=help_text, rich_help_panel=_PANEL, show_default=False)
    return info


# Field of `IncFlags` -> type of the option, and the option.
OPTIONS: dict[str, tuple[Any, typer.models.OptionInfo]] = {
    "model": (
        str,
        _flag("model to start from: folder, hub id or package:<distribution>", "--model", "--model-name-or-path"),
    ),
    "teacher": (
        str,
        _flag("dense model fine-tuned on the task, for distillation", "--teacher", "--teacher-model-name-or-path"),
    ),
    "task": (str, _flag("sst2, mnli, qqp, qnli, … or any name", "--task", "--task-name", "--dataset-name")),
    "kind": (
        str,
        _flag("kind of a task of your own: embedding, reranking, token_classification, multi_label, …", "--kind"),
    ),
    "train_file": (
        str,
        _flag("training split: table or SQuAD JSON; default: the public task's, from the hub", "--train-file"),
    ),
    "validation_file": (str, _flag("evaluation split", "--validation-file")),
    "columns": (list[str], _flag("text column; repeat for each, e.g. for a pair", "--text-column")),
    "label": (str, _flag("label column", "--label-column")),
    "labels": (list[str], _flag("class name, tag or type; repeat for each, in label order", "--class-label")),
    "temperature": (float, _flag("distillation temperature", "--temperature")),
    "loss_weights": (
        tuple[float, float],
        _flag("weights of the task loss and the distillation loss, e.g. 0 1", "--loss-weights"),
    ),
    "learning_rate": (float, _flag("peak learning rate", "--learning-rate")),
    "num_train_epochs": (float, _flag("passes over the training examples", "--num-train-epochs")),
    "per_device_train_batch_size": (int, _flag("examples per step", "--per-device-train-batch-size", "--batch-size")),
    "max_seq_length": (int, _flag("tokens per example", "--max-seq-length", "--max-length")),
    "seed": (int, _flag("seed of all randomness", "--seed")),
    "name": (str, _flag("run name", "--name")),
}
# Other flags of INC's scripts -> type, and the reason why they are ignored.
_IGNORED: dict[str, tuple[type, str]] = {
    **dict.fromkeys(
        ("do_prune", "do_distillation", "do_quantization", "do_train", "do_eval"),
        (bool, "the sections of the files decide what is done"),
    ),
    "pad_to_max_length": (bool, "batches are padded to their longest example"),
    "no_cuda": (bool, "training uses a GPU if torch finds one; CUDA_VISIBLE_DEVICES= hides it"),
    "per_device_eval_batch_size": (int, "it makes no difference to the result"),
    "output_dir": (str, "results are written to <runs>/<name>: --runs, --name"),
    "resume": (str, "interrupted runs are resumed automatically"),
}
# Flags of INC's scripts that would change the result -> what to write instead.
_INSTEAD = {
    "config": "--inc {}",
    "weight_decay": "transfer.weight_decay={}",
    "warmup_ratio": "transfer.warmup_ratio={}",
    "gradient_accumulation_steps": "transfer.gradient_accumulation_steps={}",
    "max_train_steps": "transfer.steps={}",
    "doc_stride": "tasks.<task>.windows.stride={}",
    "text_column_name": "--text-column {}",
    "label_column_name": "--label-column {}",
}
IncFiles = Annotated[
    list[Path] | None,
    typer.Option("--inc", help="INC YAML file, instead of a recipe; can be repeated", show_default=False),
]


def _hidden(name: str) -> Any:
    return typer.Option(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), hidden=True)


def _whole(epochs: float) -> int:
    """Accepts 3.0, which transformers' scripts write for three epochs.

    Raises:
        UserError: The number is not a whole one.
    """
    if not epochs.is_integer():
        what = f"--num-train-epochs must be a whole number, not {epochs:g}"
        raise UserError(what, instead="transfer.steps=<number of steps>")
    return int(epochs)


def with_inc_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator that appends the options above to a command and passes them as its last argument, `flags: IncFlags`."""

    @functools.wraps(command)
    def with_flags(**values: Any) -> Any:
        from toolkit.recipe.inc import IncFlags

        given: dict[str, Any] = {name: value for name in OPTIONS if (value := values.pop(name, None)) not in (None, [])}
        given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        if "num_train_epochs" in given:
            given["num_train_epochs"] = _whole(given["num_train_epochs"])
        others = {name: value for name in (*_IGNORED, *_INSTEAD) if (value := values.pop(name, None))}
        for name in (name for name in others if name in _INSTEAD):
            raise UserError(f"--{name} is not supported", instead=_INSTEAD[name].format(others[name]))
        if others:
            given["ignored"] = tuple((f"--{name}", _IGNORED[name][1]) for name in others)
        return command(**values, flags=IncFlags(**given))

    own = list(inspect.signature(command).parameters.values())[:-1]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])
        for name, (kind, option) in OPTIONS.items()
    ]
    hidden = {name: kind for name, (kind, _) in _IGNORED.items()} | dict.fromkeys(_INSTEAD, str)
    added += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, _hidden(name)])
        for name, kind in hidden.items()
    ]
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    with_flags.__signature__ = inspect.Signature([*keywords, *added])  # type: ignore[attr-defined]
    with_flags.__annotations__ = {p.name: p.annotation for p in (*keywords, *added)}
    return with_flags
