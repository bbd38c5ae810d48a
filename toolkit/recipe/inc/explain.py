"""Annotated YAML of a translated recipe: comments give the origin of each value and the library that implements it."""

from typing import Any, get_args

from toolkit.core.yaml_document import KeyPath, dump_flow
from toolkit.recipe.inc.inc_file import IncPlan
from toolkit.recipe.pruning import Backend, WeightCompression, unsupported

_WIDTH = 44  # column of the comments

# Keys that back ends implement differently, or differently from INC -> comment on the implementation.
_IMPLEMENTATION: dict[KeyPath, str] = {
    ("transfer", "pruning", "backend"): "inc selects the weights; alternatives: nncf, magnitude, see the pruners",
    (
        "transfer",
        "pruning",
        "approach",
        "weight_compression",
        "sparsity_decay_type",
    ): "schedule of the toolkit for every back end, as defined by INC",
    (
        "transfer",
        "pruning",
        "approach",
        "weight_compression",
        "prune_domain",
    ): "local: each matrix; global: all together; nncf scales each matrix by its norm first",
    ("quantize", "quantization", "approach"): "implemented by NNCF",
    (
        "quantize",
        "quantization",
        "model_wise",
        "weight",
        "granularity",
    ): "NNCF: per_channel or per_tensor scales, symmetric",
    (
        "quantize",
        "quantization",
        "model_wise",
        "activation",
        "scheme",
    ): "NNCF: MIXED preset for asym, PERFORMANCE for sym",
    ("quantize", "quantization", "model_wise", "weight", "bit"): "NNCF: OverflowFix.ENABLE",
    ("quantize", "quantization", "calibration", "sampling_size"): "NNCF: subset_size",
    ("quantize", "quantization", "recipes", "fast_bias_correction"): "NNCF: FastBiasCorrection",
    ("quantize", "quantization", "recipes", "smooth_quant"): "NNCF: SmoothQuant",
    (
        "quantize",
        "tuning",
        "accuracy_criterion",
    ): "tuned on held-out training examples; verified on the dev split",
}


def explain(plan: IncPlan) -> str:
    """Returns the recipe as commented YAML that loads back to the same recipe."""
    lines = [f"# {_one_line(note)}" for note in plan.notes]
    lines += [""] if lines else []
    _section(plan, plan.recipe, (), lines)
    return "\n".join(lines) + "\n"


def _section(plan: IncPlan, values: dict[str, Any], path: KeyPath, lines: list[str]) -> None:
    for key, value in values.items():
        here = (*path, key)
        indent = "  " * sum(isinstance(k, str) for k in path)
        name = dump_flow(key)
        if isinstance(value, dict) and value:
            lines.append(_commented(f"{indent}{name}:", _comment(plan, here)))
            _section(plan, value, here, lines)
        elif key == "pruners":
            lines.append(f"{indent}pruners:")
            for number, pruner in enumerate(value):
                lines += [f"{indent}  # {comment}" for comment in _backends(plan, path, pruner)]
                lines.append(f"{indent}  - !Pruner")
                _items(plan, pruner, (*here, number), f"{indent}      ", lines)
        else:
            lines.append(_commented(f"{indent}{name}: {dump_flow(value)}", _comment(plan, here)))


def _items(plan: IncPlan, values: dict[str, Any], path: KeyPath, indent: str, lines: list[str]) -> None:
    """Appends the keys of a pruner, one per line."""
    for key, value in values.items():
        here: KeyPath = (*path, key)
        origins = [origin for known, origin in plan.origin.items() if known[: len(here)] == here]
        lines.append(_commented(f"{indent}{key}: {dump_flow(value)}", next(iter(origins), "")))


def _comment(plan: IncPlan, path: KeyPath) -> str:
    return "; ".join(text for text in (plan.origin.get(path, ""), _IMPLEMENTATION.get(path, "")) if text)


def _commented(line: str, comment: str) -> str:
    return f"{line:<{_WIDTH}} # {_one_line(comment)}" if comment else line


def _one_line(text: str) -> str:
    """Replaces line breaks, which user-defined keys can contain and which would end a comment."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _backends(plan: IncPlan, path: KeyPath, pruner: dict[str, Any]) -> list[str]:
    """Describes which back ends support a pruner."""
    section: Any = plan.recipe
    for key in path:
        section = section[key]
    (resolved,) = WeightCompression.model_validate(section | {"pruners": [pruner]}).resolve(steps_per_epoch=1)
    if resolved.prune_type == "pattern_lock":
        return ["enforced by the toolkit for every back end: zero weights stay exactly zero"]
    support = []
    for backend in get_args(Backend):
        problem = unsupported(backend, resolved)
        support.append(f"{backend}: no support for {problem}" if problem else f"{backend}: supported")
    return ["; ".join(support)]
