"""The flags that go with Intel Neural Compressor files: those of the scripts that INC's files were used with."""

from pathlib import Path
from typing import Annotated

import typer

_PANEL = "with Intel Neural Compressor files (names as in INC's example scripts)"


def _flag(help_text: str, *names: str) -> typer.models.OptionInfo:
    """An option that may be written with hyphens or, as the scripts had it, with underscores."""
    both = dict.fromkeys((*names, *(n[:2] + n[2:].replace("-", "_") for n in names)))
    info: typer.models.OptionInfo = typer.Option(*both, help=help_text, rich_help_panel=_PANEL, show_default=False)
    return info


Model = Annotated[str | None, _flag("model to start from: folder, hub id or package:<distribution>", "--model")]
Teacher = Annotated[str | None, _flag("dense model that knows the task; teaches by distillation", "--teacher")]
TaskName = Annotated[str | None, _flag("sst2, mnli, qqp, qnli, … or any name", "--task", "--task-name")]
TrainFile = Annotated[
    str | None, _flag("table or SQuAD JSON; default: the public task's, from the hub", "--train-file")
]
ValidationFile = Annotated[str | None, _flag("what is measured", "--validation-file")]
TextColumn = Annotated[list[str] | None, _flag("column of the text; twice for a pair", "--text-column")]
LabelColumn = Annotated[str | None, _flag("column of the label", "--label-column")]
Labels = Annotated[list[str] | None, _flag("name of a class; once for each, in their order", "--class-label")]
Temperature = Annotated[float | None, _flag("distillation temperature", "--temperature")]
LossWeights = Annotated[
    tuple[float, float] | None, _flag("weights of the labels' and the teacher's loss: 0 1", "--loss-weights")
]
LearningRate = Annotated[float | None, _flag("peak learning rate", "--learning-rate")]
Epochs = Annotated[int | None, _flag("passes over the training examples", "--num-train-epochs")]
BatchSize = Annotated[int | None, _flag("examples per step", "--per-device-train-batch-size")]
Length = Annotated[int | None, _flag("tokens per example", "--max-seq-length")]
Seed = Annotated[int | None, _flag("seed of all randomness", "--seed")]
RunName = Annotated[str | None, _flag("what the results are called", "--name")]
IncFiles = Annotated[
    list[Path] | None,
    typer.Option("--inc", help="INC YAML file, in place of a recipe; may be repeated", show_default=False),
]
