"""`pruneofa inc explain`, and the recipe behind `pruneofa run --inc`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.inc_options import with_inc_flags
from toolkit.core.errors import UserError

if TYPE_CHECKING:
    from toolkit.recipe import Recipe
    from toolkit.recipe.inc import IncFlags

inc_app = typer.Typer(help="Read Intel Neural Compressor's YAML.", no_args_is_help=True, rich_markup_mode="rich")


@inc_app.command("explain")
@with_inc_flags
def inc_explain(
    files: Annotated[list[Path], typer.Argument(help="INC YAML files that belong together")],
    flags: "IncFlags",
) -> None:
    """Print the recipe that INC's files amount to, key by key; it can be saved and run."""
    from toolkit.recipe.inc import explain, read_inc

    typer.echo(explain(read_inc(files, flags, placeholders=True)))


def recipe_of_inc(
    files: list[Path], flags: "IncFlags", first: Path | None, overrides: list[str] | None
) -> "tuple[Recipe, Path | None]":
    """The recipe that INC's files amount to, and the workspace that they name; prints what of them is not used.

    Args:
        files: INC's files.
        flags: What INC's scripts took on their command line.
        first: What stands where a recipe would: an override, or nothing.
        overrides: Changes to the recipe.

    Raises:
        UserError: `first` is a recipe; or as `read_inc`.
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
