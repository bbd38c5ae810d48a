"""Summary sentences of the report, shared by the page, the Markdown and the terminal."""

from collections.abc import Sequence
from typing import Any

from toolkit.core.artifacts import Manifest
from toolkit.models.checkpoint import MIN_SPARSITY
from toolkit.recipe import DENSE, SHIPPED, VARIANTS, engine_variant
from toolkit.reporting.budgets import PAPER_BATCH, PAPER_STEPS, Budget
from toolkit.reporting.claims_table import ClaimsTable, Quantity, VariantRow, claims_table
from toolkit.reporting.formatting import milliseconds, number, percent, points, score, storage, times


def summary(head: ClaimsTable, sparse: Manifest | None, chosen: str | None = None) -> str:
    """Summarizes the measurements of the variant to deploy, else of sparse-int8, else of the last variant.

    Args:
        head: The claims table.
        sparse: Manifest with the sparsity of the task's model; None without a sparse model.
        chosen: Name of the variant to deploy; None: none.
    """
    variant = head.variant(chosen or SHIPPED) or head.variants[-1]
    first = variant.scores[0]
    zeros = f" ({model_kind(sparse)})" if VARIANTS[variant.name].sparse and sparse is not None else ""
    text = f"{variant.name}{zeros} reaches {score(first)} {first.metric} on {first.n:,} dev examples"
    if first.change is not None:
        text += f", {points(first.change)} points relative to {DENSE}"
    text += f". {_size_sentence(variant)}"
    if variant.latency is not None:
        text += f" Inference at batch size {head.latency_batch} takes {_time(variant.latency)}"
        name = engine_variant(variant.name)
        engine = head.variant(name) if name else None
        if engine is not None and engine.latency is not None:
            text += f"; on the sparse engine ({engine.name}) {_time(engine.latency)}"
        text += "."
    if not VARIANTS[variant.name].sparse and sparse is not None and model_kind(sparse) != "dense":
        text += f" The compressed model: {model_kind(sparse)}."
    return text


def model_kind(compressed: Manifest) -> str:
    """Describes a compressed model by the layers that it has kept and its zeros; one without zeros is dense.

    Args:
        compressed: Manifest of a stage that records both.
    """
    found = compressed.metrics
    depth = f"{len(found['kept_layers'])} of {found['layers_before']} layers" if found.get("kept_layers") else ""
    if not has_zeros(compressed):
        return f"dense, {depth}".removesuffix(", ")
    zeros = f"{percent(found['sparsity'])} of the encoder's weights are zero"
    return f"{depth}, {zeros}" if depth else zeros


def has_zeros(compressed: Manifest) -> bool:
    """Returns whether a model was pruned; one that is only quantized records a sparsity of 0."""
    return (compressed.metrics.get("sparsity") or 0.0) >= MIN_SPARSITY


def run_title(student: Manifest) -> str:
    """Describes the student of a run for a heading: its sparsity, its layers and its training steps."""
    found, steps = student.metrics, number(student.metrics["steps"])
    if found.get("sparsity") is None:
        return f"{model_kind(student)}, {steps} steps of distillation"
    depth = f"{len(found['kept_layers'])} of {found['layers_before']} layers, " if found.get("kept_layers") else ""
    return f"{depth}{percent(found['sparsity'])} sparsity, {steps} pruning steps"


def _time(latency: Quantity) -> str:
    ratio = f", {times(latency.ratio)} the speed of {DENSE}" if latency.ratio else ""
    return f"{milliseconds(latency.value)}{ratio}"


def _size_sentence(variant: VariantRow) -> str:
    if variant.file.ratio is None:
        return f"Its .bin file takes {storage(variant.file.value)}."
    text = f"Its .bin file is {times(variant.file.ratio)} smaller, {times(variant.gzip.ratio)} after gzip"
    if variant.encoder is None or variant.encoder.ratio is None:
        return f"{text}."
    encoder = f"its encoder is {times(variant.encoder.ratio)} smaller by the paper's definition (kept values only)"
    return f"{text}; {encoder}."


def criteria(benchmark: Manifest) -> list[tuple[str, bool]]:
    """States for each accuracy criterion (8 bits, zeros) whether the dev split meets it: the sentence, and a bool."""
    found = []
    for key, what, before in (("accuracy_criterion", "INT8", "FP32"), ("zeros_criterion", "the sparse model", "dense")):
        c = benchmark.metrics.get(key)
        if not c:
            continue
        unit = f" of the {before} score" if c["kind"] == "relative" else ""
        limit, difference = percent(c["promised"], 2), percent(abs(c["measured"]), 2)
        verb = "lost" if c["measured"] >= 0 else "gained"
        name = criterion_name(c["metric"]).capitalize() + (" of the zeros" if key == "zeros_criterion" else "")
        verdict = "met" if c["met"] else "not met"
        text = f"{name} {verdict}: {what} {verb} {difference}{unit} in {c['metric']}, loss limit {limit}."
        found.append((text, c["met"]))
    return found


