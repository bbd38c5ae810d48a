"""`pruneofa models`: the sparse models that come with the package."""

from typing import Any


def models() -> None:
    """List the sparse models that come with the package."""
    from rich.console import Console
    from rich.table import Table

    from toolkit.models.included_models import MODELS, PREFIX, card

    table = Table("source", "layers", "zeros", "blocks", "tokens", "STS-B dev", "dense")
    for name in MODELS:
        table.add_row(PREFIX + name, *_cells(card(name)))
    console = Console()
    console.print(table)
    console.print("For a recipe: `ready: {student: <source>}`. STS-B: rank correlation of the embeddings x 100.")


def _cells(found: dict[str, Any]) -> list[str]:
    figures = [f"{100 * found[key]:.1f}" for key in ("stsb_dev", "stsb_dev_dense")]
    layers = str(len(found["layers"])) if "layers" in found else "all"
    return [layers, f"{found['sparsity']:.0%}", f"{found['rows']}x1", f"{found['real_tokens'] / 1e6:.0f} M", *figures]
