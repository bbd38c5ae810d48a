"""`pruneofa inspect`: tables of sparsity, types and sizes for a run, checkpoint or IR folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.core.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def inspection_tables(path: Path) -> "RenderableType":
    """Returns tables for a run folder, a checkpoint folder or an IR folder.

    Raises:
        UserError: The path is not such a folder, or a checkpoint cannot be read.
    """
    from rich.console import Group

    if (path / "openvino_model.xml").is_file():
        return _ir_table(path)
    if any(path.glob("model*.safetensors")):
        return _checkpoint_table(path)
    irs = sorted(p.parent for p in path.glob("*/openvino_model.xml"))
    if irs:
        return Group(*(_ir_table(p) for p in irs))
    if path.is_dir():
        return _run_table(path)
    what = "not a run, checkpoint or IR folder"
    raise UserError(what, where=str(path), instead="a run folder, a checkpoint folder or an IR folder")


def _run_table(path: Path) -> "Table":
    from rich.table import Table

    from toolkit.pipeline.graph import finished_manifests

    table = Table(title=str(path))
    for column in ("task", "stage", "seconds", "dev", "sparsity", "checks", "made from"):
        table.add_column(column)
    for m in finished_manifests(path, complete=False):
        table.add_row(
            m.task or "",
            m.stage,
            f"{m.seconds:.0f}",
            ", ".join(f"{k} {v:.4f}" for k, v in m.metrics.get("dev", {}).items()),
            f"{m.metrics['sparsity']:.2%}" if "sparsity" in m.metrics else "",
            f"{sum(c.ok for c in m.checks)}/{len(m.checks)}",
            ", ".join(f"{n} {h[:8]}" for n, h in m.inputs.items()),
        )
    return table


def _checkpoint_table(path: Path) -> "Table":
    from rich.table import Table
    from safetensors import SafetensorError, safe_open

    table = Table(title=str(path), caption="matrices only; sparsity is the fraction of weights that are exactly zero")
    for column in ("tensor", "shape", "type", "sparsity"):
        table.add_column(column, justify="left" if column == "tensor" else "right")
    zeros = weights = 0
    for file in sorted(path.glob("model*.safetensors")):
        try:
            with safe_open(file, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    value = tensors.get_tensor(name)
                    if value.ndim != 2:
                        continue
                    sparsity = float((value == 0).mean())
                    table.add_row(name, "x".join(map(str, value.shape)), str(value.dtype), f"{sparsity:.2%}")
                    if sparsity > 0.01:
                        zeros, weights = zeros + int((value == 0).sum()), weights + value.size
        except SafetensorError as error:
            what = f"the file cannot be read ({error})"
            raise UserError(what, where=str(file), instead="a complete safetensors file") from None
    if weights:
        table.add_section()
        table.add_row("all pruned matrices", f"{weights:,}", "", f"{zeros / weights:.2%}")
    return table


def _ir_table(path: Path) -> "Table":
    from rich.box import SIMPLE
    from rich.table import Table

    from toolkit.ir.inspect import inspect_ir

    size = (path / "openvino_model.bin").stat().st_size
    table = Table(title=f"{path} ({size / 1e6:.1f} MB .bin)", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("operation", overflow="fold")
    for column in ("shape", "stored", "scales", "zeros", "input"):
        table.add_column(column, justify="right", no_wrap=True)
    inspection = inspect_ir(path)
    for m in inspection.matmuls:
        table.add_row(
            m.module or m.name,
            "x".join(map(str, m.shape)),
            m.stored_type,
            m.weight_granularity.removeprefix("per_"),
            f"{m.zero_fraction:.1%}",
            f"i8 {m.activation_scheme}" if m.activation_scheme else "f32",
        )
    for e in inspection.embeddings:
        table.add_row(
            e.module or e.name,
            "x".join(map(str, e.shape)),
            e.stored_type,
            e.weight_granularity.removeprefix("per_"),
            "",
            "",
        )
    for a in inspection.attentions:
        table.add_row(f"{a.module}: Q x K", "", "", "", "", "i8 sym" if a.activation_scheme else "f32")
    return table


def inspect(path: Annotated[Path, typer.Argument(help="checkpoint, IR or run folder")]) -> None:
    """Show per-matrix sparsity, element types and sizes of a checkpoint, an IR or a run."""
    from toolkit.cli.terminal import Console

    Console().print(inspection_tables(path))
