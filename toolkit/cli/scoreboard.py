"""`pruneofa reproduce` and `pruneofa scoreboard`: published results against runs of this toolkit."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.core import paths
from toolkit.core.errors import UserError

if TYPE_CHECKING:
    from toolkit.reporting.scoreboard.board import PublishedResult

File = Annotated[
    Path,
    typer.Option(
        "--file",
        help="the rows (YAML); records lie in measured/ beside it",
        show_default="benchmarks/scoreboard.yaml of the toolkit",
    ),
]


def reproduce(
    row: Annotated[str, typer.Argument(help="as `pruneofa scoreboard` names it")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="changes to its recipe; any but seed, threads and name make it another setting"),
    ] = None,
    published: Annotated[bool, typer.Option("--published", help="start from the published sparse model")] = False,
    runs: Annotated[Path, typer.Option("--runs", help="where run folders lie")] = Path("runs"),
    file: File = paths.SCOREBOARD,
) -> None:
    """Run of a published row's recipe what the row needs, and record what it measures."""
    from rich.console import Console

    from toolkit.cli.report import show_report
    from toolkit.cli.run import execute
    from toolkit.pipeline.graph import plan
    from toolkit.recipe.load import load_recipe, parse_recipe
    from toolkit.reporting.scoreboard.board import (
        assess,
        load_measurements,
        load_scoreboard,
        measurement_of,
        needed_recipe,
        save_measurement,
    )
    from toolkit.reporting.scoreboard.render import scoreboard_table

    board = load_scoreboard(file)
    if row not in board.rows:
        near = difflib.get_close_matches(row, board.rows, n=5, cutoff=0.5)
        listed = "one that `pruneofa scoreboard` lists"
        raise UserError(f"no row {row!r}", where=str(file), instead=" or ".join(near) or listed)
    chosen = board.rows[row]
    source = _recipe_file(row, chosen, published, file.parent)
    recipe = load_recipe(source, overrides or ())
    # Before local folders take the place of what it names: the record tells one from the other.
    written = parse_recipe(source.read_text(encoding="utf-8-sig"), str(source), overrides or ())
    if chosen.task not in recipe.tasks:
        raise UserError(f"its recipe has no task {chosen.task!r}", where=row, instead=", ".join(recipe.tasks))
    read = recipe.corpus.tasks if recipe.corpus else ()
    kept = {name: task for name, task in recipe.tasks.items() if name == chosen.task or name in read}
    recipe = recipe.model_copy(update={"tasks": kept})
    # Another seed gets a folder of its own: in the same one its pre-training would take the place of the first's.
    folder = runs / (recipe.name if recipe.seed == load_recipe(source).seed else f"{recipe.name}-seed{recipe.seed}")
    if not all(step.manifest for step in plan(recipe, folder, fetch=False)):  # else all of it has been measured before
        recipe = needed_recipe(recipe, chosen)
    manifests = execute(recipe, folder)
    found = measurement_of(row, chosen, manifests, recipe, written, overrides or (), published)
    path = save_measurement(found, file.parent / "measured")
    standings = assess(board, load_measurements(file.parent / "measured"))
    Console().print(scoreboard_table([s for s in standings if s.name == row]))
    typer.echo(f"Recorded: {path}")
    show_report(manifests, folder)


def _recipe_file(name: str, row: "PublishedResult", published: bool, folder: Path) -> Path:
    """A row's recipe: beside the scoreboard, or one of those that come with the toolkit."""
    from toolkit.cli.run import shipped

    recipe = row.published if published else row.recipe
    if recipe is None:
        missing, other = ("published sparse model", "without") if published else ("recipe with pre-training", "with")
        instead = f"{other} --published" if row.recipe or row.published else "a row that has a recipe"
        raise UserError(f"no {missing} is at hand for this row", where=name, instead=instead)
    beside = folder / f"{recipe}.yaml"
    return beside if beside.is_file() else shipped(recipe)


def scoreboard(
    markdown: Annotated[Path | None, typer.Option(help="write it as Markdown too")] = None,
    html: Annotated[Path | None, typer.Option(help="write it as a page too")] = None,
    file: File = paths.SCOREBOARD,
) -> None:
    """Print every published row: claimed, measured, and whether it was reproduced."""
    from rich.console import Console

    from toolkit.reporting.scoreboard.board import assess, load_measurements, load_scoreboard
    from toolkit.reporting.scoreboard.render import scoreboard_markdown, scoreboard_table, write_scoreboard_page

    board = load_scoreboard(file)
    standings = assess(board, load_measurements(file.parent / "measured"))
    if markdown:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(scoreboard_markdown(board, standings))
    if html:
        write_scoreboard_page(board, standings, html)
    Console().print(scoreboard_table(standings))
