"""How figures are written, and the sentences made of them; shared by the page, the Markdown and the terminal."""

from collections.abc import Sequence
from typing import Any

from toolkit.core.artifacts import Manifest
from toolkit.recipe import DENSE, SHIPPED, VARIANTS, engine_variant
from toolkit.reporting.budgets import PAPER_BATCH, PAPER_STEPS, Budget
from toolkit.reporting.claims_table import ClaimsTable, Quantity, VariantRow, claims_table
from toolkit.reporting.formatting import milliseconds, number, percent, points, score, storage, times


def summary(head: ClaimsTable, sparse: Manifest | None) -> str:
    """What was measured of the shipped variant, in words; of the last one where that was not exported.

    Args:
        head: The claims table.
        sparse: A stage that says how many zeros the task's model has.
    """
    variant = head.variant(SHIPPED) or head.variants[-1]
    first = variant.scores[0]
    zeros = ""
    if VARIANTS[variant.name].sparse and sparse is not None:
        zeros = f" ({percent(sparse.metrics['sparsity'])} of the encoder's weights are zero)"
    text = f"{variant.name}{zeros} scores {score(first)} {first.metric} on {first.n:,} dev examples"
    if first.change is not None:
        text += f", {points(first.change)} points against {DENSE}"
    text += f". {_size_sentence(variant)}"
    if variant.latency is not None:
        text += f" One inference at batch {head.latency_batch} takes {_time(variant.latency)}"
        name = engine_variant(variant.name)
        engine = head.variant(name) if name else None
        if engine is not None and engine.latency is not None:
            text += f"; on the sparse kernel, as {engine.name}, {_time(engine.latency)}"
        text += "."
    return text


def _time(latency: Quantity) -> str:
    ratio = f", {times(latency.ratio)} the speed of {DENSE}" if latency.ratio else ""
    return f"{milliseconds(latency.value)}{ratio}"


def _size_sentence(variant: VariantRow) -> str:
    if variant.file.ratio is None:
        return f"Its .bin file has {storage(variant.file.value)}."
    text = f"Its .bin file is {times(variant.file.ratio)} smaller as it is and {times(variant.gzip.ratio)} after gzip"
    if variant.encoder is None or variant.encoder.ratio is None:
        return f"{text}."
    return f"{text}; its encoder, counted as the paper does (kept values only), {times(variant.encoder.ratio)}."


def criterion(benchmark: Manifest) -> str:
    """The recipe's promise on 8 bits and whether it was kept; empty where there was none to measure."""
    found = benchmark.metrics.get("accuracy_criterion")
    if not found:
        return ""
    unit = " of the FP32 score" if found["kind"] == "relative" else ""
    promised, lost = percent(found["promised"], 2) + unit, percent(abs(found["measured"]), 2) + unit
    verb = "cost" if found["measured"] >= 0 else "gained"
    verdict = "kept" if found["met"] else "missed"
    return f"8 bits may cost {promised} in {found['metric']}; they {verb} {lost}: {verdict}."


def left_out(export: Manifest | None) -> list[str]:
    """Which of the wanted variants were not exported, and why: a sentence for each."""
    found = export.metrics.get("left_out", {}) if export else {}
    return [f"{variant} was left out: {why}." for variant, why in found.items()]


def rows_left_out(run: Sequence[Manifest], task: str) -> list[str]:
    """Which rows of the task's files no stage has seen: a sentence for each file."""
    told = [found for m in run if m.task == task and (found := m.metrics.get("rows_left_out"))]
    return [f"{line}." for line in told[0]] if told else []  # each stage tells the same


def tuning(found: dict[str, Any]) -> str:
    """What the search for a model that keeps the promise came to, in words; empty where the first trial kept it."""
    trials, returned = found["trials"], found["returned"]
    if len(trials) == 1 and found["met"]:
        return ""
    n = f"{found['examples']:,} training examples that were set aside"
    if not found["met"]:
        return f"No quantized model of {len(trials)} tried keeps the accuracy criterion on {n}; the best one is kept."
    first = "" if trials[0]["met"] else "8 bits everywhere miss the accuracy criterion. "
    kept = f"{len(returned)} of {len(found['sensitivity'])} operations run in FP32" if returned else "8 bits everywhere"
    return f"{first}Of {len(trials)} quantized models tried on {n}, number {found['kept']} is kept: {kept}."


def tuning_cost(found: dict[str, Any], number: int) -> str:
    """What a trial costs in the objective's unit; empty where it was not measured."""
    cost = found["costs"].get(str(number))
    if cost is None:
        return ""
    return milliseconds(cost) if found["objective"] == "performance" else storage(cost)


def missed_criteria(manifests: Sequence[Manifest]) -> list[str]:
    """One line for each task whose accuracy criterion was not met; by tuning's figures where there are no others."""
    missed = [m for m in manifests if (m.metrics.get("accuracy_criterion") or {}).get("met") is False]
    lines = [f"{m.task}: {criterion(m)} (n = {claims_table(m).variants[0].scores[0].n:,})" for m in missed]
    measured = {m.task for m in manifests if m.stage == "benchmark"}
    for m in manifests:
        found = m.metrics.get("tuning")
        if found and not found["met"] and m.task not in measured:
            lines.append(f"{m.task}: {tuning(found)}")
    return lines


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
