"""Renderings of the scoreboard: terminal table, Markdown and HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.reporting.formatting import in_markdown
from toolkit.reporting.scoreboard.board import Scoreboard, Standing

if TYPE_CHECKING:
    from rich.table import Table

_COLOURS = {"reproduced": "green", "below": "red", "other setting": "yellow", "unverified": "dim"}
_HEAD = ("row", "claimed", "measured", "n", "seeds", "status")


def scoreboard_table(standings: Sequence[Standing]) -> "Table":
    """Returns the scoreboard as a table for the terminal."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, padding=0, title="published and measured results, percent")
    for column in _HEAD:
        table.add_column(column, no_wrap=column == "row")
    for s in standings:
        table.add_row(*_cells(s), style=_COLOURS[s.status])
    return table


def scoreboard_markdown(board: Scoreboard, standings: Sequence[Standing]) -> str:
    """Returns the scoreboard as a Markdown table."""
    head = ("model", "sparsity", "precision", "task", *_HEAD[1:], "source")
    lines = [" | ".join(head), "|".join(["---"] * len(head))]
    for s in standings:
        source = board.sources[s.row.source]
        mark = "" if source.seen == "yes" else ", second-hand"
        zeros = f"{100 * s.row.sparsity:.0f} %" if s.row.sparsity else "dense"
        sparsity = f"{zeros}, {s.row.blocks}" if s.row.blocks else zeros
        start = (s.row.model, sparsity, s.row.precision, s.row.task)
        cells = (str(in_markdown(text)) for text in (*start, *_cells(s)[1:]))
        lines.append(" | ".join((*cells, f"[{s.row.source}]({source.url}){mark}")))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def write_scoreboard_page(board: Scoreboard, standings: Sequence[Standing], path: Path) -> None:
    """Writes the scoreboard as an HTML page that opens offline."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("toolkit.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    rows = [(s, _cells(s), board.sources[s.row.source]) for s in standings]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(environment.get_template("scoreboard.html.j2").render(board=board, rows=rows, head=_HEAD))


def _cells(s: Standing) -> tuple[str, ...]:
    """Returns the cells under `_HEAD`, with one value per published metric, in its order."""
    metrics = list(s.row.claimed)

    def each(values: dict[str, str]) -> str:
        return ", ".join(f"{m} {values[m]}" for m in metrics) if values else ""

    measured = {m: f"{v:.2f}" + (f" ± {s.spread[m]:.2f}" if m in s.spread else "") for m, v in s.measured.items()}
    n = sorted(set(s.n.values()))
    status = f"{s.status} ({s.note})" if s.note else s.status
    claimed = {m: f"{v:.2f}" for m, v in s.row.claimed.items()}
    return s.name, each(claimed), each(measured), ", ".join(f"{x:,}" for x in n), ", ".join(map(str, s.seeds)), status
