"""`pruneofa inc explain`, and the translation for `pruneofa run --inc`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.inc_options import with_inc_flags
from toolkit.core.errors import UserError

if TYPE_CHECKING:
    from toolkit.recipe import Recipe
    from toolkit.recipe.inc import IncFlags

inc_app = typer.Typer(
    help="Translate Intel Neural Compressor YAML files.", no_args_is_help=True, rich_markup_mode="rich"
)


@inc_app.command("explain")
@with_inc_flags
def inc_explain(
    files: Annotated[list[Path], typer.Argument(help="INC YAML files that belong together")],
    flags: "IncFlags",
) -> None:
    """Translate INC files to a recipe and print it, with the origin of every value; it can be saved and run."""
    from toolkit.recipe.inc import explain, read_inc

    typer.echo(explain(read_inc(files, flags, placeholders=True)))


def recipe_of_inc(
    files: list[Path], flags: "IncFlags", first: Path | None, overrides: list[str] | None
) -> "tuple[Recipe, Path | None]":
    """Translates INC files to a recipe and prints the ignored keys to stderr.

    Args:
        files: INC's files.
        flags: Command-line flags of INC's example scripts.
        first: The first positional argument of the command: an override or None.
        overrides: Changes to the recipe.

    Returns:
        The recipe, and INC's workspace folder if a file sets it.

    Raises:
        UserError: `first` is a recipe, a file or an override is invalid, a key is not supported, or a flag is missing.
    """
    from toolkit.recipe.inc import read_inc
    from toolkit.recipe.load import validated

    if first is not None and "=" not in str(first):
        raise UserError("a recipe and --inc cannot be used together", where=str(first), instead="one of them")
    plan = read_inc(files, flags)
    for note in plan.notes:
        typer.echo(note, err=True)
    changes = [*([str(first)] if first else []), *(overrides or [])]
    name = " + ".join(map(str, files))
    return validated(plan.document(name), name, changes), Path(plan.run_folder) if plan.run_folder else None
