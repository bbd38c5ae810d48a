"""A plan in words: the recipe as YAML that can be saved and run, with a comment on who says what, and who does what."""

from typing import Any

from toolkit.core.yaml_document import KeyPath, dump_flow
from toolkit.recipe.inc.inc_file import IncPlan
from toolkit.recipe.pruning import WeightCompression, unsupported

_WIDTH = 44  # where comments start

# Keys whose meaning differs between back ends, or from INC's -> what is done.
_DONE: dict[KeyPath, str] = {
    ("transfer", "pruning", "backend"): "inc picks the weights; nncf or magnitude in its place: see the pruners",
    (
        "transfer",
        "pruning",
        "approach",
        "weight_compression",
        "sparsity_decay_type",
    ): "the schedule is ours for every back end, with INC's meaning",
    (
        "transfer",
        "pruning",
        "approach",
        "weight_compression",
        "prune_domain",
    ): "local: each matrix; global: all together; nncf scales each matrix by its norm first",
    ("quantize", "quantization", "approach"): "done by NNCF",
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
    ): "decided on training examples set aside; the verdict is the dev split's",
}


def explain(plan: IncPlan) -> str:
    """The recipe as commented YAML; it loads back to the same recipe."""
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
                lines += [f"{indent}  # {done}" for done in _backends(plan, path, pruner)]
                lines.append(f"{indent}  - !Pruner")
                _items(plan, pruner, (*here, number), f"{indent}      ", lines)
        else:
            lines.append(_commented(f"{indent}{name}: {dump_flow(value)}", _comment(plan, here)))


def _items(plan: IncPlan, values: dict[str, Any], path: KeyPath, indent: str, lines: list[str]) -> None:
    """The keys of a pruner, each on a line of its own."""
    for key, value in values.items():
        here: KeyPath = (*path, key)
        origins = [origin for known, origin in plan.origin.items() if known[: len(here)] == here]
        lines.append(_commented(f"{indent}{key}: {dump_flow(value)}", next(iter(origins), "")))


def _comment(plan: IncPlan, path: KeyPath) -> str:
    return "; ".join(text for text in (plan.origin.get(path, ""), _DONE.get(path, "")) if text)


def _commented(line: str, comment: str) -> str:
    return f"{line:<{_WIDTH}} # {_one_line(comment)}" if comment else line


def _one_line(text: str) -> str:
    """Keys are the user's: one with a line break in it, of any kind, must not end a comment."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _backends(plan: IncPlan, path: KeyPath, pruner: dict[str, Any]) -> list[str]:
    """What each back end can do of a pruner."""
    section: Any = plan.recipe
    for key in path:
        section = section[key]
    (resolved,) = WeightCompression.model_validate(section | {"pruners": [pruner]}).resolve(steps_per_epoch=1)
    if resolved.prune_type == "pattern_lock":
        return ["kept by the toolkit itself: weights that are zero stay exactly zero, whatever the back end"]
    said = []
    for backend in ("inc", "nncf", "magnitude"):
        problem = unsupported(backend, resolved)
        said.append(f"{backend}: cannot do {problem}" if problem else f"{backend}: can do it")
    return ["; ".join(said)]
