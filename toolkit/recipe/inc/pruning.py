"""Translation of INC's `pruning.approach`: pruners, schedules, patterns, names."""

from typing import Any

from toolkit.core.yaml_document import KeyPath
from toolkit.recipe.inc.inc_file import IncPlan, IncSource
from toolkit.recipe.pruning import RETRAIN_FREE, SPARSE_GPT, Tile

_STEPS = ("start_step", "end_step", "update_frequency_on_step")
_EPOCHS = ("start_epoch", "end_epoch", "update_frequency")
_WITHOUT_TRAINING = {
    SPARSE_GPT: "sparse_gpt prunes a pre-trained model without training: for that, write a recipe with `corpus` and "
    "student: {pruning: {reconstruction: {method: obs}}}",
    RETRAIN_FREE: "retrain_free removes entire heads and channels by Fisher information, which is not supported",
}
_SHAPE = ("initial_sparsity", "target_sparsity", "prune_domain", "sparsity_decay_type", "pattern")


def pruning(plan: IncPlan, source: IncSource) -> bool:
    """Translates `weight_compression` (in epochs) or `weight_compression_pytorch` (in steps).

    Returns:
        Whether all pruners only lock the pattern.

    Raises:
        UserError: A setting is not supported.
    """
    in_steps = source.peek("pruning", "approach", "weight_compression_pytorch") is not None
    kind = "weight_compression_pytorch" if in_steps else "weight_compression"
    at: KeyPath = ("pruning", "approach", kind)
    target: KeyPath = ("transfer", "pruning", "approach", "weight_compression")
    plan.put(("transfer", "pruning", "backend"), "inc", "toolkit's default")
    section = source.peek(*at)
    if section is None:
        raise source.refuse(("pruning",), "`approach` is missing", "approach: {weight_compression: {…}}")
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
        _unused_schedule(plan, source, at)
    return locks


def _unused_schedule(plan: IncPlan, source: IncSource, at: KeyPath) -> None:
    """Notes schedule keys of a pattern lock, which has no schedule; INC's own example sets `start_epoch: 0`."""
    for path in source.left_over():
        if path[: len(at)] == at and path[-1] != "pruners" and "names" not in str(path[-1]):
            source.take(*path)
            plan.note(source.where(*path), str(path[-1]), "a locked pattern has no schedule")


def _layer_types(source: IncSource, at: KeyPath) -> None:
    types = source.take(*at, "prune_layer_type")
    if types and "Linear" not in types:
        raise source.refuse((*at, "prune_layer_type"), "only linear layers of the encoder can be pruned", "[Linear]")


def _n_of_m(plan: IncPlan, pattern: str, target: KeyPath) -> None:
    """Sets the target sparsity that an N:M pattern implies."""
    tile = Tile.of(pattern)
    if tile.zeros:
        plan.put((*target, "target_sparsity"), tile.zeros / tile.columns, f"implied by {pattern}")


def _pruner(
    plan: IncPlan, source: IncSource, at: KeyPath, target: KeyPath, kind: str, section: Any, in_steps: bool
) -> None:
    pruner = source.peek(*at)
    typed = (*at, "prune_type") if source.written(*at, "prune_type") else (*at[:-2], "prune_type")
    if kind.endswith("_progressive"):
        what = "progressive pruning is not supported: in INC it does not reach its target sparsity"
        raise source.refuse(typed, what, kind.removesuffix("_progressive"))
    if kind in _WITHOUT_TRAINING:
        raise source.refuse(typed, _WITHOUT_TRAINING[kind], "magnitude")
    if source.take(*at, "method") == "per_channel":
        raise source.refuse(
            (*at, "method"), "channel pruning is not supported", "method: per_tensor, pattern: tile_pattern_4x1"
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
                (*at, key), f"the schedule of this section is in {unit}", f"use weight_compression{other}"
            )
    for key in ("exclude_names", *_SHAPE, *_STEPS, *_EPOCHS):
        _own(plan, source, at, target, key, kind)
    _parameters(plan, source, at, target, kind)
    if kind != "pattern_lock" and pruner.pattern and pruner.target_sparsity is None:
        _n_of_m(plan, pruner.pattern, target)


def _own(plan: IncPlan, source: IncSource, at: KeyPath, target: KeyPath, key: str, kind: str) -> None:
    """Translates a value that a pruner overrides; a pattern lock has only names."""
    value = source.peek(*at, key)
    if value in (None, ()):
        return
    source.take(*at, key)
    if kind == "pattern_lock" and key != "exclude_names":
        plan.note(source.where(*at, key), key, "a locked pattern has no schedule")
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
        raise source.refuse((*at, "parameters", key), "attention head pruning is not supported", "remove the key")
