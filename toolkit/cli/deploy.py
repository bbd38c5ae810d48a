"""Commands for what comes after training: timing, choosing and shipping IRs, and the sparse kernel."""

from pathlib import Path
from typing import Annotated

import typer

from toolkit.core.errors import UserError

kernels_app = typer.Typer(help="The sparse kernel that makes zeros pay.", no_args_is_help=True, rich_markup_mode="rich")


def pack(
    folder: Annotated[Path, typer.Argument(help="IR folder: <run>/tasks/<task>/export/<variant>")],
    target: Annotated[Path | None, typer.Argument(help="file to write; default: <folder>.pofa here")] = None,
) -> None:
    """Pack an IR folder into one compressed file to ship."""
    from toolkit.ir import bundle

    path = target or Path(f"{folder.resolve().name}{bundle.SUFFIX}")
    if path.exists():
        raise UserError("it is already there", where=str(path), instead="another name; nothing was overwritten")
    size = bundle.pack(folder, path)
    before = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
    typer.echo(f"{path}: {size / 1e6:.1f} MB, of {before / 1e6:.1f} MB")


def unpack(
    source: Annotated[Path, typer.Argument(help="file that `pruneofa pack` wrote")],
    folder: Annotated[Path | None, typer.Argument(help="folder to make; default: the file's name less .pofa")] = None,
) -> None:
    """Unpack a file of `pruneofa pack` into the IR folder that it was, bit for bit."""
    from toolkit.ir import bundle

    if not source.is_file():
        raise UserError("no such file", where=str(source))
    target = folder or Path(source.name.removesuffix(bundle.SUFFIX))
    bundle.unpack(source, target)
    typer.echo(target)


@kernels_app.command("build")
def kernels_build() -> None:
    """Build the sparse kernel and its OpenVINO extension for the installed OpenVINO; print where it lies."""
    from toolkit.ir import kernels

    typer.echo(kernels.build())


@kernels_app.command("path")
def kernels_path() -> None:
    """Print the OpenVINO extension's path, for `core.add_extension` and `benchmark_app -extensions`."""
    from toolkit.ir import kernels

    path = kernels.extension()
    if path is None:
        raise UserError("the sparse kernel is not built", instead=kernels.BUILD)
    typer.echo(path)