def criterion(benchmark: Manifest) -> str:
    """States whether the accuracy criteria are met on the dev split; empty if none was evaluated."""
    return " ".join(text for text, _ in criteria(benchmark))


def criterion_name(metric: str) -> str:
    """Returns what the recipe's `accuracy_criterion` is called beside a metric, which need not be an accuracy."""
    return "accuracy criterion" if metric.startswith("accuracy") else "criterion"


def left_out(export: Manifest | None) -> list[str]:
    """States for each requested variant that was not exported the reason."""
    found = export.metrics.get("left_out", {}) if export else {}
    return [f"{variant} was not exported: {reason}." for variant, reason in found.items()]


def rows_left_out(run: Sequence[Manifest], task: str) -> list[str]:
    """States for each of the task's files how many rows were left out."""
    lines = [found for m in run if m.task == task and (found := m.metrics.get("rows_left_out"))]
    return [f"{line}." for line in lines[0]] if lines else []  # equal for all stages


def tuning(found: dict[str, Any]) -> str:
    """Summarizes the tuning to the accuracy criterion; empty if the first trial met it."""
    trials, returned = found["trials"], found["returned"]
    if len(trials) == 1 and found["met"]:
        return ""
    n = f"{found['examples']:,} training examples set aside for tuning"
    if not found["met"]:
        none = "The only trial does not meet" if len(trials) == 1 else f"None of the {len(trials)} trials meets"
        return f"{none} the {criterion_name(found['metric'])} on {n}; the best model is selected."
    missed = f"With all operations in INT8 the {criterion_name(found['metric'])} is not met. "
    first = "" if trials[0]["met"] else missed
    kept = f"{len(returned)} of {len(found['sensitivity'])} operations kept in FP32" if returned else "all in INT8"
    return f"{first}Of {len(trials)} trials on {n}, number {found['kept']} is selected: {kept}."


def tuning_cost(found: dict[str, Any], number: int) -> str:
    """Formats the cost of a trial in the objective's unit; empty if it was not measured."""
    cost = found["costs"].get(str(number))
    if cost is None:
        return ""
    return milliseconds(cost) if found["objective"] == "performance" else storage(cost)


def missed_criteria(manifests: Sequence[Manifest]) -> list[str]:
    """Returns a line for each accuracy criterion of a task that is not met; without a benchmark, tuning decides."""
    lines = [
        f"{m.task}: {text.removesuffix('.')}, n = {claims_table(m).variants[0].scores[0].n:,}."
        for m in manifests
        for text, met in criteria(m)
        if not met
    ]
    measured = {m.task for m in manifests if m.stage == "benchmark"}
    for m in manifests:
        found = m.metrics.get("tuning")
        if found and not found["met"] and m.task not in measured:
            lines.append(f"{m.task}: {tuning(found)}")
    return lines


_METHODS = {"admm": "ADMM", "obs": "SparseGPT (OBS)"}


def reconstruction(student: Manifest | None) -> str:
    """Summarizes the reconstruction of a student by its last layer; empty without one."""
    found = student.metrics.get("reconstruction") if student else None
    if not found:
        return ""
    last = list(found["layers"].values())[-1]
    return (
        f"At the last mask update, {_METHODS.get(found['method'], found['method'])} chose the zeros and computed the "
        f"kept weights again, {'with' if found['error_correction'] else 'without'} error correction, from "
        f"{found['sequences']:,} sequences ({found['tokens']:,} tokens) of the corpus. On held-out text the relative "
        f"error of the last layer's outputs was then {last['after']:.3f}; with as many zeros chosen by magnitude and "
        f"no weight changed, {last['before']:.3f}."
    )


def budget(budgets: Sequence[Budget]) -> str:
    """Compares the pruning budget with the paper's; empty without a student stage."""
    student = next((b for b in budgets if b.stage == "student"), None)
    if student is None or not student.paper_sequences:
        return ""
    factor = student.paper_sequences / student.sequences
    used = f"The student was pruned in {student.steps:,} steps × {student.batch:,} sequences"
    paper = f"the paper used {PAPER_STEPS:,} × {PAPER_BATCH}"
    if factor <= 1:
        return f"{used}; {paper}."
    return (
        f"{used}; {paper}, {number(round(factor))} times as many sequences. "
        "Scores at this budget show that the method works, not what it can reach."
    )
