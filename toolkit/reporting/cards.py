"""Model cards of exported IRs in the Hugging Face hub's format, from manifests and the files of the IR folders."""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from toolkit.core.artifacts import Check, Manifest, failed_checks
from toolkit.core.errors import UserError
from toolkit.core.files import CARD, MANIFEST, write_atomic
from toolkit.ir.runtime import MODEL
from toolkit.recipe import VARIANTS, Recipe
from toolkit.recipe.load import load_recipe, parse_recipe
from toolkit.recipe.references import HUB_PREFIX, HUB_SPLIT
from toolkit.reporting import formatting, sentences
from toolkit.reporting.audit import audit_of, benchmark_of, rests_on
from toolkit.reporting.card_facts import Facts, facts_of
from toolkit.reporting.claims_table import Score, claims_table, score_of
from toolkit.reporting.manifests import count_of
from toolkit.reporting.portable import recipe_of_task, without_paths

_TEMPLATE = f"{CARD}.j2"
# Last line of a card; without its match the text was changed since, by hand.
_SEAL = re.compile(r"\n<!-- written by pruneofa; sha256 of the text above: ([0-9a-f]{64}) -->\n\Z")


def write_cards(run: Sequence[Manifest], folder: Path, task: str | None = None) -> list[Path]:
    """Writes the model card and the manifest of each exported variant into its IR folder.

    A card that was written or changed by hand stays as it is. A run of a version that stored no recipe has none.

    Args:
        run: Manifests of the run's finished stages.
        folder: The run folder.
        task: Name of the only task whose cards are written; None: all.

    Returns:
        Paths of cards that were written or changed by hand.
    """
    kept = []
    for export in (m for m in run if m.stage == "export" and task in (None, m.task)):
        for variant in export.metrics["variants"]:
            rest = rests_on(run, export, variant)
            recipe = _recipe(rest[-1], export, folder)
            target = folder / "tasks" / str(export.task) / "export" / variant
            if recipe is None or export.task not in recipe.tasks or not (target / MODEL).is_file():
                continue
            known = [recipe.model_dump(mode="json"), str(folder.resolve())]
            audit = audit_of(rest, export, variant, target, known)
            if _is_changed(target):
                kept.append(target / CARD)
            else:
                write_atomic(target / CARD, card_text(rest, export, variant, recipe, target, audit, known))
            write_atomic(target / MANIFEST, json.dumps(audit, indent=1) + "\n")
    return kept


def _recipe(first: Manifest, export: Manifest, folder: Path) -> Recipe | None:
    """Returns the recipe that a stage was run with, else that of the run folder; None: none can be read."""
    for manifest in (first, export):
        if text := manifest.run.get("recipe"):
            with suppress(UserError):  # of another version
                return parse_recipe(text, manifest.stage)
    with suppress(UserError):
        return load_recipe(folder / "recipe.yaml")
    return None


