"""`pruneofa models`: the students that come with the package."""

from typing import Any


def models() -> None:
    """List the sparse models, and the one of fewer layers, that come with the package."""
    from rich.console import Console
    from rich.table import Column, Table

    from toolkit.models.included_models import MODELS, PREFIX, card

    table = Table(Column("source", no_wrap=True), "layers", "zeros", "tokens", "STS-B dev")
    for name in MODELS:
        table.add_row(PREFIX + name, *_cells(card(name)))
    console = Console()
    console.print(table)
    console.print("For a recipe: `ready: {student: <source>}`. STS-B: rank correlation of the embeddings x 100.")


def _cells(found: dict[str, Any]) -> list[str]:
    own, dense = (f"{100 * found[key]:.1f}" for key in ("stsb_dev", "stsb_dev_dense"))
    layers = str(len(found["layers"])) if "layers" in found else "all"
    zeros = f"{found['sparsity']:.0%}, {found['rows']}x1" if found["sparsity"] else "none"
    return [layers, zeros, f"{found['real_tokens'] / 1e6:.0f} M", f"{own} of {dense}"]
