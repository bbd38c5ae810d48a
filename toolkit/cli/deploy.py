"""`pruneofa pack`, `unpack`, `push` and `kernels`: exported IRs as files and on the hub; the native sparse kernels."""

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.terminal import SETTINGS, Console, Outcome, with_output
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


@with_output
def push(
    folder: Annotated[Path, typer.Argument(help="IR folder: <run>/tasks/<task>/export/<variant>")],
    repo: Annotated[str, typer.Argument(help="repository on the hub: <owner>/<name>")],
    public: Annotated[
        bool, typer.Option("--public", help="everybody may see it; default: a private repository")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be uploaded, and stop")] = False,
) -> Outcome:
    """Upload an IR folder, with its card and manifest, to the Hugging Face hub; shows files and target before."""
    from rich.text import Text

    from toolkit.core.files import CARD
    from toolkit.ir import hub

    files = hub.files_to_upload(folder)
    total = sum(files.values())
    lines = [f"{size / 1e6:12.3f} MB  {name}" for name, size in files.items()]
    lines += [f"{total / 1e6:12.3f} MB  to {repo}, {'public' if public else 'private'}"]
    lines += [] if CARD in files else [f"Without a model card ({CARD}): `pruneofa report <run>` writes it"]
    Console().print("\n".join(lines), highlight=False, soft_wrap=True)
    listed = [{"file": name, "bytes": size} for name, size in files.items()]
    document = {"repo": repo, "private": not public, "files": listed, "bytes": total, "url": None, "commit": None}
    if dry_run:
        return Outcome(document, Text("Nothing was uploaded (--dry-run)."))
    if SETTINGS.quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    made = hub.upload(folder, repo, files, public=public)
    document |= {"repo": made.repo, "private": made.private, "url": made.url, "commit": made.commit}
    return Outcome(document, Text(f"Uploaded: {made.url}"), wrap=False)


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
