"""`pruneofa pack`, `unpack` and `kernels`: bundles of exported IRs and the native sparse kernels."""

from pathlib import Path
from typing import Annotated

import typer

from toolkit.core.errors import UserError

kernels_app = typer.Typer(
    help="Build or locate the native sparse kernels.", no_args_is_help=True, rich_markup_mode="rich"
)


def pack(
    folder: Annotated[Path, typer.Argument(help="IR folder: <run>/tasks/<task>/export/<variant>")],
    target: Annotated[
        Path | None, typer.Argument(help="file to write; default: <folder>.pofa in the current directory")
    ] = None,
) -> None:
    """Pack an IR folder into one compressed file for distribution."""
    from toolkit.ir import bundle

    path = target or Path(f"{folder.resolve().name}{bundle.SUFFIX}")
    if path.exists():
        raise UserError("file already exists", where=str(path), instead="choose another name (nothing was overwritten)")
    size = bundle.pack(folder, path)
    before = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
    typer.echo(f"{path}: {size / 1e6:.1f} MB, packed from {before / 1e6:.1f} MB")


def unpack(
    source: Annotated[Path, typer.Argument(help="file written by `pruneofa pack`")],
    folder: Annotated[
        Path | None, typer.Argument(help="folder to create; default: the file's name without .pofa")
    ] = None,
) -> None:
    """Unpack a file written by `pruneofa pack` to an IR folder that is identical to the original."""
    from toolkit.ir import bundle

    if not source.is_file():
        raise UserError("no such file", where=str(source))
    target = folder or Path(source.name.removesuffix(bundle.SUFFIX))
    bundle.unpack(source, target)
    typer.echo(target)


@kernels_app.command("build")
def kernels_build() -> None:
    """Build the sparse kernels and their OpenVINO extension for the installed OpenVINO, and print its path."""
    from toolkit.ir import kernels

    typer.echo(kernels.build())


@kernels_app.command("path")
def kernels_path() -> None:
    """Print the path of the OpenVINO extension, for `core.add_extension` and `benchmark_app -extensions`."""
    from toolkit.ir import kernels

    path = kernels.extension()
    if path is None:
        raise UserError("the sparse kernels are not built", instead=kernels.BUILD)
    typer.echo(path)
