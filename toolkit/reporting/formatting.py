"""How figures are written: percent, sizes, times, ratios."""

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.reporting.budgets import Budget
from toolkit.reporting.claims_table import ClaimsTable, Score

_THIN = "\u202f"  # a space that never breaks between a number and its unit


def percent(share: float, digits: int = 1) -> str:
    """0.739 -> 73.9 %."""
    return f"{100 * share:.{digits}f}{_THIN}%"


def points(change: float) -> str:
    """Difference of two shares in percentage points, with its sign."""
    value = round(100 * change, 1)
    return f"{'−' if value < 0 else '+' if value > 0 else '±'}{abs(value):.1f}"


def storage(count: float) -> str:
    """Bytes in MB of 10^6; in kB below one of them."""
    return f"{_three_digits(count / 1e6)}{_THIN}MB" if count >= 1e6 else f"{_three_digits(count / 1e3)}{_THIN}kB"


def milliseconds(value: float) -> str:
    """6.28 ms."""
    return f"{_three_digits(value)}{_THIN}ms"


def times(ratio: float | None) -> str:
    """A ratio to dense FP32; nothing where there is none."""
    return "" if ratio is None else f"{_three_digits(ratio)}×"


def number(value: float) -> str:
    """Whole numbers in full, grouped in thousands."""
    return f"{value:,.0f}" if float(value).is_integer() else _three_digits(value)


def _three_digits(value: float) -> str:
    """Three digits, fewer for small values: two behind the point at most."""
    for digits, limit in ((2, 9.995), (1, 99.95)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:,.0f}"


def measured(value: float | str) -> str:
    """A check's figure or limit."""
    return value if isinstance(value, str) else f"{value:.4g}"


def score(value: Score) -> str:
    """73.9 % ± 1.4."""
    return percent(value.value) + (f" ± {100 * value.error:.1f}" if value.error is not None else "")


def duration(seconds: float) -> str:
    """1 h 02 min, 3 min 20 s or 4.2 s."""
    if seconds < 60:
        return f"{seconds:.1f}{_THIN}s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes}{_THIN}min {round(seconds) % 60:02d}{_THIN}s"
    return f"{minutes // 60}{_THIN}h {minutes % 60:02d}{_THIN}min"


def speed(budget: Budget) -> str:
    """1,240 tokens or 12.3 sequences; empty where a step was not timed."""
    if budget.speed is None:
        return ""
    return f"{_three_digits(budget.speed)}{_THIN}{'sequences' if budget.tokens is None else 'tokens'}"


def cell(content: object) -> str:
    """Text for a cell of a Markdown table."""
    return str(content).replace("|", "\\|")


def examples(head: ClaimsTable) -> str:
    """How many dev examples are behind the scores: 872; or 9,815 (accuracy), 9,832 (accuracy (mismatched))."""
    scores = head.variants[0].scores
    if len({s.n for s in scores}) == 1:
        return f"{scores[0].n:,}"
    return ", ".join(f"{s.n:,} ({s.metric})" for s in scores)


def hardware(machines: Sequence[Mapping[str, Any]]) -> str:
    """The processor and the cores of each machine, those that are alike once: Some CPU, 2 cores; Other CPU, 1 core."""
    return "; ".join(dict.fromkeys(f"{machine.get('cpu', '')}, {_cores(machine)}" for machine in machines))


def _cores(machine: Mapping[str, Any]) -> str:
    count = machine.get("cores", "?")
    return f"{count} core" if count == 1 else f"{count} cores"


FILTERS = {
    f.__name__: f
    for f in (
        percent,
        points,
        storage,
        milliseconds,
        times,
        number,
        measured,
        score,
        duration,
        speed,
        cell,
        examples,
    )
}
