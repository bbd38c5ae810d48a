"""A small plotting library: static SVG with axes, points, lines and a text for readers who do not see the plot.

Colours are CSS classes (`c-<name>`), so that a page shows them on a light or a dark background.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 400  # of every plot, in the units of its coordinates; a page scales it
_LEFT, _RIGHT, _FONT = 52, 10, 12
_MOST_POINTS = 160  # of a line


@dataclass(frozen=True)
class Axis:
    """A linear axis: values from `low` to `high` at the positions from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Returns the position of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Returns round values of the axis, at most that many."""
        rough = (self.high - self.low) / max(most - 1, 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next((f * power for f in (1, 2, 5) if f * power >= rough * 0.999), 10 * power)
        first = math.ceil(self.low / step - 1e-9)
        found = [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return found if len(found) > 1 or most > 12 else self.ticks(most + 2)  # no round value may lie on the axis


def axis(values: Sequence[float], start: float, end: float, *, zero: bool = False) -> Axis:
    """Returns an axis with some room beside the values; it begins at 0 with `zero`."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(0.0 if zero else low - room, high + room, start, end)


def short(value: float) -> str:
    """Formats a value of an axis in at most five characters where that is possible."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


@dataclass
class Plot:
    """A plot under construction.

    Attributes:
        name: Identifier, unique in the page.
        title: What is plotted.
        text: The plotted figures as text.
        height: Height, in the same units as `WIDTH`.
    """

    name: str
    title: str
    text: str
    height: int
    _parts: list[str] = field(default_factory=list)

    def label(
        self, x: float, y: float, text: str, anchor: str = "start", *, turned: bool = False, small: bool = False
    ) -> None:
        """Writes a text at a position: `anchor` is SVG's text-anchor, `turned` writes upwards."""
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ' font-size="11"' if small else ""
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(text)}</text>')

    def axes(self, x: Axis, y: Axis, x_title: str, y_title: str, *, x_ticks: bool = True) -> None:
        """Draws grid lines, values and titles of both axes."""
        for value in x.ticks():
            self._line("grid", x(value), y.start, x(value), y.end)
            if x_ticks:
                self.label(x(value), y.start + 15, short(value), "middle")
        for value in y.ticks(5 if y.start - y.end > 100 else 3):
            self._line("grid", x.start, y(value), x.end, y(value))
            self.label(x.start - 5, y(value) + 4, short(value), "end")
        if x_title:
            self.label((x.start + x.end) / 2, y.start + 31, x_title, "middle")
        self.label(11, (y.start + y.end) / 2, y_title, "middle", turned=True)

    def _line(self, style: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self._parts.append(f'<path class="{style}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>')

    def point(self, colour: str, shape: str, x: float, y: float, *, filled: bool = True) -> None:
        """Draws a mark: `circle`, `square` or `diamond`."""
        paths = {
            "circle": f"M{x - 5:.1f} {y:.1f}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0",
            "square": f"M{x - 4.5:.1f} {y - 4.5:.1f}h9v9h-9z",
            "diamond": f"M{x:.1f} {y - 6.5:.1f}l6.5 6.5l-6.5 6.5l-6.5 -6.5z",
        }
        self._parts.append(f'<path class="mark {"" if filled else "open "}c-{colour}" d="{paths[shape]}"/>')

    def bar(self, colour: str, x1: float, y1: float, x2: float, y2: float) -> None:
        """Draws the line of an interval."""
        self._line(f"bar c-{colour}", x1, y1, x2, y2)

    def line(self, colour: str, points: Sequence[tuple[float, float]], *, steps: bool = False) -> None:
        """Draws a line through points; with `steps`, each value holds until the next one."""
        stride = math.ceil(len(points) / _MOST_POINTS)
        kept = [*points[:-1:stride], points[-1]]
        path = f"M{kept[0][0]:.1f} {kept[0][1]:.1f}"
        path += "".join(f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}" for x, y in kept[1:])
        self._parts.append(f'<path class="curve c-{colour}" d="{path}"/>')

    def svg(self) -> str:
        """Returns the plot as an `<svg>` element."""
        return (
            f'<svg role="img" aria-labelledby="{self.name}-title {self.name}-text" viewBox="0 0 {WIDTH} {self.height}" '
            f'font-size="{_FONT}"><title id="{self.name}-title">{escape(self.title)}</title>'
            f'<desc id="{self.name}-text">{escape(self.text)}</desc>{"".join(self._parts)}</svg>'
        )


def columns(low: int = _LEFT) -> tuple[float, float]:
    """Returns where the x axis of a plot starts and ends."""
    return low, WIDTH - _RIGHT
