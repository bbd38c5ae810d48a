"""`pruneofa reproduce` and `pruneofa scoreboard`: published results compared with runs of this toolkit."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolkit.cli.terminal import Outcome, with_output
from toolkit.core import paths
from toolkit.core.errors import UserError

if TYPE_CHECKING:
    from toolkit.reporting.scoreboard.board import PublishedResult, Standing

File = Annotated[
    Path,
    typer.Option(
        "--file",
        help="published results (YAML); measurements are stored in measured/ next to it, those of a toolkit that is "
        "installed without its repository in ./measured",
        show_default="the toolkit's benchmarks/scoreboard.yaml",
    ),
]


def reproduce(
    row: Annotated[str, typer.Argument(help="row name, as printed by `pruneofa scoreboard`")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="changes to its recipe; all except seed, threads and name count as another setting"),
    ] = None,
    published: Annotated[bool, typer.Option("--published", help="start from the published sparse model")] = False,
    runs: Annotated[Path, typer.Option("--runs", help="directory that holds the run folders")] = Path("runs"),
    file: File = paths.SCOREBOARD,
) -> None:
    """Run the recipe behind a published result and record the measurement."""
    from toolkit.cli.report import show_report
    from toolkit.cli.run import execute
    from toolkit.cli.terminal import Console
    from toolkit.data.resolved_inputs import ResolvedInputs
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
        listed = "a row that `pruneofa scoreboard` lists"
        raise UserError(f"no row {row!r}", where=str(file), instead=" or ".join(near) or listed)
    chosen = board.rows[row]
    source = _recipe_file(row, chosen, published, file.parent)
    recipe = load_recipe(source, overrides or ())
    # Without resolving file names to local folders, so that the record can distinguish hub data from local data.
    written = parse_recipe(source.read_text(encoding="utf-8-sig"), str(source), overrides or ())
    if chosen.task not in recipe.tasks:
        raise UserError(f"the row's recipe has no task {chosen.task!r}", where=row, instead=", ".join(recipe.tasks))
    read = recipe.corpus.all_tasks if recipe.corpus else ()
    kept = {name: task for name, task in recipe.tasks.items() if name == chosen.task or name in read}
    recipe = recipe.model_copy(update={"tasks": kept})
    # Another seed gets a separate folder: in the same one, its pre-training would overwrite that of the first seed.
    folder = runs / (recipe.name if recipe.seed == load_recipe(source).seed else f"{recipe.name}-seed{recipe.seed}")
    if not all(step.manifest for step in plan(recipe, folder, ResolvedInputs())):  # else the run is already complete
        recipe = needed_recipe(recipe, chosen)
    manifests = execute(recipe, folder)
    found = measurement_of(row, chosen, manifests, recipe, written, overrides or (), published)
    path = save_measurement(found, _measured(file))
    standings = assess(board, load_measurements(_measured(file)))
    Console().print(scoreboard_table([s for s in standings if s.name == row]))
    typer.echo(f"Recorded: {path}")
    show_report(manifests, folder)


def _measured(file: Path) -> Path:
    """Returns the folder of the measurements of a file of published results."""
    return paths.MEASURED if file == paths.SCOREBOARD else file.parent / "measured"


def _recipe_file(name: str, row: "PublishedResult", published: bool, folder: Path) -> Path:
    """Returns the path of a row's recipe: next to the scoreboard file, or a recipe shipped with the toolkit."""
    from toolkit.cli.run import shipped

    recipe = row.published if published else row.recipe
    if recipe is None:
        missing, other = ("published sparse model", "without") if published else ("recipe with pre-training", "with")
        instead = f"{other} --published" if row.recipe or row.published else "a row that has a recipe"
        raise UserError(f"there is no {missing} for this row", where=name, instead=instead)
    beside = folder / f"{recipe}.yaml"
    return beside if beside.is_file() else shipped(recipe)


@with_output
def scoreboard(
    markdown: Annotated[Path | None, typer.Option(help="also write it as Markdown to this file")] = None,
    html: Annotated[Path | None, typer.Option(help="also write it as HTML to this file")] = None,
    file: File = paths.SCOREBOARD,
) -> Outcome:
    """Print all published results: claimed value, measured value, and whether it was reproduced."""
    from toolkit.reporting.scoreboard.board import assess, load_measurements, load_scoreboard
    from toolkit.reporting.scoreboard.render import scoreboard_markdown, scoreboard_table, write_scoreboard_page

    board = load_scoreboard(file)
    standings = assess(board, load_measurements(_measured(file)))
    if markdown:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(scoreboard_markdown(board, standings))
    if html:
        write_scoreboard_page(board, standings, html)
    rows = [{"row": s.row.model_dump(mode="json")} | _figures(s) for s in standings]
    return Outcome({"tolerance": board.tolerance, "results": rows}, scoreboard_table(standings))


def _figures(standing: "Standing") -> dict[str, Any]:
    keys = ("name", "status", "measured", "spread", "n", "seeds", "note")
    return {key: getattr(standing, key) for key in keys}
