"""What to deploy: the decision of each task in words, first in the page, the Markdown and the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.core.artifacts import Manifest, failed_checks
from toolkit.measure.decision import Candidate, Decision, Limits, decide
from toolkit.recipe import DENSE, DENSE_INT8, VARIANTS
from toolkit.reporting import sentences
from toolkit.reporting.claims_table import ClaimsTable, VariantRow, candidates, claims_table
from toolkit.reporting.formatting import check_text, measured, milliseconds, percent, points, portable, times
from toolkit.reporting.manifests import stage_of


@dataclass(frozen=True)
class Verdict:
    """The decision of a task, or a stage that failed.

    Attributes:
        task: Name of the task; empty for a stage of all tasks.
        failed: Whether compression or a check failed, or a criterion was not met.
        headline: What to do, in a few words.
        reason: Why, in sentences.
        chosen: Name of the variant to deploy; None: none, or none can be named.
        of_benchmark: Whether it is the decision of a benchmarked task, not a stage whose checks failed.
        only_slower: Whether all that failed is the latency: a dense variant is faster.
    """

    task: str
    failed: bool
    headline: str
    reason: str
    chosen: str | None = None
    of_benchmark: bool = True
    only_slower: bool = False

    @property
    def text(self) -> str:
        """The complete verdict in one paragraph."""
        return f"{self.task + ': ' if self.task else ''}{self.headline}. {self.reason}".rstrip()


def verdicts(run: Sequence[Manifest]) -> list[Verdict]:
    """Returns the verdict of each benchmarked task and of each stage whose checks failed, failures first."""
    found = [_failed_stage(m) for m in run if failed_checks(m.checks)]
    found += [_of_task(run, m) for m in run if m.stage == "benchmark"]
    return sorted(found, key=lambda v: not v.failed)


def headline(found: Sequence[Verdict]) -> str:
    """Returns the first line of a report: the only verdict, or the number of each kind."""
    if not found:
        return "Nothing to deploy yet: no variant was measured"
    if len(found) == 1:
        return f"{found[0].task + ': ' if found[0].task else ''}{found[0].headline}"
    tasks = [v for v in found if v.of_benchmark]
    counts = {
        "failed for": sum(v.failed for v in tasks),
        "worked for": sum(not v.failed and v.chosen is not None for v in tasks),
        "undecided for": sum(not v.failed and v.chosen is None for v in tasks),
    }
    broken = len(found) - len(tasks)
    parts = [f"compression {', '.join(f'{what} {n}' for what, n in counts.items() if n)}"] if tasks else []
    parts += [f"{broken} stage{'s' * (broken > 1)} failed a check"] if broken else []
    return f"{len(tasks)} task{'s' * (len(tasks) != 1)}: {'; '.join(parts)}"


def failures(run: Sequence[Manifest], *, latency_counts: bool = True) -> list[str]:
    """Returns a line for each failed verdict, and for each task that was not benchmarked and misses its criterion.

    Args:
        run: Manifests of a run.
        latency_counts: Whether a dense variant that is faster is a failure.
    """
    measured_tasks = {m.task for m in run if m.stage == "benchmark"}
    missed = [m for m in run if m.stage != "benchmark" and m.task not in measured_tasks]
    found = [v for v in verdicts(run) if v.failed and (latency_counts or not v.only_slower)]
    return [v.text for v in found] + sentences.missed_criteria(missed)


def _failed_stage(manifest: Manifest) -> Verdict:
    broken = failed_checks(manifest.checks)
    lines = [
        f"{check_text(c.name)}: {portable(measured(c.measured))}, limit {check_text(measured(c.limit))}"
        + (f"; instead: {c.instead}" if c.instead else "")
        for c in broken
    ]
    count = f"{len(broken)} check{'s' * (len(broken) > 1)}"
    return Verdict(manifest.task or "", True, f"{manifest.stage} failed {count}", "; ".join(lines) + ".", None, False)


def _of_task(run: Sequence[Manifest], benchmark: Manifest) -> Verdict:
    head = claims_table(benchmark)
    limits = Limits.of(benchmark, stage_of(run, "export", head.task))
    by_batch = {batch: decide(found, limits) for batch, found in candidates(benchmark).items()}
    decision = next(iter(by_batch.values()))
    metric = head.variants[0].scores[0].metric
    missed = [s for s, met in sentences.criteria(benchmark) if not met]
    chosen = decision.chosen
    deploy = f"Deploy {chosen.name}" if chosen else "Deploy none of the variants"
    parts = [failure_text(decision, metric), *missed]
    if chosen is None and not decision.failure:
        first = "No variant can be named: latency was not measured"
        accepted = ", ".join(c.name for c in decision.accepted) or "none"
        parts.append(f"Accurate enough: {accepted}.")
    elif decision.failure:
        first = f"{failed_headline(decision)}. {deploy}"
    else:
        # Not "Deploy": its accuracy is enough in total, but zeros or 8 bits alone lose more than the recipe allows.
        best = f"The best variant is {chosen.name}" if chosen else deploy
        first = f"{sentences.criterion_name(metric).capitalize()} not met. {best}" if missed else deploy
    if chosen is not None:
        parts += _reasons(head, decision, limits, benchmark)
        others = {b: d.chosen for b, d in by_batch.items() if d.chosen and d.chosen.name != chosen.name}
        parts += [
            f"At batch {batch}: {other.name} ({milliseconds(other.latency_ms)})." for batch, other in others.items()
        ]
    return Verdict(
        head.task,
        bool(decision.failure or missed),
        first,
        " ".join(filter(None, parts)),
        chosen.name if chosen else None,
        only_slower=decision.failure == "slower" and not missed,
    )


def failed_headline(decision: Decision) -> str:
    """Returns in a few words why compression failed."""
    what = "Compression" if decision.best and decision.best.variant.sparse else "Quantization"
    rival = decision.rival.name if decision.rival else DENSE
    return {
        "reference at chance": f"{decision.reference.name} is at chance, so nothing can be compared",
        "at chance": f"{what} failed: the score is at chance",
        "loss": f"{what} failed: it loses more than the criterion allows",
        "slower": f"{what} failed: {rival} is faster",
    }[decision.failure or "loss"]


def failure_text(decision: Decision, metric: str) -> str:
    """States the figures because of which compression failed; empty if it did not."""
    reference, best, rival = decision.reference, decision.best, decision.rival
    if decision.failure is None or best is None:
        return ""
    if decision.failure == "reference at chance":
        found = f"The reference, {_reached(reference, metric)}; up to {percent(reference.chance or 0)} is chance."
        return f"{found} Train the task teacher longer, or check labels and data."
    if decision.failure == "at chance":
        return f"The best compressed variant, {_reached(best, metric)}; up to {percent(best.chance or 0)} is chance."
    if decision.failure == "loss":
        lost = f"{points(best.score - reference.score)} points against {reference.name}" if best != reference else ""
        return f"The best compressed variant, {_reached(best, metric)}{', ' + lost if lost else ''}."
    assert rival is not None
    return (
        f"The fastest compressed variant that is accurate enough, {best.name}, takes "
        f"{milliseconds(best.latency_ms)}, {rival.name} {milliseconds(rival.latency_ms)}."
    )


def _reached(candidate: Candidate, metric: str) -> str:
    return f"{candidate.name}, reaches {percent(candidate.score)} {metric}"


def _reasons(head: ClaimsTable, decision: Decision, limits: Limits, benchmark: Manifest) -> list[str]:
    """Returns sentences on accuracy, speed and size of the chosen variant, against both dense ones."""
    chosen, reference = decision.chosen, decision.reference
    assert chosen is not None
    row = head.variant(chosen.name)
    assert row is not None
    metric, cpu = row.scores[0].metric, benchmark.machine.get("cpu") or "this CPU"
    floor = limits.floor(chosen.variant, reference.variant, reference.score)
    both = ", after what zeros and 8 bits may each lose" if chosen.variant.sparse and chosen.variant.int8 else ""
    enough = "" if chosen.name == reference.name else f" (at least {percent(floor)} is required{both})"
    fastest = "the fastest" if len(decision.accepted) > 1 else "the only one"
    speed = f"takes {milliseconds(chosen.latency_ms)} on {cpu} at batch {head.latency_batch}"
    reached = f"{chosen.name} reaches {percent(chosen.score)} {metric}{enough}"
    lines = [f"{reached} and {speed}: {fastest} that is accurate enough."]
    others = [head.variant(name) for name in (DENSE, DENSE_INT8) if name != chosen.name]
    lines += [_against(row, other) for other in others if other]
    if not any(not VARIANTS[v.name].sparse for v in head.variants):
        lines.append("No dense variant was exported, so what compression cost is not known.")
    if decision.ties:
        lines.append(f"Within measurement noise: {', '.join(c.name for c in decision.ties)}.")
    return lines


def _against(row: VariantRow, other: VariantRow) -> str:
    change = row.scores[0].value - other.scores[0].value
    parts = [f"{points(change)} points"]
    if row.latency and other.latency and row.latency.value > 0:
        parts.append(f"{times(other.latency.value / row.latency.value)} as fast")
    if row.file.value and other.file.value:
        parts.append(f".bin file {_smaller(other.file.value / row.file.value)}")
    return f"Against {other.name}: {', '.join(parts)}."


def _smaller(ratio: float) -> str:
    if abs(ratio - 1) < 0.005:
        return "of the same size"
    return f"{times(ratio)} smaller" if ratio > 1 else f"{times(1 / ratio)} larger"


def chosen_of(found: Sequence[Verdict], task: str) -> str | None:
    """Returns the name of the variant of a task to deploy, whose row is highlighted."""
    return next((v.chosen for v in found if v.task == task and v.chosen), None)
