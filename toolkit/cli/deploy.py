"""Commands for what comes after training: timing, choosing and shipping IRs, and the sparse kernel."""

from pathlib import Path
from typing import Annotated

import typer

from toolkit.core.errors import UserError

kernels_app = typer.Typer(help="The sparse kernel that makes zeros pay.", no_args_is_help=True, rich_markup_mode="rich")


def bench(
    models: Annotated[
        list[Path], typer.Argument(help="IR folders, timed side by side, the first is the reference; or a run folder")
    ],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="batch sizes")] = None,
    length: Annotated[int, typer.Option(min=1, help="tokens per example")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="rounds over all models")] = 5,
    seconds: Annotated[int, typer.Option(min=1, help="length of one benchmark_app run")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="cores per stream; default: all, shared")] = None,
    streams: Annotated[int, typer.Option(min=1, help="-nstreams")] = 1,
    texts: Annotated[Path | None, typer.Option(help="text file whose lines are the inputs")] = None,
    recommend: Annotated[bool, typer.Option("--recommend", help="of a run: name the variant to deploy here")] = False,
    within: Annotated[
        float, typer.Option(help="with --recommend: share of dense-fp32's score that may be lost")
    ] = 0.01,
    task: Annotated[str | None, typer.Option(help="with --recommend: which task of the run")] = None,
) -> None:
    """Time IR folders with benchmark_app, interleaved in one run, on real tokenised text; or choose among a run's."""
    from rich.console import Console

    from toolkit.cli import bench as benching
    from toolkit.recipe import Performance, PerformanceConfigs

    section = Performance(
        iteration=rounds,
        seconds=seconds,
        batch_sizes=tuple(batch or (1, 8)),
        sequence_length=length,
        configs=PerformanceConfigs(cores_per_instance=threads, num_of_instance=streams),
    )
    if recommend and len(models) != 1:
        raise UserError("--recommend takes one run folder", instead="pruneofa bench --recommend runs/<name>")
    if recommend:
        Console().print(benching.recommend(models[0], section, texts, within, task), highlight=False)
    else:
        # A command must stay one line to be copied.
        Console().print(benching.bench_table(models, section, texts), soft_wrap=True)


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
    from toolkit.ir.kernels import build as kernels

    typer.echo(kernels.build())


@kernels_app.command("path")
def kernels_path() -> None:
    """Print the OpenVINO extension's path, for `core.add_extension` and `benchmark_app -extensions`."""
    from toolkit.ir.kernels import build as kernels

    path = kernels.extension()
    if path is None:
        raise UserError("the sparse kernel is not built", instead=kernels.BUILD)
    typer.echo(path)
