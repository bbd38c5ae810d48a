"""What can be said of a recipe and a machine before anything runs. Loads no torch: it reads file headers only."""

import json
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit import sources
from toolkit.errors import UserError
from toolkit.recipe import Recipe

if TYPE_CHECKING:
    from rich.table import Table

# The linear layers inside an encoder's stack of layers, in every BERT-like naming: bert.encoder.layer.3…,
# distilbert.transformer.layer.3…, roberta.encoder.layer.3….
_IN_LAYER_STACK = re.compile(r"(^|\.)layers?\.\d+\..+\.weight$")


def tensor_shapes(model_folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a checkpoint, from the safetensors headers alone.

    Raises:
        UserError: There is no safetensors file, or its header cannot be read.
    """
    files = sorted(model_folder.glob("model*.safetensors"))
    if not files:
        raise UserError(
            "no model.safetensors in this folder", where=str(model_folder), instead="a safetensors checkpoint"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with path.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(size))
            shapes |= {n: tuple(t["shape"]) for n, t in header.items() if n != "__metadata__"}
        except (ValueError, KeyError, TypeError, MemoryError, OverflowError):
            raise UserError("not a whole safetensors file", where=str(path), instead="a fresh copy of it") from None
    return shapes


def prunable_shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """The matrices that pruning will get, by parameter name.

    Raises:
        UserError: Nothing is matched, or a pattern of `model.prunable` matches nothing.
    """
    folder = sources.model_folder(recipe.ready.get("student") or recipe.model.source)
    matrices: dict[str, tuple[int, ...]] = {
        n: s for n, s in tensor_shapes(folder).items() if len(s) == 2 and _IN_LAYER_STACK.search(n)
    }
    if not matrices:
        raise UserError("no encoder layers found to prune", where=str(folder), instead="a BERT-like encoder")
    patterns = recipe.model.prunable
    if not patterns:
        return matrices
    for pattern in patterns:
        if not any(re.search(pattern, n.removesuffix(".weight")) for n in matrices):
            raise UserError(
                f"model.prunable: {pattern!r} matches no matrix",
                where=str(folder),
                instead=f"a regular expression that matches names such as {next(iter(matrices), '(none)')!r}",
            )
    return {n: s for n, s in matrices.items() if any(re.search(p, n.removesuffix(".weight")) for p in patterns)}


def check_recipe(recipe: Recipe) -> list[tuple[str, str]]:
    """What was checked and what was found, line by line.

    Raises:
        UserError: The first thing that is wrong.
    """
    found = [("recipe", f"{recipe.name}, {len(recipe.tasks)} task(s): {', '.join(recipe.tasks) or 'none'}")]
    found.append(("model", str(sources.model_folder(recipe.model.source))))
    if recipe.student is not None:
        shapes = prunable_shapes(recipe)
        weights = sum(rows * columns for rows, columns in shapes.values())
        found.append(("prunable", f"{len(shapes)} encoder matrices, {weights:,} weights"))
        found.append(("pruning", _reachable(recipe, shapes)))
    for ready, source in recipe.ready.items():
        found.append((f"ready {ready}", str(sources.model_folder(source))))
    if recipe.corpus is not None:
        files = sources.corpus_files(recipe.corpus, {t: recipe.tasks[t] for t in recipe.corpus.tasks})
        found.append(("corpus", ", ".join(f.name for f in files)))
    for name, task in recipe.tasks.items():
        columns = sources.column_names(sources.task_files(task)[0])
        wanted = [*task.columns, task.label, *task.rows, *([task.hold_out.column] if task.hold_out else [])]
        missing = [c for c in wanted if c not in columns]
        if missing:
            raise UserError(
                f"no column {missing[0]!r}",
                where=str(sources.task_files(task)[0]),
                instead=f"one of {', '.join(columns)}",
            )
        found.append((f"task {name}", ", ".join(f.name for f in sources.task_files(task))))
    return found


def _reachable(recipe: Recipe, shapes: dict[str, tuple[int, ...]]) -> str:
    """The sparsity that schedule, pattern and number of steps lead to; an error when it is not the one asked for."""
    assert recipe.student is not None
    pruning, train = recipe.student.pruning, recipe.student.distillation.train
    wanted = pruning.approach.weight_compression.resolved()
    where = "student.pruning.approach.weight_compression"
    if wanted.end_step <= wanted.start_step:
        raise UserError("the ramp has no steps", where=where, instead="an end_step after start_step")
    if train.steps is not None and wanted.end_step > train.steps:
        raise UserError(
            f"end_step {wanted.end_step} is after the last of {train.steps} steps, so the target is never reached",
            where=where,
            instead=f"end_step: {train.steps // 2}",
        )
    _check_pattern(wanted.pattern, wanted.target_sparsity, pruning.backend, shapes, where)
    return (
        f"{wanted.initial_sparsity:.0%} -> {wanted.target_sparsity:.0%} in steps "
        f"{wanted.start_step}..{wanted.end_step}, every {wanted.update_frequency_on_step}, "
        f"{wanted.sparsity_decay_type}, {wanted.pattern}, by {pruning.backend}"
    )


def _check_pattern(pattern: str, target: float, backend: str, shapes: dict[str, tuple[int, ...]], where: str) -> None:
    n_of_m = re.fullmatch(r"(\d+):(\d+)", pattern)
    block = re.fullmatch(r"tile_pattern_([1-9]\d*)x([1-9]\d*)", pattern)
    if not n_of_m and not block:
        raise UserError(
            f"unknown pattern {pattern!r}", where=where, instead="tile_pattern_1x1, tile_pattern_4x1 or 2:4"
        )
    if backend != "inc" and pattern != "tile_pattern_1x1":
        raise UserError(
            f"{backend} cannot prune in pattern {pattern!r}", where=where, instead="student.pruning.backend: inc"
        )
    if n_of_m:
        n, m = map(int, n_of_m.groups())
        if not 0 < n < m or abs(target - n / m) > 1e-9:
            raise UserError(
                f"{pattern} means a sparsity of {n}/{m}", where=where, instead=f"target_sparsity: {n / m:g}"
            )
    tile = tuple(map(int, block.groups())) if block else (1, int(n_of_m[2]))  # type: ignore[index]
    uneven = [name for name, s in shapes.items() if s[0] % tile[0] or s[1] % tile[1]]
    if uneven:
        raise UserError(f"{pattern} does not divide {uneven[0]} of shape {shapes[uneven[0]]}", where=where)


def doctor_table() -> "tuple[Table, bool]":
    """Versions against the pins, ISA, cores, memory, disk, compiler; and whether all versions are the pinned ones."""
    from rich.table import Table

    from toolkit.measure import system

    table = Table(title="doctor", show_header=True)
    for column in ("what", "found", "wanted"):
        table.add_column(column)
    sound = True
    for name, wanted in pinned_versions().items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "not installed"
        same = found.split("+")[0] == wanted
        sound &= same
        table.add_row(name, found if same else f"[red]{found}[/]", wanted)
    for what, value in system.machine().items():
        table.add_row(what, ", ".join(map(str, value)) if isinstance(value, list) else str(value), "")
    table.add_row("python", sys.version.split()[0], ">= 3.10")
    table.add_row("free disk", f"{shutil.disk_usage('.').free / 2**30:.0f} GB", ">= 5 GB for the quickstart")
    table.add_row(
        "C++ compiler", shutil.which("g++") or shutil.which("clang++") or "none: 8-bit training is slower", ""
    )
    extension = Path(sys.prefix) / "torch_ext"
    built = any(extension.rglob("*.so")) if extension.is_dir() else False
    table.add_row("NNCF extension", "built" if built else "not built: the first quantization builds it", "built")
    return table, sound


def pinned_versions() -> dict[str, str]:
    """The pins of constraints.txt; empty where the toolkit was installed without its repository."""
    path = Path(__file__).resolve().parent.parent / "constraints.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    pins = (line.partition(";")[0].strip().partition("==") for line in lines if not line.startswith("#"))
    return {name: version for name, equals, version in pins if equals}
