"""The variant of a run that serves a target best, among those that are accurate enough."""

from collections.abc import Callable, Sequence

from toolkit.core.artifacts import Manifest
from toolkit.recipe import DENSE, VARIANTS
from toolkit.reporting.claims_table import VariantRow, claims_table
from toolkit.reporting.manifests import stage_of

_WITHIN = 0.01  # largest loss, as a fraction of the reference's score

# Target -> key by which the best of the accurate variants comes first.
_ORDER: dict[str, Callable[[VariantRow], tuple[float, ...]]] = {
    "latency": lambda row: (row.latency.value if row.latency else 0.0,),
    "size": lambda row: (row.file.value, row.gzip.value),
    "accuracy": lambda row: (not VARIANTS[row.name].sparse, -row.scores[0].value),
}


def best_variant(manifests: Sequence[Manifest], task: str, target: str) -> VariantRow | None:
    """Returns the benchmarked variant of a task that serves a target best; None if none is accurate enough.

    Args:
        manifests: Manifests of a run.
        task: Name of the task.
        target: `latency`: the fastest; `size`: the smallest .bin, then gzip; `accuracy`: the most accurate sparse one.
    """
    benchmark = stage_of(manifests, "benchmark", task)
    if benchmark is None:
        return None
    return min(_accepted(benchmark), key=_ORDER[target], default=None)


def _accepted(benchmark: Manifest) -> list[VariantRow]:
    """Returns the variants whose first score is at most 1 % below dense FP32's, or else below the best."""
    head = claims_table(benchmark)
    dense = head.variant(DENSE)
    reference = dense.scores[0].value if dense else max(row.scores[0].value for row in head.variants)
    return [row for row in head.variants if row.scores[0].value >= reference * (1 - _WITHIN) - 1e-12]
