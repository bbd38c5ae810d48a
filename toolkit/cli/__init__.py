"""The `pruneofa` command line: one function per command, with heavy imports inside so that `--help` starts fast."""

import io
import sys
from typing import Annotated

import typer

from toolkit import __version__
from toolkit.cli import (
    bench,
    compress,
    deploy,
    doctor,
    failures,
    inspect,
    models,
    report,
    run,
    scoreboard,
    search,
    terminal,
)
from toolkit.cli.inc import inc_app
from toolkit.core.libraries import quiet_libraries

app = typer.Typer(
    help="Prune a BERT-like model once, transfer it to many tasks, and deploy it as sparse INT8 OpenVINO IR.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(inc_app, name="inc")
app.add_typer(deploy.kernels_app, name="kernels")
# The order of the commands in `--help`.
for command in (
    *(compress.compress, run.init, run.check, run.plan, search.search, run.run, inspect.inspect, models.models),
    report.report,
    *(
        doctor.doctor,
        run.schema,
        bench.bench,
        deploy.pack,
        deploy.unpack,
        deploy.push,
        scoreboard.reproduce,
        scoreboard.scoreboard,
    ),
):
    app.command()(command)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: runs a command, and turns every exception into a message and an exit code (`failures`)."""
    for stream in (sys.stdout, sys.stderr):  # a terminal or log file may not have every character
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    quiet_libraries()
    failures.stop_on_signals()
    try:
        if "--json" in sys.argv:
            terminal.reserve_stdout()  # before the options are parsed: an error in them is a document, too
            sys.exit(app(standalone_mode=False))
        app()
    except (Exception, failures.Interrupted, KeyboardInterrupt) as error:
        sys.exit(failures.exit_code(error))
