"""How figures are written, and the sentences made of them; shared by the page, the Markdown and the terminal."""

from collections.abc import Sequence

from toolkit.artifacts import Manifest
from toolkit.reporting.budgets import PAPER_BATCH, PAPER_STEPS, Budget
from toolkit.reporting.headline import DENSE, SHIPPED, Headline, Score, Variant, headline

_THIN = "\u202f"  # a space that never breaks between a number and its unit


def percent(share: float, digits: int = 1) -> str:
    """0.739 -> 73.9 %."""
    return f"{100 * share:.{digits}f}{_THIN}%"


def points(change: float) -> str:
    """Difference of two shares in percentage points, with its sign."""
    value = round(100 * change, 1)
    return f"{'−' if value < 0 else '+' if value > 0 else '±'}{abs(value):.1f}"


def megabytes(count: float) -> str:
    """Bytes in units of 10^6, three digits or so."""
    value = count / 1e6
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}{_THIN}MB"


def milliseconds(value: float) -> str:
    """Three digits or so."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}{_THIN}ms"


def times(ratio: float | None) -> str:
    """A ratio to dense FP32; nothing where there is none."""
    return "" if ratio is None else f"{ratio:.{1 if ratio >= 10 else 2}f}×"


def number(value: float) -> str:
    """Grouped in thousands; few digits after the point."""
    if value == 0 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


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


def cell(content: object) -> str:
    """Text for a cell of a Markdown table."""
    return str(content).replace("|", "\\|")


FILTERS = {
    f.__name__: f for f in (percent, points, megabytes, milliseconds, times, number, measured, score, duration, cell)
}


def summary(head: Headline, student: Manifest | None) -> str:
    """What was measured of the shipped variant, in words; of the last one where that was not exported."""
    variant = head.variant(SHIPPED) or head.variants[-1]
    first = variant.scores[0]
    zeros = ""
    if variant.name.startswith("sparse") and student is not None:
        share, weights = student.metrics["sparsity"], student.metrics["prunable_weights"]
        zeros = f" ({percent(share)} of {weights / 1e6:.1f} M encoder weights are zero)"
    text = f"{variant.name}{zeros} scores {score(first)} {first.metric} on {head.n:,} dev examples"
    if first.change is not None:
        text += f", {points(first.change)} points against {DENSE}"
    text += f". {_size_sentence(variant)}"
    if variant.latency is not None:
        text += f" One inference at batch {head.latency_batch} takes {milliseconds(variant.latency.value)}"
        text += f", {times(variant.latency.ratio)} the speed of {DENSE}." if variant.latency.ratio else "."
    return text


def _size_sentence(variant: Variant) -> str:
    if variant.file.ratio is None:
        return f"Its .bin file has {megabytes(variant.file.value)}."
    text = f"Its .bin file is {times(variant.file.ratio)} smaller as it is and {times(variant.gzip.ratio)} after gzip"
    if variant.encoder is None or variant.encoder.ratio is None:
        return f"{text}."
    return f"{text}; its encoder, counted as the paper does (kept values only), is {times(variant.encoder.ratio)}."


def criterion(benchmark: Manifest) -> str:
    """The recipe's promise on 8 bits and whether it was kept; empty where there was none to measure."""
    found = benchmark.metrics.get("accuracy_criterion")
    if not found:
        return ""
    unit = " of the FP32 score" if found["kind"] == "relative" else ""
    promised, lost = percent(found["promised"], 2) + unit, percent(found["measured"], 2) + unit
    verdict = "kept" if found["met"] else "missed"
    return f"8 bits may cost the sparse model {promised} in {found['metric']}; they cost {lost}: {verdict}."


def missed_criteria(manifests: Sequence[Manifest]) -> list[str]:
    """One line for each task whose accuracy criterion was not met."""
    missed = [m for m in manifests if (m.metrics.get("accuracy_criterion") or {}).get("met") is False]
    return [f"{m.task}: {criterion(m)} (n = {headline(m).n:,})" for m in missed]


def budget(budgets: Sequence[Budget]) -> str:
    """How small the pre-training budget was beside the paper's, in one sentence; empty without pre-training."""
    student = next((b for b in budgets if b.stage == "student"), None)
    if student is None or not student.paper_sequences:
        return ""
    factor = student.paper_sequences / student.sequences
    used = f"The student was pruned in {student.steps:,} steps × {student.batch:,} sequences"
    paper = f"the paper used {PAPER_STEPS:,} × {PAPER_BATCH}"
    if factor <= 1:
        return f"{used}; {paper}."
    return (
        f"{used}; {paper}, {number(round(factor))} times as many. "
        "Scores at this budget show that the method works, not how far it goes."
    )
