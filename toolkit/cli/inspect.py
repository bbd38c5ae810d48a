"""`pruneofa inspect`: sparsity, types and sizes of a run, checkpoint or IR folder."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.terminal import Outcome, with_output
from toolkit.core.errors import UserError

if TYPE_CHECKING:
    from toolkit.models.checkpoint import StoredTensor

_CHECKPOINT = "model*.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FP8_ZEROS = {"F8_E4M3": 0x7F, "F8_E5M2": 0x7F, "F8_E4M3FNUZ": 0xFF, "F8_E5M2FNUZ": 0xFF}  # bits that are 0 in a zero


def inspection(path: Path) -> Outcome:
    """Returns what a run, checkpoint or IR folder, a safetensors file, or the .xml or .bin file of an IR contains.

    Raises:
        UserError: The path is none of these, is pickled, or cannot be read.
    """
    from rich.console import Group

    if path.suffix.lower() == ".bin" and path.with_suffix(".xml").is_file():
        path = path.with_suffix(".xml")
    if path.is_file() and path.suffix.lower() == ".xml":
        return _ir(path)
    if path.is_file() and path.suffix.lower() == ".safetensors":
        return _checkpoint(path, [path])
    if (path / "openvino_model.xml").is_file():
        return _ir(path)
    if files := sorted(path.glob(_CHECKPOINT)) or sorted(path.glob("*.safetensors")):
        return _checkpoint(path, files)
    irs = sorted(p.parent for p in path.glob("*/openvino_model.xml")) or sorted(path.glob("*.xml"))
    if irs:
        found = [_ir(p) for p in irs]
        tables = Group(*(one.shown for one in found if one.shown is not None))
        return Outcome({"kind": "irs", "path": path, "irs": [one.document for one in found]}, tables)
    for file in [path] if path.is_file() else sorted(path.glob("*")):
        if file.suffix in _PICKLES and file.is_file() and _is_pickle(file):
            raise UserError(
                "a pickle file, which can run arbitrary code when it is loaded, so it is not opened",
                where=str(file),
                instead="if you trust it, convert it with transformers' save_pretrained, which writes safetensors",
            )
    if path.is_dir():
        return _run(path)
    what = "no such file or folder" if not path.exists() else "not a run, checkpoint or IR"
    instead = "a run folder, a checkpoint folder, an IR folder, or a .safetensors or .xml file"
    raise UserError(what, where=str(path), instead=instead)


def _is_pickle(path: Path) -> bool:
    """Whether a file begins like a pickle, or like an archive of `torch.save`."""
    with path.open("rb") as stream:
        return stream.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _run(path: Path) -> Outcome:
    from rich.table import Table

    from toolkit.pipeline.graph import finished_manifests
    from toolkit.reporting.rows import stage_rows

    manifests = finished_manifests(path, complete=False)
    table = Table(title=str(path))
    for column in ("task", "stage", "seconds", "dev", "sparsity", "checks", "made from"):
        table.add_column(column)
    for m in manifests:
        table.add_row(
            m.task or "",
            m.stage,
            f"{m.seconds:.0f}",
            ", ".join(f"{k} {v:.4f}" for k, v in m.metrics.get("dev", {}).items()),
            f"{m.metrics['sparsity']:.2%}" if "sparsity" in m.metrics else "",
            f"{sum(c.ok for c in m.checks)}/{len(m.checks)}",
            ", ".join(f"{n} {h[:8]}" for n, h in m.inputs.items()),
        )
    return Outcome({"kind": "run", "path": path, "stages": stage_rows(manifests, path)}, table)


def _checkpoint(path: Path, files: list[Path]) -> Outcome:
    from rich.table import Table

    from toolkit.models.checkpoint import tensors_of_file

    table = Table(title=str(path), caption="matrices only; sparsity is the fraction of weights that are exactly zero")
    for column in ("tensor", "shape", "type", "sparsity"):
        table.add_column(column, justify="left" if column == "tensor" else "right")
    zeros = weights = 0
    tensors = []
    for file in files:
        for name, tensor in sorted(tensors_of_file(file).items()):
            if len(tensor.shape) != 2:
                continue
            size, count = math.prod(tensor.shape), _zeros(tensor)
            sparsity = "not counted" if count is None else f"{count / size:.2%}" if size else "empty"
            table.add_row(name, "x".join(map(str, tensor.shape)), _type_name(tensor.dtype), sparsity)
            known = {"name": name, "shape": tensor.shape, "type": _type_name(tensor.dtype)}
            tensors.append(known | {"sparsity": None if count is None or not size else count / size})
            if count and count > 0.01 * size:
                zeros, weights = zeros + count, weights + size
    if weights:
        table.add_section()
        table.add_row("all pruned matrices", f"{weights:,}", "", f"{zeros / weights:.2%}")
    pruned = {"pruned_weights": weights, "sparsity": zeros / weights if weights else None}
    return Outcome({"kind": "checkpoint", "path": path, "matrices": tensors} | pruned, table)


def _type_name(dtype: str) -> str:
    """Returns the name that numpy and torch give a type of safetensors: F32 -> float32, BF16 -> bfloat16."""
    for short, long in (("BF", "bfloat"), ("F", "float"), ("I", "int"), ("U", "uint")):
        if dtype.startswith(short):
            return dtype.replace(short, long, 1).lower()
    return dtype.lower()


def _zeros(tensor: "StoredTensor") -> int | None:
    """Returns the number of zero weights; None for integers and packed types, whose zeros are codes of other values."""
    from toolkit.models.checkpoint import zero_weights

    if tensor.dtype in ("F64", "F32", "F16", "BF16"):
        return int(zero_weights(tensor).sum())
    if tensor.dtype not in _FP8_ZEROS or tensor.start == tensor.stop:
        return None
    import numpy as np

    codes = np.memmap(tensor.file, np.uint8, "r", tensor.start, (tensor.stop - tensor.start,))
    return int((codes & _FP8_ZEROS[tensor.dtype] == 0).sum())


def _ir(path: Path) -> Outcome:
    from rich.box import SIMPLE
    from rich.table import Table

    from toolkit.ir.inspect import inspect_ir
    from toolkit.ir.runtime import ir_file

    weights = ir_file(path).with_suffix(".bin")
    stored = weights.stat().st_size if weights.is_file() else None
    size = "without .bin" if stored is None else f"{stored / 1e6:.1f} MB .bin"
    table = Table(title=f"{path} ({size})", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("operation", overflow="fold")
    for column in ("shape", "stored", "scales", "zeros", "input"):
        table.add_column(column, justify="right", no_wrap=True)
    found = inspect_ir(path)
    for m in found.matmuls:
        table.add_row(
            m.module or m.name,
            "x".join(map(str, m.shape)),
            m.stored_type,
            m.weight_granularity.removeprefix("per_"),
            "not counted" if math.isnan(m.zero_fraction) else f"{m.zero_fraction:.1%}",
            f"i8 {m.activation_scheme}" if m.activation_scheme else "f32",
        )
    for e in found.embeddings:
        table.add_row(
            e.module or e.name,
            "x".join(map(str, e.shape)),
            e.stored_type,
            e.weight_granularity.removeprefix("per_"),
            "",
            "",
        )
    for a in found.attentions:
        table.add_row(f"{a.module}: Q x K", "", "", "", "", "i8 sym" if a.activation_scheme else "f32")
    return Outcome({"kind": "ir", "path": path, "bin_bytes": stored} | asdict(found), table)


@with_output
def inspect(
    path: Annotated[Path, typer.Argument(help="checkpoint, IR or run folder; or a .safetensors or .xml file")],
) -> Outcome:
    """Show per-matrix sparsity, element types and sizes of a checkpoint, an IR or a run."""
    return inspection(path)
