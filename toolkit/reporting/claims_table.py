"""The claims table: what each variant of a task scores, weighs and costs, against dense FP32. Numbers, no text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.core.artifacts import Manifest
from toolkit.measure.size import FILE, GZIP, VALUES
from toolkit.recipe import DENSE

_LARGER_IS_BETTER = ("throughput_median",)
_SHARES = ("accuracy", "exact_match")  # metrics that are a share of examples


@dataclass(frozen=True)
class Score:
    """A metric on the dev split.

    Attributes:
        error: Binomial standard error; None for metrics that are no share of examples (F1).
        n: Examples, or questions, behind it.
        change: Difference to dense FP32; None for dense FP32 itself, or without it.
    """

    metric: str
    value: float
    error: float | None
    change: float | None
    n: int


@dataclass(frozen=True)
class Quantity:
    """A figure, its spread over rounds, and how many times better than dense FP32 it is (None: nothing to compare)."""

    value: float
    low: float | None = None
    high: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class VariantRow:
    """One row of the claims table. Sizes in bytes, latency in ms per inference, throughput in examples per second."""

    name: str
    scores: tuple[Score, ...]
    file: Quantity
    gzip: Quantity
    encoder: Quantity | None
    latency: Quantity | None
    throughput: Quantity | None


@dataclass(frozen=True)
class ClaimsTable:
    """The claims table of one task, with the batch sizes its speed columns stand for."""

    task: str
    note: str
    variants: tuple[VariantRow, ...]
    latency_batch: int
    throughput_batch: int

    def variant(self, name: str) -> VariantRow | None:
        """The row of that name, if it was measured."""
        return next((v for v in self.variants if v.name == name), None)


def claims_table(benchmark: Manifest) -> ClaimsTable:
    """The claims table from a benchmark's manifest."""
    metrics = benchmark.metrics
    found: dict[str, dict[str, Any]] = metrics["variants"]
    dense = found.get(DENSE)
    batches = sorted({p["batch"] for v in found.values() for p in v["performance"]}) or [1]
    small, large = batches[0], batches[-1]
    n = int(metrics["dev_n"])
    counts: dict[str, int] = metrics.get("counts", {})
    variants = tuple(
        VariantRow(
            name=name,
            scores=tuple(
                _score(m, v["accuracy"], dense if name != DENSE else None, counts.get(m, n)) for m in metrics["metrics"]
            ),
            file=_size(v["sizes"][FILE], dense["sizes"][FILE] if dense else None),
            gzip=_size(v["sizes"][GZIP], dense["sizes"][GZIP] if dense else None),
            encoder=_size(v["sizes"][VALUES], metrics["sizes_reference"]["encoder"]) if VALUES in v["sizes"] else None,
            latency=_speed("latency_ms_median", small, v, dense),
            throughput=_speed("throughput_median", large, v, dense),
        )
        for name, v in found.items()
    )
    return ClaimsTable(benchmark.task or "", metrics.get("note", ""), variants, small, large)


def variants_of(heads: Sequence[ClaimsTable]) -> list[str]:
    """Names of all variants that were measured of some task, in the order in which they appear."""
    return list(dict.fromkeys(v.name for head in heads for v in head.variants))


def binomial_error(share: float, n: int) -> float:
    """Standard error of a share of n independent examples."""
    return math.sqrt(share * (1 - share) / n)


def score_of(metric: str, value: float, n: int, reference: float | None = None) -> Score:
    """With its standard error where it has one, and its difference to the reference."""
    error = binomial_error(value, n) if metric.split(" (")[0] in _SHARES else None
    return Score(metric, value, error, None if reference is None else value - reference, n)


def _score(metric: str, scores: dict[str, float], dense: dict[str, Any] | None, n: int) -> Score:
    return score_of(metric, scores[metric], n, None if dense is None else dense["accuracy"][metric])


def _size(value: float, reference: float | None) -> Quantity:
    return Quantity(value, ratio=reference / value if reference and value else None)


def _speed(what: str, batch: int, variant: dict[str, Any], dense: dict[str, Any] | None) -> Quantity | None:
    """A figure of the run with that batch; sizes and times are better small, throughput large."""
    mine = _at(batch, variant)
    if mine is None:
        return None
    reference = _at(batch, dense) if dense else None
    ratio = None
    if reference is not None and min(mine[what], reference[what]) > 0:
        ratio = mine[what] / reference[what] if what in _LARGER_IS_BETTER else reference[what] / mine[what]
    if what in _LARGER_IS_BETTER:
        rounds = [r["throughput"] for r in mine.get("rounds", ())]
        return Quantity(mine[what], min(rounds, default=None), max(rounds, default=None), ratio)
    return Quantity(mine[what], mine.get("latency_ms_low"), mine.get("latency_ms_high"), ratio)


def _at(batch: int, variant: dict[str, Any]) -> dict[str, Any] | None:
    return next((p for p in variant["performance"] if p["batch"] == batch), None)
