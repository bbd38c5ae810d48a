"""`pruneofa search`: the size of a student that meets a goal of latency or of accuracy, found before it is trained."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.run import Overrides, RecipeFile, RunsFolder, recipe_arguments
from toolkit.cli.terminal import Console, Outcome, with_output
from toolkit.core.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from toolkit.pipeline.search.points import Point
    from toolkit.pipeline.search.search import Found
    from toolkit.recipe import Recipe

_PROXY = (
    "Scores are of models in FP32 that were pruned in one shot, without training: they rank sizes, and do not tell "
    "what training reaches: MiniLM with fewer dense layers came out better than with zeros of about the same one-shot "
    "score (docs/results.md). Sizes without a score are taken to be unable to win."
)


@with_output
def search(
    recipe: RecipeFile = None,  # type: ignore[assignment]
    overrides: Overrides = None,
    latency: Annotated[
        str | None, typer.Option(help="goal: the best score within this time for one inference, e.g. 4ms")
    ] = None,
    speedup: Annotated[
        str | None,
        typer.Option(help="goal: the best score at this multiple of the speed of dense INT8 in stock OpenVINO"),
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="goal: the fastest size that loses at most this part of the dense score, e.g. 1%")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="task that scores; default: the first with a trained or ready task teacher")
    ] = None,
    length: Annotated[int | None, typer.Option(min=8, help="tokens per example; default: the recipe's")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="batch size; default: the recipe's first, or 1")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="threads; default: the recipe's, or all cores")] = None,
    output: Annotated[Path | None, typer.Option(help="recipe to write; default: <name>-found.yaml")] = None,
    runs: RunsFolder = Path("runs"),
) -> Outcome:
    """Find the depth, zeros and pattern that meet a goal on this machine, without training; write their recipe."""
    from rich.text import Text

    from toolkit.pipeline.search.goals import parse_goal
    from toolkit.pipeline.search.search import Inference, document, search
    from toolkit.recipe.load import changed_text, load_recipe

    goal = parse_goal({"latency": latency, "speedup": speedup, "loss": loss})
    path, changes = recipe_arguments(recipe, overrides)

    def load(more: Sequence[str]) -> "Recipe":
        return load_recipe(path, [*changes, *more])

    loaded, terminal = load(()), Console()
    target = output or Path(f"{loaded.name}-found.yaml")
    if target.exists():
        what = "file already exists"
        raise UserError(what, where=str(target), instead="--output <another name> (nothing was overwritten)")
    if loaded.threads:
        os.environ["OMP_NUM_THREADS"] = str(loaded.threads)
    with terminal.status("checking the recipe of every size") as status:

        def log(text: str) -> None:
            status.update(Text(text)) if terminal.is_terminal else terminal.print(text, highlight=False)

        found = search(load, runs / loaded.name, goal, Inference(length, batch, threads), task, log)
    error = _missed(found)
    if error is not None:
        return Outcome(document(found), search_table(found), error=error)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(_header(found) + changed_text(path, [*changes, *found.changes]))
    terminal.print(search_table(found))
    lines = f"{_summary(found)}\nWrote {target}. Next: pruneofa run {shlex.quote(str(target))}"
    return Outcome(document(found) | {"recipe": target}, Text(lines), wrap=False)


def _missed(found: "Found") -> UserError | None:
    """Returns the error of a search that found no size to train; None if it found one."""
    if found.best is None:
        return found.missed()
    if found.best != found.dense:
        return None
    return UserError(
        f"the dense model in 8 bits meets the goal of {found.goal}, so there is nothing to prune",
        where=f"--{found.goal.kind}",
        instead="export: {variants: [dense-int8]}, or a harder goal",
    )


def search_table(found: "Found") -> "RenderableType":
    """Returns a table with one row per size, the slowest first, and notes below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    section, dense = found.section, found.dense
    threads = section.configs.cores_per_instance
    title = f"batch {section.batch_sizes[0]}, {section.sequence_length} tokens, {threads or 'all'} thread(s), 8 bits"
    notes = [f"Speed-up: over dense INT8 in stock OpenVINO. Score: {found.score_name}.", *found.remarks, _PROXY]
    notes += [f"Left out: {label} ({reason})" for label, reason in found.left_out.items()]
    table = Table(title=f"goal: {found.goal}; {title}")
    table.add_column("size", no_wrap=True)
    for column in ("ms", "speed-up", "score", "of dense", "frontier"):
        table.add_column(column, justify="right")
    for point in sorted(found.ms, key=lambda p: -found.ms[p]):
        score = found.scores.get(point)
        row = [
            f"{found.ms[point]:.2f}",
            f"{found.ms[dense] / found.ms[point]:.2f}",
            "" if score is None else f"{score:.4f}",
            "" if score is None or not found.scores[dense] else f"{score / found.scores[dense]:.1%}",
            "yes" if point in found.frontier else "",
        ]
        table.add_row(Text(point.label), *row, style="bold green" if point == found.best else None)
    return Group(table, *map(Text, notes))


def _summary(found: "Found") -> str:
    """Describes the chosen size, and the dense one of fewer layers that meets the goal too."""
    best = found.best
    assert best is not None
    text = f"Found for {found.goal}: {_figures(found, best)}."
    shallow = found.shallow
    if shallow is not None and best.zeros:
        text += f"\nFewer layers alone meet it, too: {_figures(found, shallow)}."
    return text


def _figures(found: "Found", point: "Point") -> str:
    ms, dense = found.ms[point], found.dense
    return (
        f"{point.label}, {ms:.2f} ms ({found.ms[dense] / ms:.2f} x dense INT8), "
        f"score before training {found.scores[point]:.4f} of {found.scores[dense]:.4f}"
    )


def _header(found: "Found") -> str:
    return "".join(f"# {line}\n" for line in ["Written by `pruneofa search`.", *_summary(found).splitlines()]) + "\n"