def _is_changed(folder: Path) -> bool:
    """Returns whether the card of an IR folder was written or changed by hand: it has no seal, or another text."""
    if not (folder / CARD).is_file():
        return False
    text = (folder / CARD).read_text(encoding="utf-8", errors="replace")
    seal = _SEAL.search(text)
    return seal is None or seal[1] != _digest(text[: seal.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def card_text(
    rest: Sequence[Manifest],
    export: Manifest,
    variant: str,
    recipe: Recipe,
    folder: Path,
    audit: dict[str, Any],
    known: Any,
) -> str:
    """Returns the text of a model card, with its front matter.

    Args:
        rest: The manifests that the variant rests on.
        export: That of the export.
        variant: Name of the variant.
        recipe: Recipe of the run.
        folder: IR folder of the variant.
        audit: The manifest beside the card.
        known: Values such as the recipe, whose paths may occur in texts.
    """
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, PackageLoader, StrictUndefined

    facts = facts_of(rest, export, variant, recipe, folder)
    benchmark = benchmark_of(rest, export, variant)
    scores, sizes, speeds = _figures(export, benchmark, variant, audit)
    name = f"{facts.run}, {facts.task}: {variant}"
    more: dict[str, Any] = dict(facts.license)
    more |= {"base_model_relation": "quantized"} if facts.base_model and VARIANTS[variant].int8 else {}
    data = ModelCardData(
        base_model=facts.base_model or None,
        library_name=facts.library,
        pipeline_tag=facts.pipeline,
        tags=facts.tags,
        model_name=name,
        eval_results=[_result(facts, score) for score in scores],
        **more,
    )
    environment = Environment(
        loader=PackageLoader("toolkit.reporting", "templates"),
        autoescape=False,
        finalize=formatting.in_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= formatting.FILTERS | {"verbatim": formatting.Verbatim}
    text = recipe_of_task(recipe, facts.task)
    checks = _checks(export, variant)
    body = environment.get_template(_TEMPLATE).render(
        facts=facts,
        name=name,
        scores=scores,
        sizes=sizes,
        speeds=speeds,
        benchmark=benchmark,
        hardware=formatting.hardware([benchmark.machine]) if benchmark else "",
        checks=checks,
        failed=failed_checks(checks),
        note=without_paths(facts.section.note, known).rstrip("."),
        left_out=without_paths(sentences.rows_left_out(rest, facts.task), known),
        files=without_paths(_data_files(rest), known),
        recipe=text,
        fence="```" if "```" not in text else "`" * 8,
        seed=export.seed,
        versions=export.versions,
        commit=export.commit,
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{body}".rstrip("\n") + "\n"
    return f"{text}\n<!-- written by pruneofa; sha256 of the text above: {_digest(text)} -->\n"


def _figures(
    export: Manifest, benchmark: Manifest | None, variant: str, audit: dict[str, Any]
) -> tuple[list[Score], dict[str, int], list[dict[str, Any]]]:
    """Returns scores, sizes and speeds of a variant; before the benchmark those that the export has measured."""
    if benchmark is None:
        found = export.metrics["variants"][variant]
        scores = [score_of(metric, value, count_of(found, metric)) for metric, value in found["ir"].items()]
        stored = audit["files"].get("openvino_model.bin", {}).get("bytes", 0)
        return scores, {"file: .bin": stored}, []
    row, measured = claims_table(benchmark).variant(variant), benchmark.metrics["variants"][variant]
    assert row is not None
    sizes = {formatting.size_label(label): size for label, size in measured["sizes"].items()}
    return list(row.scores), sizes, measured["performance"]


def _result(facts: Facts, score: Score) -> Any:
    """Returns a score as an entry of the front matter's `model-index`."""
    from huggingface_hub import EvalResult

    hub = HUB_SPLIT.fullmatch((facts.section.dev or "").removeprefix(HUB_PREFIX))
    first = hub if hub and (facts.section.dev or "").startswith(HUB_PREFIX) and " (" not in score.metric else None
    name = without_paths(first["name"]) if first else facts.task
    extra: dict[str, Any] = {"n": score.n}
    extra |= {"interval_95": [round(end, 4) for end in score.interval]} if score.interval else {}
    return EvalResult(
        task_type=facts.pipeline,
        dataset_type=name.partition("@")[0],
        dataset_name=facts.task,
        dataset_config=(first["config"] or None) if first else None,
        dataset_split=first["split"] if first else None,
        metric_type=score.metric.partition(" (")[0],
        metric_name=score.metric,
        metric_value=round(score.value, 4),
        metric_args=extra,
    )


def _checks(export: Manifest, variant: str) -> list[Check]:
    return [check for check in export.checks if check.name.startswith(f"{variant}: ")]


def _data_files(rest: Sequence[Manifest]) -> list[tuple[str, str]]:
    """Returns names and hashes of the data files of the task and of the pre-training text."""
    found = {
        (name, entry["sha256"]): None
        for m in rest
        for name, entry in m.data.items()
        if isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
    }
    return list(found)
