"""The report's plots, as static SVG; and the sparsity of each matrix as a table."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolkit.recipe import VARIANTS
from toolkit.reporting.claims_table import ClaimsTable, VariantRow
from toolkit.reporting.formatting import milliseconds, percent, storage
from toolkit.reporting.svg import Axis, Plot, axis, columns, short

# Colours of plots on a light and on a dark page: of variants, and of the series of a training curve.
COLOURS = (
    *((v.name, v.colour, v.dark_colour) for v in VARIANTS.values()),
    ("loss", "#1d4ed8", "#60a5fa"),
    ("task-loss", "#c2610c", "#fbbf24"),
    ("kd-loss", "#0f766e", "#2dd4bf"),
    ("layers-loss", "#be185d", "#f472b6"),
    ("learning-rate", "#6d28d9", "#c4b5fd"),
    ("sparsity", "#334155", "#e2e8f0"),
)


def against_size(head: ClaimsTable, name: str) -> str:
    """Plots the first metric against the .bin size, uncompressed (filled) and after gzip (open), per variant."""
    metric = head.variants[0].scores[0].metric
    points = [
        f"{v.name}: {percent(v.scores[0].value)}, {storage(v.file.value)}, after gzip {storage(v.gzip.value)}"
        for v in head.variants
    ]
    plot = Plot(name, f"{metric} against the size of the .bin file", "; ".join(points), 300)
    x_values = [q.value / 1e6 for v in head.variants for q in (v.file, v.gzip)]
    x, y = axis(x_values, *columns(), zero=True), _scores(plot, head)
    plot.axes(x, y, ".bin size, MB: filled uncompressed, open after gzip", f"{metric}, %")
    for v in head.variants:
        height = y(100 * v.scores[0].value)
        plot.bar(v.name, x(v.file.value / 1e6), height, x(v.gzip.value / 1e6), height)
        _interval(plot, v, x(v.file.value / 1e6), y)
        plot.point(v.name, _shape(v), x(v.gzip.value / 1e6), height, filled=False)
        plot.point(v.name, _shape(v), x(v.file.value / 1e6), height)
    return plot.svg()


def against_latency(head: ClaimsTable, name: str) -> str:
    """Plots the first metric against the median latency, with the range over rounds."""
    metric, shown = head.variants[0].scores[0].metric, [v for v in head.variants if v.latency]
    points = [f"{v.name}: {percent(v.scores[0].value)}, {milliseconds(v.latency.value)}" for v in shown if v.latency]
    plot = Plot(name, f"{metric} against latency at batch {head.latency_batch}", "; ".join(points), 300)
    ranges = {v.name: _range(v) for v in shown}
    x = axis([end for low_high in ranges.values() for end in low_high], *columns(), zero=True)
    y = _scores(plot, head)
    plot.axes(x, y, f"ms per inference, batch {head.latency_batch}; lines: range over rounds", f"{metric}, %")
    for v in shown:
        assert v.latency is not None
        height, (low, high) = y(100 * v.scores[0].value), ranges[v.name]
        plot.bar(v.name, x(low), height, x(high), height)
        _interval(plot, v, x(v.latency.value), y)
        plot.point(v.name, _shape(v), x(v.latency.value), height)
    return plot.svg()


def _range(row: VariantRow) -> tuple[float, float]:
    assert row.latency is not None
    found = row.latency
    return (found.value if found.low is None else found.low, found.value if found.high is None else found.high)


def _shape(row: VariantRow) -> str:
    variant = VARIANTS[row.name]
    return "diamond" if variant.engine else "square" if variant.sparse else "circle"


def _scores(plot: Plot, head: ClaimsTable) -> Axis:
    """Draws the legend above the plot, and returns the axis of the scores below it."""
    for number, v in enumerate(head.variants):
        x, y = 8 + 133 * (number % 3), 12 + 18 * (number // 3)
        plot.point(v.name, _shape(v), x, y - 4)
        plot.label(x + 10, y, v.name, small=True)
    top = 22 + 18 * ((len(head.variants) - 1) // 3)
    ends = [end for v in head.variants for end in (v.scores[0].value, *(v.scores[0].interval or ()))]
    return axis([100 * end for end in ends], plot.height - 40, top)


def _interval(plot: Plot, row: VariantRow, x: float, y: Axis) -> None:
    if interval := row.scores[0].interval:
        plot.bar(row.name, x, y(100 * interval[0]), x, y(100 * interval[1]))


@dataclass(frozen=True)
class Heat:
    """The sparsity of each pruned matrix.

    Attributes:
        layers: Numbers of the layers, the columns.
        rows: Kind of matrix -> the fraction of zeros in each layer; None where a layer has no such matrix.
    """

    layers: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]


def sparsity(per_matrix: Mapping[str, float]) -> Heat:
    """Returns the sparsity of each pruned matrix by its kind and its layer."""
    cells = {_place(name): fraction for name, fraction in per_matrix.items()}
    layers = tuple(dict.fromkeys(layer for layer, _ in cells))
    kinds = dict.fromkeys(kind for _, kind in cells)
    return Heat(layers, {kind: tuple(cells.get((layer, kind)) for layer in layers) for kind in kinds})


def _place(name: str) -> tuple[str, str]:
    """Splits a name: 'bert.encoder.layer.3.attention.self.query.weight' -> ('3', 'attention.self.query')."""
    match = re.search(r"\.(\d+)\.(.+?)(?:\.weight)?$", name)
    return (match[1], match[2]) if match else ("", name.removesuffix(".weight"))


_LOSSES = {"loss": "total", "task_loss": "labels", "kd_loss": "teacher", "layers_loss": "teacher's layers"}


def panels(history: Sequence[Mapping[str, float]]) -> dict[str, dict[str, str]]:
    """Returns title -> series of the panels of a training curve: sparsity only where it changes."""
    pruned = len({row["sparsity"] for row in history if "sparsity" in row}) > 1
    found = {"loss": _LOSSES, "learning rate": {"learning_rate": "learning rate"}}
    found |= {"sparsity, %": {"sparsity": "sparsity"}} if pruned else {}
    present = {key for row in history for key in row}
    shown = {title: {k: label for k, label in series.items() if k in present} for title, series in found.items()}
    return {title: series for title, series in shown.items() if series}


def training_curve(history: Sequence[Mapping[str, float]], stage: str, name: str) -> str:
    """Plots loss and its terms, learning rate and, in stages that prune, sparsity, in panels above each other."""
    shown, height = panels(history), 105
    first, last = history[0]["step"], history[-1]["step"]
    ends = []
    for series in shown.values():
        for key, label in series.items():
            rows = [row[key] for row in history if key in row]
            ends.append(f"{label if key != 'loss' else 'loss'} from {short(rows[0])} to {short(rows[-1])}")
    text = f"Steps {first:,.0f} to {last:,.0f}: {', '.join(ends)}."
    plot = Plot(name, f"Training curve of {stage}", text, 24 + height * len(shown) + 38)
    steps = [row["step"] for row in history]
    x = Axis(0.0, max(steps) or 1.0, *columns())
    for number, (title, series) in enumerate(shown.items()):
        scale = 100 if "sparsity" in series else 1
        bottom, top = 24 + height * (number + 1) - 10, 24 + height * number
        values = [scale * row[key] for row in history for key in series if key in row]
        y = axis(values, bottom, top, zero=number > 0)
        is_last = number == len(shown) - 1
        plot.axes(x, y, "optimizer step" if is_last else "", title, x_ticks=is_last)
        for place, (key, label) in enumerate(series.items()):
            colour = key.replace("_", "-")
            points = [(x(row["step"]), y(scale * row[key])) for row in history if key in row]
            plot.line(colour, points, steps=key == "sparsity")
            if number == 0 and len(series) > 1:
                left = columns()[0] + 84 * place
                plot.line(colour, [(left, 8), (left + 14, 8)])
                plot.label(left + 18, 12, label)
    return plot.svg()
