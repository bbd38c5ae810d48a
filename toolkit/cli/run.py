"""`pruneofa init`, `check`, `plan`, `run` and `schema`: commands that work on a recipe."""

import contextlib
import os
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolkit.cli.inc import recipe_of_inc
from toolkit.cli.inc_options import IncFiles, with_inc_flags
from toolkit.cli.report import reported, show_cards, write_report
from toolkit.cli.terminal import Outcome, with_output
from toolkit.core import paths
from toolkit.core.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from toolkit.core.artifacts import Manifest
    from toolkit.recipe import Recipe
    from toolkit.recipe.inc import IncFlags

QUICKSTART = "quickstart"
RecipeFile = Annotated[Path, typer.Argument(help="recipe (YAML); default: the quickstart", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="changes to the recipe, e.g. pruning.target_sparsity=0.85", show_default=False),
]
Track = Annotated[str | None, typer.Option("--track", help="also record training curves: tensorboard, mlflow or wandb")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="directory that holds the run folders")]


def shipped(name: str) -> Path:
    """Returns the path of a recipe that is shipped with the toolkit.

    Args:
        name: Path under yaml_configs/, without .yaml.

    Raises:
        UserError: There is no such recipe.
    """
    path = paths.RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = sorted(str(p.relative_to(paths.RECIPES).with_suffix("")) for p in paths.RECIPES.rglob("*.yaml"))
        raise UserError(f"no shipped recipe {name!r}", instead=f"one of: {', '.join(known) or '(none found)'}")
    return path


def recipe_arguments(recipe: Path | None, overrides: list[str] | None) -> tuple[Path, list[str]]:
    """Returns the file of a recipe and its overrides, as the arguments of a command give them."""
    changes = list(overrides or [])
    if recipe is not None and "=" in str(recipe) and not recipe.exists():  # `pruneofa run seed=1`: no recipe given
        changes.insert(0, str(recipe))
        recipe = None
    return recipe or shipped(QUICKSTART), changes


def _load(recipe: Path | None, overrides: list[str] | None) -> "Recipe":
    from toolkit.recipe.load import load_recipe

    return load_recipe(*recipe_arguments(recipe, overrides))


def init(
    target: Annotated[Path, typer.Argument(help="file to write")] = Path("recipe.yaml"),
    recipe: Annotated[str, typer.Option("--from", help="shipped recipe to copy")] = "template",
) -> None:
    """Create a recipe from a commented template."""
    source = shipped(recipe)
    if target.exists():
        what = "file already exists"
        raise UserError(what, where=str(target), instead="choose another name (nothing was overwritten)")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(source.read_text())
    typer.echo(f"Wrote {target}. Edit it, then: pruneofa check {target}")


@with_output
def check(recipe: RecipeFile = None, overrides: Overrides = None) -> Outcome:  # type: ignore[assignment]
    """Validate a recipe: keys, lengths, rows of the data, checkpoints, sparsity, names of layers and operations."""
    from rich.text import Text

    from toolkit.pipeline.preflight import check_recipe
    from toolkit.pipeline.requirements import missing_requirements

    loaded = _load(recipe, overrides)
    lines, missing = check_recipe(loaded), missing_requirements(loaded)
    shown, found = [], list[dict[str, Any]]()
    for what, text in lines:
        mark = ("✓", "green") if what else "   "  # a line without a name continues the previous one
        shown.append(Text.assemble(mark, f" {what}: {text}" if what else f" {text}"))
        if what:
            found.append({"what": what, "found": []})
        found[-1]["found"].append(text)
    shown += [Text.assemble(("!", "yellow"), f" {line}") for line in missing]
    return Outcome({"name": loaded.name, "checked": found, "missing": missing}, Text("\n").join(shown), wrap=False)


@with_output
def plan(
    recipe: RecipeFile = None,  # type: ignore[assignment]
    overrides: Overrides = None,
    runs: RunsFolder = Path("runs"),
) -> Outcome:
    """Show stages, cache state and steps; estimate memory, time and disk with a short measurement on this machine."""
    from rich.text import Text

    from toolkit.cli.plan_table import plan_document, table_of
    from toolkit.cli.terminal import Console
    from toolkit.pipeline.estimate.costs import estimate

    loaded = _load(recipe, overrides)
    folder = runs / loaded.name
    with Console().status("reading the data") as status:
        rows = estimate(loaded, folder, log=lambda text: status.update(Text(text)))
    return Outcome(plan_document(loaded, folder, rows), table_of(loaded, folder, rows))


