"""The claims table: scores, sizes and speed of each variant of a task, compared with dense FP32; numbers only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.core.artifacts import Manifest
from toolkit.measure.decision import Candidate
from toolkit.measure.significance import is_proportion, wilson_interval
from toolkit.measure.size import FILE, GZIP, VALUES
from toolkit.recipe import DENSE, VARIANTS

_LARGER_IS_BETTER = ("throughput_median",)


@dataclass(frozen=True)
class Score:
    """A metric on the dev split.

    Attributes:
        metric: Name of the metric.
        value: Score, from 0 to 1.
        interval: 95 % interval of the score on other examples of the kind (Wilson); None for metrics that are not a
            fraction of the examples (F1, correlations).
        change: Difference from dense FP32; None for dense FP32 itself, or if it was not measured.
        n: Number of evaluated examples or questions.
    """

    metric: str
    value: float
    interval: tuple[float, float] | None
    change: float | None
    n: int


@dataclass(frozen=True)
class Quantity:
    """A size or speed of a variant.

    Attributes:
        value: The figure.
        low: Lowest value over rounds; None for sizes.
        high: Highest value over rounds; None for sizes.
        ratio: Improvement over dense FP32, above 1 if smaller or faster; None if there is no reference.
    """

    value: float
    low: float | None = None
    high: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class VariantRow:
    """A row of the claims table: sizes in bytes, latency in ms per inference, throughput in examples per second."""

    name: str
    scores: tuple[Score, ...]
    file: Quantity
    gzip: Quantity
    encoder: Quantity | None
    latency: Quantity | None
    throughput: Quantity | None


@dataclass(frozen=True)
class TypeRow:
    """F1 of one type of entity.

    Attributes:
        name: The type.
        entities: How many there are in the dev split.
        f1: Name of a variant -> F1.
    """

    name: str
    entities: int
    f1: dict[str, float]


@dataclass(frozen=True)
class ClaimsTable:
    """The claims table of one task, with the batch sizes of its latency and throughput columns."""

    task: str
    note: str
    variants: tuple[VariantRow, ...]
    latency_batch: int
    throughput_batch: int
    types: tuple[TypeRow, ...] = ()

    def variant(self, name: str) -> VariantRow | None:
        """Returns the row of a variant, or None if it was not measured."""
        return next((v for v in self.variants if v.name == name), None)

    @property
    def has_intervals(self) -> bool:
        """Whether a metric is a fraction of the examples, so that its scores have intervals."""
        return any(score.interval for v in self.variants for score in v.scores)


def claims_table(benchmark: Manifest) -> ClaimsTable:
    """Returns the claims table of a benchmark's manifest."""
    metrics = benchmark.metrics
    found: dict[str, dict[str, Any]] = metrics["variants"]
    dense = found.get(DENSE)
    batches = sorted({p["batch"] for v in found.values() for p in v["performance"]}) or [1]
    small, large = batches[0], batches[-1]
    n = int(metrics["dev_n"])
    counts: dict[str, int] = metrics.get("counts", {})
    encoder = metrics["sizes_reference"].get("encoder")
    variants = tuple(
        VariantRow(
            name=name,
            scores=tuple(
                _score(m, v["accuracy"], dense if name != DENSE else None, counts.get(m, n)) for m in metrics["metrics"]
            ),
            file=_size(v["sizes"][FILE], dense["sizes"][FILE] if dense else None),
            gzip=_size(v["sizes"][GZIP], dense["sizes"][GZIP] if dense else None),
            encoder=_size(v["sizes"][VALUES], encoder) if VALUES in v["sizes"] else None,
            latency=_speed("latency_ms_median", small, v, dense),
            throughput=_speed("throughput_median", large, v, dense),
        )
        for name, v in found.items()
    )
    types = _types(metrics.get("by_type", {}))
    return ClaimsTable(benchmark.task or "", metrics.get("note", ""), variants, small, large, types)


def _types(found: dict[str, dict[str, dict[str, float]]]) -> tuple[TypeRow, ...]:
    """Returns the types of entities, the most frequent one first."""
    counted = {kind: int(scores["entities"]) for of_variant in found.values() for kind, scores in of_variant.items()}
    rows = (
        TypeRow(kind, n, {v: of[kind]["f1"] for v, of in found.items() if kind in of}) for kind, n in counted.items()
    )
    return tuple(sorted(rows, key=lambda row: (-row.entities, row.name)))


def candidates(benchmark: Manifest) -> dict[int, list[Candidate]]:
    """Returns the variants of a benchmark by batch size, to choose among; one of 0 if no latency was measured."""
    found: dict[str, dict[str, Any]] = benchmark.metrics["variants"]
    metric = benchmark.metrics["metrics"][0]
    batches = sorted({p["batch"] for v in found.values() for p in v["performance"]}) or [0]
    return {
        batch: [
            Candidate(
                name,
                VARIANTS[name],
                v["accuracy"][metric],
                tuple(timed["samples_ms"]) if (timed := _at(batch, v)) else (),
                v.get("chance"),
            )
            for name, v in found.items()
        ]
        for batch in batches
    }


def variants_of(heads: Sequence[ClaimsTable]) -> list[str]:
    """Returns the names of all variants measured on any task, in order of appearance."""
    return list(dict.fromkeys(v.name for head in heads for v in head.variants))


def score_of(metric: str, value: float, n: int, reference: float | None = None) -> Score:
    """Returns a score with its interval, if defined, and its difference from the reference."""
    interval = wilson_interval(value, n) if is_proportion(metric) else None
    return Score(metric, value, interval, None if reference is None else value - reference, n)


def _score(metric: str, scores: dict[str, float], dense: dict[str, Any] | None, n: int) -> Score:
    return score_of(metric, scores[metric], n, None if dense is None else dense["accuracy"][metric])


def _size(value: float, reference: float | None) -> Quantity:
    return Quantity(value, ratio=reference / value if reference and value else None)


def _speed(what: str, batch: int, variant: dict[str, Any], dense: dict[str, Any] | None) -> Quantity | None:
    """Returns a figure at one batch size with its ratio to dense FP32; None if that batch size was not measured."""
    found = _at(batch, variant)
    if found is None:
        return None
    reference = _at(batch, dense) if dense else None
    ratio = None
    if reference is not None and min(found[what], reference[what]) > 0:
        ratio = found[what] / reference[what] if what in _LARGER_IS_BETTER else reference[what] / found[what]
    if what in _LARGER_IS_BETTER:
        rounds = [r["throughput"] for r in found.get("rounds", ())]
        return Quantity(found[what], min(rounds, default=None), max(rounds, default=None), ratio)
    return Quantity(found[what], found.get("latency_ms_low"), found.get("latency_ms_high"), ratio)


def _at(batch: int, variant: dict[str, Any]) -> dict[str, Any] | None:
    return next((p for p in variant["performance"] if p["batch"] == batch), None)
