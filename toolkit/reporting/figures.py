"""The report's plots, as Plotly figures."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolkit.recipe import VARIANTS
from toolkit.reporting.claims_table import ClaimsTable

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_GRID, _INK = "#e5e9f0", "#334155"
_BLUES = [[0, "#f8fafc"], [0.5, "#93c5fd"], [1, "#1e3a8a"]]
_CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": False}


def to_html(figure: "Figure", name: str) -> str:
    """Returns a figure as a `div` with its script, without plotly.js itself.

    Args:
        figure: The figure.
        name: Identifier of the `div`, unique in the page.
    """
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG, div_id=name)
    return text


def against_size(head: ClaimsTable) -> "Figure":
    """Plots the first metric against the .bin size, uncompressed (filled) and after gzip (open), per variant."""
    figure = _figure()
    for v in head.variants:
        value, error = 100 * v.scores[0].value, v.scores[0].error
        edge = {"width": 2, "color": VARIANTS[v.name].colour}
        bars = {"type": "data", "array": [100 * error] * 2, "thickness": 1, "width": 3} if error is not None else None
        figure.add_scatter(
            x=[v.file.value / 1e6, v.gzip.value / 1e6],
            y=[value] * 2,
            error_y=bars,
            mode="lines+markers",
            name=v.name,
            line={"width": 1, "dash": "dot", "color": VARIANTS[v.name].colour},
            marker={"size": 11, "symbol": ["circle", "circle-open"], "color": VARIANTS[v.name].colour, "line": edge},
            text=["uncompressed", "gzip"],
            hovertemplate="%{x:.1f} MB (%{text}), %{y:.1f} %",
        )
    figure.update_xaxes(title=".bin size, MB: ● uncompressed, ○ gzip", rangemode="tozero")
    figure.update_yaxes(title=f"{head.variants[0].scores[0].metric}, %")
    return figure


def against_latency(head: ClaimsTable) -> "Figure":
    """Plots the first metric against the median latency, with the range over rounds."""
    figure = _figure()
    for v in head.variants:
        if v.latency is None:
            continue
        error, time = v.scores[0].error, v.latency
        low, high = (time.value if x is None else x for x in (time.low, time.high))
        bars = {"thickness": 1, "width": 3}
        figure.add_scatter(
            x=[time.value],
            y=[100 * v.scores[0].value],
            error_x={"type": "data", "array": [high - time.value], "arrayminus": [time.value - low], **bars},
            error_y={"type": "data", "array": [100 * error], **bars} if error is not None else None,
            mode="markers",
            name=v.name,
            marker={"size": 11, "color": VARIANTS[v.name].colour},
            hovertemplate="%{x:.2f} ms, %{y:.1f} %",
        )
    figure.update_xaxes(title=f"ms per inference, batch {head.latency_batch}", rangemode="tozero")
    figure.update_yaxes(title=f"{head.variants[0].scores[0].metric}, %")
    return figure


def sparsity(per_matrix: Mapping[str, float]) -> "Figure":
    """Plots the sparsity of each pruned matrix as a heat map: layers in columns, kinds of matrix in rows."""
    layers: list[str] = []
    kinds: list[str] = []
    cells: dict[tuple[str, str], float] = {}
    for name, fraction in per_matrix.items():
        layer, kind = _place(name)
        layers += [layer] if layer not in layers else []
        kinds += [kind] if kind not in kinds else []
        cells[kind, layer] = fraction
    rows = [[cells.get((kind, layer)) for layer in layers] for kind in kinds]
    figure = _figure(height=70 + 34 * len(kinds))
    figure.add_heatmap(
        z=[[None if s is None else 100 * s for s in row] for row in rows],
        x=layers,
        y=kinds,
        zmin=0,
        zmax=100,
        colorscale=_BLUES,
        showscale=False,
        xgap=2,
        ygap=2,
        texttemplate="%{z:.1f}" if len(layers) <= 6 else "%{z:.0f}",
        textfont={"size": 11},
        hovertemplate="layer %{x}, %{y}: %{z:.2f} %<extra></extra>",
    )
    figure.update_xaxes(title="layer", type="category", showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    return figure


def _place(name: str) -> tuple[str, str]:
    """Splits a name: 'bert.encoder.layer.3.attention.self.query.weight' -> ('3', 'attention.self.query')."""
    match = re.search(r"\.(\d+)\.(.+?)(?:\.weight)?$", name)
    return (match[1], match[2]) if match else ("", name.removesuffix(".weight"))


def training_curve(history: Sequence[Mapping[str, float]]) -> "Figure":
    """Plots loss and its terms, learning rate and, in stages that prune, sparsity, in stacked panels."""
    from plotly.subplots import make_subplots

    pruned = len({row["sparsity"] for row in history if "sparsity" in row}) > 1
    panels: list[tuple[str, dict[str, str]]] = [
        ("loss", {"loss": "total", "task_loss": "labels", "kd_loss": "teacher", "layers_loss": "teacher's layers"}),
        ("learning rate", {"learning_rate": "learning rate"}),
    ]
    panels += [("sparsity, %", {"sparsity": "sparsity"})] if pruned else []
    colours = {
        "loss": "#1d4ed8",
        "task_loss": "#d97706",
        "kd_loss": "#0d9488",
        "layers_loss": "#be185d",
        "learning_rate": "#7c3aed",
    }
    figure = make_subplots(rows=len(panels), shared_xaxes=True, vertical_spacing=0.07)
    for number, (title, series) in enumerate(panels, start=1):
        for key, label in series.items():
            rows = [row for row in history if key in row]
            if not rows:
                continue
            scale = 100 if key == "sparsity" else 1
            figure.add_scatter(
                x=[row["step"] for row in rows],
                y=[scale * row[key] for row in rows],
                name=label,
                mode="lines",
                line={"width": 1.6, "color": colours.get(key, _INK), "shape": "hv" if key == "sparsity" else "linear"},
                showlegend=title == "loss" and len(series) > 1,
                row=number,
                col=1,
            )
        figure.update_yaxes(title=title, row=number, col=1, rangemode="tozero" if number > 1 else "normal")
    figure.update_yaxes(exponentformat="e", row=2, col=1)
    figure.update_xaxes(title="optimizer step", row=len(panels), col=1)
    return _dress(figure, height=120 + 130 * len(panels))


def _figure(height: int = 360) -> "Figure":
    import plotly.graph_objects as go

    return _dress(go.Figure(), height)


def _dress(figure: "Figure", height: int) -> "Figure":
    layout: dict[str, Any] = {
        "template": "none",
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 12, "color": _INK},
        "height": height,
        "margin": {"l": 50, "r": 12, "t": 8, "b": 44},
        # Above the plot: on a narrow screen the legend takes more rows, and the plot shrinks.
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "xanchor": "left", "x": 0, "font_size": 11},
        "hoverlabel": {"font_size": 12},
    }
    figure.update_layout(**layout)
    figure.update_xaxes(gridcolor=_GRID, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=_GRID, zeroline=False, automargin=True)
    return figure