@with_output
@with_inc_flags
def run(
    recipe: RecipeFile = None,  # type: ignore[assignment]
    overrides: Overrides = None,
    start: Annotated[str | None, typer.Option("--from", help="rerun this stage and all later ones")] = None,
    only: Annotated[str | None, typer.Option("--only", help="run only this stage")] = None,
    track: Track = None,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="directory that holds the run folders; default: runs")
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option("--max-time", help="time limit, e.g. 90s, 150m, 1h30m: save a checkpoint and exit with code 75"),
    ] = None,
    inc: IncFiles = None,
    *,
    flags: "IncFlags",
) -> Outcome:
    """Run a recipe or INC files: finished stages are reused, interrupted stages are resumed.

    Exit codes: 0 done; 1 a check failed; 2 a mistake in the input; 4 done, but compression failed (accuracy at chance
    or beyond its criterion, or a dense variant is faster); 75 time limit; 70 a fault of the program.
    """
    end = None if max_time is None else time.monotonic() + _seconds(max_time)
    if max_time and (start or only):
        raise UserError(
            f"--{'from' if start else 'only'} and --max-time cannot be used together: the repeated command would make "
            "finished stages again",
            instead="delete the stage's folder and run with --max-time alone",
        )
    if start and only:
        raise UserError("--from and --only cannot be used together", instead="one of them")
    given = [name for name, value in asdict(flags).items() if value is not None]
    if inc:
        loaded, workspace = recipe_of_inc(inc, flags, recipe, overrides)
    elif given:
        first = flags.ignored[0][0] if flags.ignored else f"--{given[0].replace('_', '-')}"
        raise UserError(
            f"{first} requires --inc",
            instead="--inc prune.yaml; with a recipe, an override such as transfer.epoch=3",
        )
    else:
        loaded, workspace = _load(recipe, overrides), None
    folder = (runs or workspace or Path("runs")) / loaded.name
    return reported(execute(loaded, folder, start, only, track, end), folder, with_report=only is None)


def execute(
    loaded: "Recipe",
    folder: Path,
    start: str | None = None,
    only: str | None = None,
    track: str | None = None,
    end: float | None = None,
) -> "list[Manifest]":
    """Checks and runs a recipe, showing its progress, and returns the manifests of the run's finished stages.

    Args:
        loaded: The recipe.
        folder: Run folder.
        start: Label of the first stage to rerun; None: reuse all finished stages.
        only: Label of the only stage to run; None: all stages.
        track: Tool that records training curves, too; None: none.
        end: Value of `time.monotonic()` at which the time limit is over; None: there is none.

    Raises:
        UserError: The recipe is invalid, or the tool is not installed.
        CheckFailed: A check of a stage failed; a report of the finished stages and of that one is written.
    """
    from rich.text import Text

    from toolkit.cli import progress
    from toolkit.cli.terminal import Console
    from toolkit.pipeline.preflight import check_recipe
    from toolkit.pipeline.requirements import missing_requirements, require_tracker
    from toolkit.pipeline.run import Run
    from toolkit.recipe.load import dump_recipe

    if track is not None:
        require_tracker(track)
    check_recipe(loaded, read_rows=False)  # `Run` checks the rows, including those of files that it downloads
    terminal = Console()
    if loaded.threads:
        os.environ["OMP_NUM_THREADS"] = str(loaded.threads)
    terminal.print(Text.assemble((loaded.name, "bold"), f" {loaded.description}".rstrip()))
    for line in missing_requirements(loaded):
        terminal.print(line, highlight=False, soft_wrap=True)
    job = Run(loaded, folder, lambda step: progress.stage_progress(step, terminal), track=track or "")
    job.time_over = lambda: end is not None and time.monotonic() >= end
    job.finished = lambda finished: _show_first_cards(finished, folder)
    try:
        manifests = job(only=only, start=start)
    except CheckFailed:
        if job.failed is not None:
            with contextlib.suppress(UserError):  # figures that are not finite cannot be shown: the checks say so
                write_report([*job.manifests, job.failed], folder)
        raise
    (folder / "recipe.yaml").write_text(dump_recipe(loaded))
    show_cards(manifests, folder)
    return manifests


def _show_first_cards(manifests: "list[Manifest]", folder: Path) -> None:
    """Writes the cards of an export as soon as it is finished: the benchmark may take long, or fail."""
    if manifests[-1].stage == "export":
        show_cards(manifests, folder, manifests[-1].task)


def _seconds(text: str) -> int:
    """Returns a duration in seconds: `90s`, `150m`, `2h` or `1h30m`.

    Raises:
        UserError: The text is not a duration, or is one of zero seconds.
    """
    found = re.fullmatch(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", text.strip(), re.ASCII)
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    if not (total := 3600 * hours + 60 * minutes + seconds):
        raise UserError(f"{text!r} is not a duration", where="--max-time", instead="e.g. 90s, 150m, 2h or 1h30m")
    return total


def schema() -> None:
    """Print the JSON schema of recipes (for editors)."""
    from toolkit.recipe.load import schema_json

    typer.echo(schema_json())
