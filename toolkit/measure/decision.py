"""The variant to deploy: the fastest one that is accurate enough, and whether compression was worth it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from toolkit.core.artifacts import Manifest
from toolkit.recipe import DENSE, AccuracyCriterion, TransferTuning, Tuning, Variant

Failure = Literal["reference at chance", "at chance", "loss", "slower"]


@dataclass(frozen=True)
class Limits:
    """What zeros and 8 bits may cost; a variant with both may lose both, one after the other."""

    zeros: AccuracyCriterion = TransferTuning().accuracy_criterion
    int8: AccuracyCriterion = Tuning().accuracy_criterion

    def floor(self, variant: Variant, reference: Variant, score: float) -> float:
        """Returns the lowest score of a variant that is accurate enough.

        Args:
            variant: The variant.
            reference: The variant that it is compared with; what both have costs nothing.
            score: Score of the reference.
        """
        if variant.sparse and not reference.sparse:
            score = self.zeros.floor(score)
        return self.int8.floor(score) if variant.int8 and not reference.int8 else score

    @classmethod
    def of(cls, benchmark: Manifest | None, export: Manifest | None) -> "Limits":
        """Returns the limits of a task's recipe, from its manifests; the defaults where they record none."""
        configs = [manifest.config for manifest in (benchmark, export) if manifest]
        zeros = [(config.get("transfer_tuning") or {}).get("accuracy_criterion") for config in configs]
        int8 = [((config.get("quantize") or {}).get("tuning") or {}).get("accuracy_criterion") for config in configs]
        found = (next(filter(None, given), None) for given in (zeros, int8))
        named = zip(("zeros", "int8"), found, strict=True)
        return cls(**{name: AccuracyCriterion.model_validate(values) for name, values in named if values})


@dataclass(frozen=True)
class SameForAll:
    """One limit for every variant, whatever it has lost its accuracy by."""

    criterion: AccuracyCriterion

    def floor(self, variant: Variant, reference: Variant, score: float) -> float:
        """Returns the lowest score of a variant that is accurate enough."""
        return self.criterion.floor(score)


@dataclass(frozen=True)
class Candidate:
    """A measured variant.

    Attributes:
        name: Name by which it is shown; the variant's own, unless it was measured in several ways.
        variant: The variant.
        score: Score of the task's first metric on the dev split.
        samples_ms: Median latency of each round; empty if latency was not measured.
        chance: Highest score that a model without skill may have; None if it was not measured.
    """

    name: str
    variant: Variant
    score: float
    samples_ms: tuple[float, ...] = ()
    chance: float | None = None

    @property
    def latency_ms(self) -> float:
        """Median latency over the rounds."""
        return median(self.samples_ms)

    @property
    def at_chance(self) -> bool:
        """Whether the score is one that a model without skill may have."""
        return self.chance is not None and self.score <= self.chance + 1e-9  # a mean of equal scores may be rounded

    def slower_than(self, other: "Candidate") -> bool:
        """Returns whether every round was slower than all rounds of another variant."""
        return min(self.samples_ms) > max(other.samples_ms)


@dataclass(frozen=True)
class Decision:
    """The choice among the variants of a task at one batch size.

    Attributes:
        reference: The variant that the others are compared with: dense FP32, else the best score.
        accepted: Variants that are accurate enough, fastest first; in their own order if latency was not measured.
        chosen: The variant to deploy; None if none is accurate enough, or latency was not measured.
        ties: Other accepted variants whose range over rounds overlaps with that of `chosen`.
        failure: Why compression failed; None if it did not.
        rival: For `slower`: the dense variant that is faster than every compressed one.
        best: The compressed variant that the failure is about: the fastest accepted one, else the best score.
    """

    reference: Candidate
    accepted: tuple[Candidate, ...]
    chosen: Candidate | None
    ties: tuple[Candidate, ...]
    failure: Failure | None
    rival: Candidate | None
    best: Candidate | None


def decide(candidates: Sequence[Candidate], limits: "Limits | SameForAll") -> Decision:
    """Returns the variant to deploy: the fastest one that loses no more than it may against the reference.

    Compression has failed if the reference or all compressed variants are at chance, if all compressed ones lose too
    much, or if a dense variant that is accurate enough is faster in every round. The compressed variants are the
    sparse ones; of a model without zeros, those in INT8.

    Args:
        candidates: At least one variant; either all have a latency, or none.
        limits: What a variant may lose.
    """
    dense = next((c for c in candidates if c.variant.name == DENSE), None)
    reference = dense or max(candidates, key=lambda c: c.score)
    timed = all(c.samples_ms for c in candidates)
    accepted = [
        c
        for c in candidates
        # 0.90 - 0.89 is not exactly 0.01
        if not c.at_chance and c.score >= limits.floor(c.variant, reference.variant, reference.score) - 1e-12
    ]
    compressed = [c for c in candidates if c.variant.sparse] or [c for c in candidates if c.variant.int8]
    incomparable = reference.at_chance and reference not in compressed
    if incomparable:
        accepted = []
    if timed:
        accepted.sort(key=lambda c: c.latency_ms)
    chosen = accepted[0] if accepted and timed else None
    ties = tuple(c for c in accepted[1:] if chosen and not c.slower_than(chosen))
    good = [c for c in accepted if c in compressed]
    best = good[0] if good else max(compressed, key=lambda c: c.score, default=None)
    rival = next((c for c in accepted if c not in compressed), None)
    failure: Failure | None = None
    if incomparable:
        failure = "reference at chance"
    elif compressed and all(c.at_chance for c in compressed):
        failure = "at chance"
    elif compressed and not good:
        failure = "loss"
    elif timed and good and rival and best and best.slower_than(rival):
        failure = "slower"
    return Decision(reference, tuple(accepted), chosen, ties, failure, rival, best)
