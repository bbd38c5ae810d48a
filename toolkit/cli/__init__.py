"""`pruneofa`: each command is one function; heavy imports happen inside, so that `--help` and `check` are quick."""

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolkit import __version__
from toolkit.cli import deploy, scoreboard
from toolkit.cli import inc_options as options
from toolkit.core import paths
from toolkit.core.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from toolkit.core.artifacts import Manifest
    from toolkit.recipe import Recipe
    from toolkit.recipe.inc import IncFlags

app = typer.Typer(
    help="Prune a BERT-like model once, transfer it to many tasks, ship it as sparse INT8 OpenVINO IR.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
inc_app = typer.Typer(help="Read Intel Neural Compressor's YAML.", no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(inc_app, name="inc")
app.add_typer(deploy.kernels_app, name="kernels")

QUICKSTART = "quickstart"
RecipeFile = Annotated[Path, typer.Argument(help="recipe (YAML); without it: the quickstart", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="changes to the recipe, e.g. pruning.target_sparsity=0.85", show_default=False),
]
RunsFolder = Annotated[Path, typer.Option("--runs", help="where run folders lie")]


def shipped(name: str) -> Path:
    """A recipe that comes with the toolkit, by its name under yaml_configs/ (without .yaml)."""
    path = paths.RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = sorted(str(p.relative_to(paths.RECIPES).with_suffix("")) for p in paths.RECIPES.rglob("*.yaml"))
        raise UserError(f"there is no shipped recipe {name!r}", instead=f"one of: {', '.join(known) or '(none found)'}")
    return path


def _load(recipe: Path | None, overrides: list[str] | None) -> "Recipe":
    from toolkit.recipe.load import load_recipe

    changes = list(overrides or [])
    if recipe is not None and "=" in str(recipe) and not recipe.exists():  # `pruneofa run seed=1`: no recipe given
        changes.insert(0, str(recipe))
        recipe = None
    return load_recipe(recipe or shipped(QUICKSTART), changes)


@app.command()
def init(
    target: Annotated[Path, typer.Argument(help="file to write")] = Path("recipe.yaml"),
    recipe: Annotated[str, typer.Option("--from", help="shipped recipe to copy")] = "template",
) -> None:
    """Copy a commented recipe to start from."""
    source = shipped(recipe)
    if target.exists():
        raise UserError("it is already there", where=str(target), instead="another name; nothing was overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(source.read_text())
    typer.echo(f"Wrote {target}. Edit it, then: pruneofa check {target}")


@app.command()
def check(recipe: RecipeFile = None, overrides: Overrides = None) -> None:  # type: ignore[assignment]
    """Validate a recipe: keys, lengths, every row and line of the data, matrices, sparsity. Loads no torch."""
    from rich.console import Console
    from rich.markup import escape

    from toolkit.pipeline.preflight import check_recipe, lacking

    loaded, console = _load(recipe, overrides), Console()
    for what, found in check_recipe(loaded):
        mark = f"[green]✓[/] {what}: " if what else "    "  # lines without a name belong to the one before
        console.print(f"{mark}{escape(found)}", highlight=False, soft_wrap=True)
    for line in lacking(loaded):
        console.print(f"[yellow]![/] {escape(line)}", highlight=False, soft_wrap=True)


@app.command()
def plan(
    recipe: RecipeFile = None,  # type: ignore[assignment]
    overrides: Overrides = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Show the stages, what is cached, steps, and memory, time and disk by a short measurement on this machine."""
    from rich.console import Console

    from toolkit.cli.plan_table import plan_table

    loaded = _load(recipe, overrides)
    terminal = Console()
    with terminal.status("reading the data") as status:
        table = plan_table(loaded, runs / loaded.name, say=status.update)
    terminal.print(table)


@app.command()
def run(
    recipe: RecipeFile = None,  # type: ignore[assignment]
    overrides: Overrides = None,
    start: Annotated[str | None, typer.Option("--from", help="make this stage and all later ones anew")] = None,
    only: Annotated[str | None, typer.Option("--only", help="run this stage alone")] = None,
    track: Annotated[bool, typer.Option("--track", help="log training curves for TensorBoard too")] = False,
    runs: Annotated[Path | None, typer.Option("--runs", help="where run folders lie; default: runs")] = None,
    inc: options.IncFiles = None,
    model: options.Model = None,
    teacher: options.Teacher = None,
    task: options.TaskName = None,
    train_file: options.TrainFile = None,
    validation_file: options.ValidationFile = None,
    columns: options.TextColumn = None,
    label: options.LabelColumn = None,
    labels: options.Labels = None,
    temperature: options.Temperature = None,
    loss_weights: options.LossWeights = None,
    learning_rate: options.LearningRate = None,
    num_train_epochs: options.Epochs = None,
    per_device_train_batch_size: options.BatchSize = None,
    max_seq_length: options.Length = None,
    seed: options.Seed = None,
    name: options.RunName = None,
) -> None:
    """Run a recipe, or INC's files: only what is not there yet; an interrupted stage goes on where it stopped."""
    if start and only:
        raise UserError("--from and --only cannot be used together", instead="one of them")
    # The parameters after `inc` are the fields of IncFlags, name by name.
    flags = {k: v for k, v in locals().items() if k in _INC_FLAGS and v not in (None, [])}
    if inc:
        loaded, workspace = _load_inc(inc, flags, recipe, overrides)
    elif flags:
        raise UserError(
            f"--{next(iter(flags)).replace('_', '-')} goes with --inc",
            instead="--inc prune.yaml, or for a recipe an override such as transfer.epoch=3",
        )
    else:
        loaded, workspace = _load(recipe, overrides), None
    folder = (runs or workspace or Path("runs")) / loaded.name
    manifests = execute(loaded, folder, start, only, track)
    if only is None:
        show_report(manifests, folder)


def execute(
    loaded: "Recipe", folder: Path, start: str | None = None, only: str | None = None, track: bool = False
) -> "list[Manifest]":
    """Checks and runs a recipe with its progress shown; the manifests of the run's finished stages."""
    from rich.console import Console

    from toolkit.cli import progress as shown
    from toolkit.pipeline.preflight import check_recipe, lacking
    from toolkit.pipeline.run import Run
    from toolkit.recipe.load import dump_recipe

    check_recipe(loaded, read_rows=False)  # `Run` does, of what it fetches too
    terminal = Console()
    if loaded.threads:
        os.environ["OMP_NUM_THREADS"] = str(loaded.threads)
    terminal.print(f"[bold]{loaded.name}[/] {loaded.description}".rstrip(), highlight=False)
    for line in lacking(loaded):
        terminal.print(line, highlight=False, markup=False, soft_wrap=True)
    log = folder / "tensorboard" if track else None
    job = Run(loaded, folder, lambda step: shown.stage_progress(step, terminal, log))
    manifests = job(only=only, start=start)
    (folder / "recipe.yaml").write_text(dump_recipe(loaded))
    return manifests


_INC_FLAGS = (
    *("model", "teacher", "task", "train_file", "validation_file", "columns", "label", "labels", "temperature"),
    *("loss_weights", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "max_seq_length"),
    *("seed", "name"),
)


def _load_inc(
    files: list[Path], flags: dict[str, Any], first: Path | None, overrides: list[str] | None
) -> "tuple[Recipe, Path | None]":
    """The recipe that INC's files amount to, what of them is not used (printed), and the workspace that they name."""
    from toolkit.recipe.inc import explain, read_inc
    from toolkit.recipe.load import parse_recipe

    if first is not None and "=" not in str(first):
        raise UserError("a recipe and --inc cannot be used together", where=str(first), instead="one of them")
    plan = read_inc(files, _inc_flags(flags))
    for note in plan.notes:
        typer.echo(note, err=True)
    changes = [*([str(first)] if first else []), *(overrides or [])]
    recipe = parse_recipe(explain(plan), " + ".join(map(str, files)), changes)
    return recipe, Path(plan.run_folder) if plan.run_folder else None


def _inc_flags(flags: dict[str, Any]) -> "IncFlags":
    from toolkit.recipe.inc import IncFlags

    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in flags.items()}
    return IncFlags(**given)


@inc_app.command("explain")
def inc_explain(
    files: Annotated[list[Path], typer.Argument(help="INC YAML files that belong together")],
    model: options.Model = None,
    teacher: options.Teacher = None,
    task: options.TaskName = None,
    train_file: options.TrainFile = None,
    validation_file: options.ValidationFile = None,
    columns: options.TextColumn = None,
    label: options.LabelColumn = None,
    labels: options.Labels = None,
    temperature: options.Temperature = None,
    loss_weights: options.LossWeights = None,
    learning_rate: options.LearningRate = None,
    num_train_epochs: options.Epochs = None,
    per_device_train_batch_size: options.BatchSize = None,
    max_seq_length: options.Length = None,
    seed: options.Seed = None,
    name: options.RunName = None,
) -> None:
    """Print the recipe that INC's files amount to, key by key; it can be saved and run."""
    from toolkit.recipe.inc import explain, read_inc

    flags = {k: v for k, v in locals().items() if k in _INC_FLAGS and v not in (None, [])}
    typer.echo(explain(read_inc(files, _inc_flags(flags), placeholders=True)))


def show_report(manifests: "list[Manifest]", folder: Path) -> None:
    """Writes and prints the report.

    Raises:
        CheckFailed: A promise of the recipe was measured and missed.
    """
    from rich.console import Console

    from toolkit import reporting
    from toolkit.pipeline import requirements as libraries

    terminal = Console()
    terminal.print(reporting.console([manifests]))
    if module := libraries.missing("report"):  # training alone asks for no page
        found = f"No report page: {module} is not installed; {libraries.install('report')}"
    else:
        page = reporting.build([manifests], folder / "report")
        found = f"Report: {page}"
    if any(m.stage == "export" for m in manifests):
        found += f"\nIR folders: {folder}/tasks/<task>/export/<variant>"
    terminal.print(found, highlight=False, markup=False, soft_wrap=True)
    missed = reporting.missed_criteria(manifests)
    if missed:
        raise CheckFailed("\n".join(missed))


@app.command()
def inspect(path: Annotated[Path, typer.Argument(help="checkpoint, IR or run folder")]) -> None:
    """Show per-matrix sparsity, element types and sizes of a checkpoint, an IR or a run."""
    from rich.console import Console

    from toolkit.cli.inspect import describe

    Console().print(describe(path))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders")],
    out: Annotated[Path | None, typer.Option(help="folder to write; default: <first run>/report")] = None,
) -> None:
    """Write the report (HTML, Markdown) of finished runs again, from their manifests alone."""
    from rich.console import Console

    from toolkit import reporting
    from toolkit.pipeline.graph import finished

    found = [finished(folder) for folder in runs]
    page = reporting.build(found, out or runs[0] / "report")
    Console().print(reporting.console(found))
    typer.echo(f"Report: {page}")


@app.command()
def doctor() -> None:
    """Compare this machine with what the toolkit needs: versions, ISA, cores, memory, disk, NNCF's extension."""
    from rich.console import Console

    from toolkit.pipeline.preflight import doctor_table

    table, sound = doctor_table()
    Console().print(table)
    if not sound:
        raise CheckFailed("some versions are not the pinned ones: pip install -c constraints.txt -e '.[all]'")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes (for editors)."""
    from toolkit.recipe.load import schema_json

    typer.echo(schema_json())


for command in (deploy.bench, deploy.pack, deploy.unpack):
    app.command()(command)
app.command()(scoreboard.reproduce)
app.command()(scoreboard.scoreboard)


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
        from toolkit.pipeline import requirements as libraries

        library = (error.name or "").split(".")[0]
        if not (extra := libraries.extra_of(library)):
            raise
        code = _fail(f"{library} is not installed\n  Instead: {libraries.install(extra)}", 2)
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


if __name__ == "__main__":
    main()
