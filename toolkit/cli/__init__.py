"""The `pruneofa` command line: one function per command, with heavy imports inside so that `--help` starts fast."""

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from toolkit import __version__
from toolkit.cli import bench, deploy, doctor, failures, inspect, models, report, run, scoreboard, search
from toolkit.cli.inc import inc_app

app = typer.Typer(
    help="Prune a BERT-like model once, transfer it to many tasks, and deploy it as sparse INT8 OpenVINO IR.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(inc_app, name="inc")
app.add_typer(deploy.kernels_app, name="kernels")
# The order of the commands in `--help`.
for command in (
    *(run.init, run.check, run.plan, search.search, run.run, inspect.inspect, models.models, report.report),
    *(doctor.doctor, run.schema, bench.bench, deploy.pack, deploy.unpack, scoreboard.reproduce, scoreboard.scoreboard),
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
    _quiet_libraries()
    failures.stop_on_signals()
    try:
        app()
    except (Exception, failures.Interrupted, KeyboardInterrupt) as error:
        sys.exit(failures.exit_code(error))


def _quiet_libraries() -> None:
    """Disables telemetry and verbose logging; must run before any library reads its environment."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "TRANSFORMERS_VERBOSITY": "error",
        "NNCF_EXTENSION_LOAD_TIMEOUT": "600",
        "TORCH_EXTENSIONS_DIR": str(Path(sys.prefix) / "torch_ext"),
    }.items():
        os.environ.setdefault(name, value)
    # NNCF builds its extension with ninja. It is next to the interpreter, but not on PATH if no environment is active.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # OpenVINO and NNCF send a telemetry event at import; without this package they use stubs that send nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
