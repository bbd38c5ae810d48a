"""Progress display of running stages: Rich bars on a terminal, lines in logs."""

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from toolkit.core.artifacts import Progress

if TYPE_CHECKING:
    from toolkit.pipeline.graph import Step

_PLAIN_EVERY = 30.0  # seconds between lines if the output is not a terminal (CI, a log file)


class _Bar:
    """`Progress` shown as a Rich bar, or as periodic lines if the output is not a terminal."""

    def __init__(self, label: str, console: Console) -> None:
        self._label, self._console = label, console
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task(f"{label:<22}", total=None, figures="")
        self._total = 0
        self._last_line = time.monotonic()

    def start(self, total: int) -> None:
        self._total = total
        self._bars.update(self._task, total=total, completed=0)

    def update(self, step: int, **figures: float) -> None:
        text = "  ".join(f"{_SHORT.get(name, name)} {_figure(name, value)}" for name, value in figures.items())
        self._bars.update(self._task, completed=step, figures=text)
        if not self._console.is_terminal and time.monotonic() - self._last_line > _PLAIN_EVERY:
            self._last_line = time.monotonic()
            self._console.print(f"  {self._label}: {step}/{self._total}  {text}", highlight=False, soft_wrap=True)

    def message(self, text: str) -> None:
        self._console.print(f"  {self._label}: {text}", highlight=False, soft_wrap=True)


_SHORT = {
    "learning_rate": "lr",
    "seconds_per_step": "s/step",
    "task_loss": "task",
    "kd_loss": "kd",
    "layers_loss": "layers",
}


def _figure(name: str, value: float) -> str:
    if name == "sparsity":
        return f"{value:.1%}"
    return f"{value:.1e}" if name == "learning_rate" else f"{value:.3f}"


@contextlib.contextmanager
def stage_progress(step: "Step", console: Console) -> Iterator[Progress]:
    """Context manager for the progress display of one stage.

    Args:
        step: Stage that runs.
        console: Console to print to.
    """
    bar = _Bar(step.label, console)
    if not console.is_terminal:
        console.print(f"{step.label} ...", highlight=False)
    started = time.monotonic()
    with bar._bars:
        yield bar
    console.print(Text.assemble(("✓", "green"), f" {step.label:<24} {time.monotonic() - started:7.1f} s"))
