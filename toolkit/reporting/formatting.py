"""Formatting of figures and labels for the page, the Markdown and the terminal."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.measure import size
from toolkit.reporting.budgets import Budget
from toolkit.reporting.claims_table import ClaimsTable, Score

_THIN = "\u202f"  # non-breaking space between a number and its unit
# Display texts of stored keys, which older manifests contain too.
_SIZE_LABELS = {
    size.FILE: "file: .bin",
    size.BUNDLE: "file: complete bundle (pruneofa pack)",
    size.ENTROPY: "encoder: kept values + entropy of the mask (lower bound)",
    size.INDEXED: "encoder: kept values + 1-byte index each",
    size.WHOLE_INT8: "full model: encoder with 1-bit mask, 8-bit embeddings, rest FP32",
    size.WHOLE_FP32: "full model: encoder with 1-bit mask, rest FP32",
    size.PLAIN: "full model: encoder stored dense, rest FP32",
}
# An absolute path of a file system, also of a local data set (hub:/…); not a URL, a relative path or a fraction such as
# tokens/s.
_ABSOLUTE = re.compile(
    r"(?:(?<![\w.:/…*])|(?<=\bhub:))(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"<>|,;:]+[/\\])+([^\s/\\'\"<>|,;:]*)"
)
_CHECK_TEXTS = (
    (r"fewest examples that an IR answered", "evaluated examples, minimum over variants"),
    (r"examples answered", "evaluated examples"),
    (r"the whole dev split", "complete dev split"),
    (r", share of their range", ", relative to the logit range"),
    (r"dense products of the same numbers", "dense MatMuls with the same weights"),
    (r"zeros lost in a matrix, share", "fraction of zeros lost, maximum over matrices"),
    (r"operations that are not quantized as asked for", "operations not quantized as requested"),
    (r"torch weights untouched", "torch weights unchanged"),
    (r"sparsity of (.+), off (\S+) by", r"sparsity of \1, deviation from \2"),
)


def percent(fraction: float, digits: int = 1) -> str:
    """Formats a fraction: 0.739 -> 73.9 %."""
    return f"{100 * fraction:.{digits}f}{_THIN}%"


def points(change: float) -> str:
    """Formats a difference of two fractions in percentage points, with its sign."""
    value = round(100 * change, 1)
    return f"{'−' if value < 0 else '+' if value > 0 else '±'}{abs(value):.1f}"


def storage(count: float) -> str:
    """Formats bytes in MB (10^6 bytes), or in kB below 1 MB."""
    return f"{_three_digits(count / 1e6)}{_THIN}MB" if count >= 1e6 else f"{_three_digits(count / 1e3)}{_THIN}kB"


def milliseconds(value: float) -> str:
    """Formats milliseconds: 6.28 ms."""
    return f"{_three_digits(value)}{_THIN}ms"


def times(ratio: float | None) -> str:
    """Formats a ratio to dense FP32; empty if there is none."""
    return "" if ratio is None else f"{_three_digits(ratio)}×"


def number(value: float) -> str:
    """Formats integers in full, grouped in thousands, and other numbers with three digits."""
    return f"{value:,.0f}" if float(value).is_integer() else _three_digits(value)


def _three_digits(value: float) -> str:
    """Formats with three significant digits, but at most two decimals."""
    for digits, limit in ((2, 9.995), (1, 99.95)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:,.0f}"


def measured(value: float | str) -> str:
    """Formats the measured value or the limit of a check."""
    return value if isinstance(value, str) else f"{value:.4g}"


def score(value: Score) -> str:
    """Formats a score with its interval: 73.9 % (71.2 to 76.4)."""
    return percent(value.value) + (f" ({interval(value)})" if value.interval is not None else "")


def interval(value: Score) -> str:
    """Formats the interval of a score in percent: 71.2 to 76.4; empty if there is none."""
    if value.interval is None:
        return ""
    low, high = (100 * end for end in value.interval)
    return f"{low:.1f} to {high:.1f}"


def portable(text: str) -> str:
    """Shortens the absolute paths in a text to their last part; the others describe a machine, not the run."""
    return _ABSOLUTE.sub(r"…/\1", text)


def duration(seconds: float) -> str:
    """Formats seconds: 1 h 02 min, 3 min 20 s or 4.2 s."""
    if seconds < 60:
        return f"{seconds:.1f}{_THIN}s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes}{_THIN}min {round(seconds) % 60:02d}{_THIN}s"
    return f"{minutes // 60}{_THIN}h {minutes % 60:02d}{_THIN}min"


def speed(budget: Budget) -> str:
    """Formats training throughput: 1,240 tokens/s or 12.3 sequences/s; empty if not timed."""
    if budget.speed is None:
        return ""
    return f"{_three_digits(budget.speed)}{_THIN}{'sequences' if budget.tokens is None else 'tokens'}/s"


class Verbatim(str):
    """Text that `in_markdown` leaves as it is."""


def in_markdown(content: object) -> object:
    """Escapes text of any origin for Markdown: HTML, links, images, the bars of tables and line breaks."""
    if not isinstance(content, str) or isinstance(content, Verbatim):
        return content
    text = re.sub(r"&(?=#?\w+;)", "&amp;", " ".join(content.splitlines()))
    return text.replace("<", "&lt;").replace("](", "]\\(").replace("|", "\\|")


def code(content: str) -> Verbatim:
    """Returns text for an indented code block, which Markdown shows as it is."""
    return Verbatim(" ".join(content.splitlines()))


def examples(head: ClaimsTable) -> str:
    """Formats the number of dev examples: 872, or 9,815 (accuracy), 9,832 (accuracy (mismatched))."""
    scores = head.variants[0].scores
    if len({s.n for s in scores}) == 1:
        return f"{scores[0].n:,}"
    return ", ".join(f"{s.n:,} ({s.metric})" for s in scores)


def hardware(machines: Sequence[Mapping[str, Any]]) -> str:
    """Formats the distinct CPUs and core counts of machines: Some CPU, 2 cores; Other CPU, 1 core."""
    return "; ".join(dict.fromkeys(f"{machine.get('cpu', '')}, {_cores(machine)}" for machine in machines))


def size_label(label: str) -> str:
    """Returns the display text of a stored size label."""
    return _SIZE_LABELS.get(label, label)


def check_text(text: str) -> str:
    """Returns the display text of a stored check name or limit."""
    for stored, shown in _CHECK_TEXTS:
        text = re.sub(stored, shown, text)
    return text


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
        interval,
        portable,
        duration,
        speed,
        code,
        examples,
        size_label,
        check_text,
    )
}
