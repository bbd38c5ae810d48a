"""From INC's `pruning.approach` to the recipe's: pruners, ramps, patterns, names."""

from typing import Any

from toolkit.core.yaml_document import KeyPath
from toolkit.recipe.inc.inc_file import IncPlan, IncSource
from toolkit.recipe.pruning import Tile

_STEPS = ("start_step", "end_step", "update_frequency_on_step")
_EPOCHS = ("start_epoch", "end_epoch", "update_frequency")
_SHAPE = ("initial_sparsity", "target_sparsity", "prune_domain", "sparsity_decay_type", "pattern")


def pruning(plan: IncPlan, source: IncSource) -> bool:
    """`weight_compression` (epochs) or `weight_compression_pytorch` (steps). Returns whether it only locks."""
    in_steps = source.peek("pruning", "approach", "weight_compression_pytorch") is not None
    kind = "weight_compression_pytorch" if in_steps else "weight_compression"
    at: KeyPath = ("pruning", "approach", kind)
    target: KeyPath = ("transfer", "pruning", "approach", "weight_compression")
    plan.put(("transfer", "pruning", "backend"), "inc", "toolkit's default")
    section = source.peek(*at)
    if section is None:
        raise source.refuse(("pruning",), "it does not say how", "approach: {weight_compression: {…}}")
    types = [pruner.prune_type or section.prune_type for pruner in section.pruners]
    locks = all(kind == "pattern_lock" for kind in types)
    _layer_types(source, at)
    if not locks:
        for key in (*_SHAPE, "max_sparsity_ratio_per_layer", *(_STEPS if in_steps else _EPOCHS)):
            plan.put((*target, key), source.take(*at, key), source.where(*at, key))
        if not source.written(*at, "target_sparsity"):
            _n_of_m(plan, section.pattern, target)
    excluded = [*source.take(*at, "exclude_names"), *source.take(*at, "not_to_prune_names")]
    if excluded:
        key = "exclude_names" if source.written(*at, "exclude_names") else "not_to_prune_names"
        plan.put((*target, "exclude_names"), excluded, source.where(*at, key))
    source.take(*at, "prune_type")
    source.take(*at, "names")
    plan.put((*target, "pruners"), [{} for _ in types], source.where(*at, "pruners"))
    for number, kind in enumerate(types):
        _pruner(plan, source, (*at, "pruners", number), (*target, "pruners", number), kind, section, in_steps)
    if locks:
        _unused_ramp(plan, source, at)
    return locks


def _unused_ramp(plan: IncPlan, source: IncSource, at: KeyPath) -> None:
    """A lock has no ramp; INC's own file says `start_epoch: 0` all the same."""
    for path in source.left_over():
        if path[: len(at)] == at and path[-1] != "pruners" and "names" not in str(path[-1]):
            source.take(*path)
            plan.note(source.where(*path), str(path[-1]), "a locked pattern does not change")


def _layer_types(source: IncSource, at: KeyPath) -> None:
    types = source.take(*at, "prune_layer_type")
    if types and "Linear" not in types:
        raise source.refuse((*at, "prune_layer_type"), "only linear layers of the encoder are pruned", "[Linear]")


def _n_of_m(plan: IncPlan, pattern: str, target: KeyPath) -> None:
    """N of every M says the sparsity itself, where nobody else does."""
    tile = Tile.of(pattern)
    if tile.zeros:
        plan.put((*target, "target_sparsity"), tile.zeros / tile.columns, f"what {pattern} means")


def _pruner(
    plan: IncPlan, source: IncSource, at: KeyPath, target: KeyPath, kind: str, section: Any, in_steps: bool
) -> None:
    pruner = source.peek(*at)
    typed = (*at, "prune_type") if source.written(*at, "prune_type") else (*at[:-2], "prune_type")
    if kind.endswith("_progressive"):
        raise source.refuse(typed, "INC's own progressive pruning misses its target", kind.removesuffix("_progressive"))
    if source.take(*at, "method") == "per_channel":
        raise source.refuse(
            (*at, "method"), "whole channels are not pruned here", "method: per_tensor, pattern: tile_pattern_4x1"
        )
    source.take(*at, "prune_type")
    plan.put((*target, "prune_type"), kind, source.where(*typed))
    names, of = source.take(*at, "names"), at
    if not names:
        names, of = section.names, at[:-2]
    if names:
        plan.put((*target, "names"), list(names), source.where(*of, "names"))
    for key in _STEPS if not in_steps else _EPOCHS:
        if getattr(pruner, key) is not None and kind != "pattern_lock":
            unit, other = ("steps", "") if in_steps else ("epochs", "_pytorch")
            raise source.refuse(
                (*at, key), f"this section counts in {unit}", f"weight_compression{other}, which does not"
            )
    for key in ("exclude_names", *_SHAPE, *_STEPS, *_EPOCHS):
        _own(plan, source, at, target, key, kind)
    _parameters(plan, source, at, target, kind)
    if kind != "pattern_lock" and pruner.pattern and pruner.target_sparsity is None:
        _n_of_m(plan, pruner.pattern, target)


def _own(plan: IncPlan, source: IncSource, at: KeyPath, target: KeyPath, key: str, kind: str) -> None:
    """A value that a pruner has of its own; a lock has only names."""
    value = source.peek(*at, key)
    if value in (None, ()):
        return
    source.take(*at, key)
    if kind == "pattern_lock" and key != "exclude_names":
        plan.note(source.where(*at, key), key, "a locked pattern does not change")
        return
    plan.put((*target, key), list(value) if isinstance(value, tuple) else value, source.where(*at, key))


def _parameters(plan: IncPlan, source: IncSource, at: KeyPath, target: KeyPath, kind: str) -> None:
    parameters = source.peek(*at, "parameters")
    if kind == "group_lasso":
        plan.put(
            (*target, "parameters", "alpha"),
            source.take(*at, "parameters", "alpha"),
            source.where(*at, "parameters", "alpha"),
        )
        if parameters.pattern:
            pattern = source.take(*at, "parameters", "pattern")
            plan.put((*target, "pattern"), pattern, source.where(*at, "parameters", "pattern"))
    for key in parameters.model_fields_set - {"alpha", "pattern"}:
        raise source.refuse((*at, "parameters", key), "whole attention heads are not pruned here", "leave the key out")
