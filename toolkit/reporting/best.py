"""The variant of a run that serves a target best, among those that are accurate enough."""

from collections.abc import Callable, Sequence

from toolkit.core.artifacts import Manifest
from toolkit.measure.decision import Limits, decide
from toolkit.recipe import VARIANTS
from toolkit.reporting.claims_table import VariantRow, candidates, claims_table
from toolkit.reporting.manifests import stage_of

# Target -> key by which the best of the accurate variants comes first.
_ORDER: dict[str, Callable[[VariantRow], tuple[float, ...]]] = {
    "size": lambda row: (row.file.value, row.gzip.value),
    "accuracy": lambda row: (not VARIANTS[row.name].sparse, -row.scores[0].value),
}


def best_variant(manifests: Sequence[Manifest], task: str, target: str) -> VariantRow | None:
    """Returns the benchmarked variant of a task that serves a target best.

    None if none is accurate enough, or if latency is the target and was not measured.

    Args:
        manifests: Manifests of a run.
        task: Name of the task.
        target: `latency`: the fastest; `size`: the smallest .bin, then gzip; `accuracy`: the most accurate sparse one.
    """
    benchmark = stage_of(manifests, "benchmark", task)
    if benchmark is None:
        return None
    head, limits = claims_table(benchmark), Limits.of(benchmark, stage_of(manifests, "export", task))
    decision = decide(next(iter(candidates(benchmark).values())), limits)
    if target == "latency":
        return head.variant(decision.chosen.name) if decision.chosen else None
    rows = [row for row in head.variants if row.name in {candidate.name for candidate in decision.accepted}]
    return min(rows, key=_ORDER[target], default=None)
