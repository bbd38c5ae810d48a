"""`pruneofa`: each command is one function; heavy imports happen inside, so that `--help` and `check` are quick."""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from toolkit import __version__
from toolkit.cli import bench, deploy, inspect, report, run, scoreboard
from toolkit.cli.doctor import doctor
from toolkit.cli.inc import inc_app
from toolkit.core.errors import CheckFailed, UserError

app = typer.Typer(
    help="Prune a BERT-like model once, transfer it to many tasks, ship it as sparse INT8 OpenVINO IR.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(inc_app, name="inc")
app.add_typer(deploy.kernels_app, name="kernels")
# In the order in which `--help` lists them.
for command in (
    *(run.init, run.check, run.plan, run.run, inspect.inspect, report.report, doctor, run.schema),
    *(bench.bench, deploy.pack, deploy.unpack, scoreboard.reproduce, scoreboard.scoreboard),
):
    app.command()(command)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: turns errors into messages and exit codes (2: the user's, 1: a failed check, 130: interrupted)."""
    _quiet_libraries()
    try:
        app()
    except UserError as error:
        code = _fail(str(error), 2)
    except CheckFailed as error:
        code = _fail(str(error), 1)
    except KeyboardInterrupt:
        code = _fail("interrupted; the same command goes on where this one stopped", 130)
    except ModuleNotFoundError as error:
        from toolkit.pipeline.requirements import extra_of, install_command

        library = (error.name or "").split(".")[0]
        if not (extra := extra_of(library)):
            raise
        code = _fail(f"{library} is not installed\n  Instead: {install_command(extra)}", 2)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            code = _fail("the disk is full; make room, then run the same command again: finished stages are kept", 2)
        elif error.filename is not None:  # a path that cannot be read, or written to
            code = _fail(f"{error.filename2 or error.filename}: {(error.strerror or '').lower()}", 2)
        else:
            raise
    else:
        return
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    print(f"pruneofa: {message}", file=sys.stderr)
    return code


def _quiet_libraries() -> None:
    """No telemetry; no network unless the user has asked for it; before any library reads its environment."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "TRANSFORMERS_VERBOSITY": "error",
        "NNCF_EXTENSION_LOAD_TIMEOUT": "600",
        "TORCH_EXTENSIONS_DIR": str(Path(sys.prefix) / "torch_ext"),
    }.items():
        os.environ.setdefault(name, value)
    # NNCF's extension is loaded through ninja, which lies beside this interpreter: the environment need not be active.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # OpenVINO and NNCF send an event at import; without this package they fall back to stubs that send nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
