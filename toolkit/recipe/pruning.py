"""Recipe sections for pruning: criterion, schedule, target sparsity, pattern, and pattern lock."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from toolkit.recipe.fields import Count, Epochs, Fraction, Number, Period, Position, Section, require_expression, wrong
from toolkit.recipe.train import Train

Decay = Literal["cubic", "linear", "cos", "exp", "cube"]
Domain = Literal["local", "global"]
PruneType = Literal[
    "magnitude", "basic_magnitude", "pattern_lock", "snip", "snip_momentum", "gradient_sensitivity", "group_lasso"
]
# Prune types whose importance score needs gradients; the scores themselves are in sparsity/scores.py.
GRADIENT_SCORES: frozenset[PruneType] = frozenset({"snip", "snip_momentum", "gradient_sensitivity"})
PATTERN = re.compile(r"tile_pattern_([1-9]\d{0,8})x([1-9]\d{0,8})|([1-9]\d{0,8}):([1-9]\d{0,8})")

LOCK: PruneType = "pattern_lock"
SPARSE_GPT, RETRAIN_FREE = "sparse_gpt", "retrain_free"  # prune types of INC 3


class Tile(Section):
    """A parsed pattern: blocks of `rows` x `columns` weights, or `zeros` zeros in every `columns` weights of a row."""

    rows: int
    columns: int
    zeros: int | None = None

    @classmethod
    def of(cls, pattern: str) -> "Tile":
        """Parses `tile_pattern_4x1` or `2:4`; the recipe has already validated the pattern."""
        found = PATTERN.fullmatch(pattern)
        assert found is not None, pattern
        if found[3]:
            return cls(rows=1, columns=int(found[4]), zeros=int(found[3]))
        return cls(rows=int(found[1]), columns=int(found[2]))

    def divides(self, shape: tuple[int, ...]) -> bool:
        """Returns whether a matrix of this shape divides evenly into blocks."""
        return not (shape[0] % self.rows or shape[1] % self.columns)


class PrunerParameters(Section):
    """Parameters of individual prune types."""

    alpha: Number = Field(1e-4, ge=0, description="group_lasso: weight of the group-lasso term in the gradient")


def _explained(value: Any) -> Any:
    """Rejects prune types of INC 3 by name; `sparse_gpt` of a student has been replaced before."""
    if value == SPARSE_GPT:
        raise wrong(
            f"{value} is supported for the student only, which it prunes without training",
            instead="magnitude; or a `student` with pruning: {reconstruction: {method: obs}}",
        )
    if value == RETRAIN_FREE:
        raise wrong(
            f"{value} removes entire heads and channels by Fisher information, which is not supported",
            instead="magnitude, with `reconstruction: {}` to prune a student without training",
        )
    return value


class Pruner(Section):
    """INC's `!Pruner`; missing keys are taken from `weight_compression`."""

    prune_type: Annotated[PruneType, BeforeValidator(_explained)] = Field(
        "magnitude",
        description="criterion for the weights to remove: magnitude, basic_magnitude: smallest |weight|; snip, "
        "snip_momentum: smallest |weight x gradient|; gradient_sensitivity: smallest |gradient|; group_lasso: "
        "magnitude, with a penalty that drives entire blocks to zero; pattern_lock: none, existing zeros are kept",
    )
    names: tuple[str, ...] = Field(
        (), description="regular expressions on weight names; empty: all matrices not selected by another pruner"
    )
    exclude_names: tuple[str, ...] = Field((), description="regular expressions on weight names excluded from `names`")
    start_step: Position | None = Field(None, description="overrides weight_compression's value")
    end_step: Position | None = Field(None, description="overrides weight_compression's value")
    update_frequency_on_step: Count | None = Field(None, description="overrides weight_compression's value")
    start_epoch: Epochs | None = Field(None, description="overrides weight_compression's value")
    end_epoch: Epochs | None = Field(None, description="overrides weight_compression's value")
    update_frequency: Period | None = Field(None, description="overrides weight_compression's value")
    initial_sparsity: Fraction | None = Field(None, description="overrides weight_compression's value")
    target_sparsity: Fraction | None = Field(None, description="overrides weight_compression's value")
    max_sparsity_ratio_per_layer: Fraction | None = Field(None, description="overrides weight_compression's value")
    sparsity_decay_type: Decay | None = Field(None, description="overrides weight_compression's value")
    prune_domain: Domain | None = Field(None, description="overrides weight_compression's value")
    pattern: str | None = Field(None, description="overrides weight_compression's value")
    parameters: PrunerParameters = PrunerParameters()

    def own(self) -> dict[str, Any]:
        """Returns the keys of this pruner that override `weight_compression`."""
        return self.model_dump(exclude={"prune_type", "names", "parameters"}, exclude_none=True, exclude_defaults=True)


class ResolvedPruner(Section):
    """A pruner with all values resolved; steps are optimizer steps."""

    prune_type: PruneType
    names: tuple[str, ...]
    exclude_names: tuple[str, ...]
    initial_sparsity: float
    target_sparsity: float
    max_sparsity_ratio_per_layer: float
    start_step: int
    end_step: int
    update_frequency_on_step: int
    sparsity_decay_type: Decay
    prune_domain: Domain
    pattern: str
    alpha: float

    @property
    def tile(self) -> Tile:
        """The parsed pattern."""
        return Tile.of(self.pattern)


class WeightCompression(Section):
    """Schedule, target sparsity and pattern. Steps are optimizer steps; epochs can be given instead."""

    initial_sparsity: Fraction = Field(0.0, description="fraction of zeros at start_step")
    target_sparsity: Fraction = Field(0.9, description="fraction of zeros from end_step on, in each prunable matrix")
    max_sparsity_ratio_per_layer: Fraction = Field(
        0.999, description="upper limit of the sparsity of any one matrix; relevant for prune_domain global"
    )
    start_step: Position = Field(0, description="first pruning step")
    end_step: Position = Field(0, description="last pruning step; the mask is fixed afterwards")
    update_frequency_on_step: Count = Field(1, description="steps between mask updates")
    start_epoch: Epochs | None = Field(None, description="alternative to start_step, in epochs")
    end_epoch: Epochs | None = Field(None, description="alternative to end_step, in epochs")
    update_frequency: Period | None = Field(None, description="alternative to update_frequency_on_step, in epochs")
    sparsity_decay_type: Decay = Field(
        "cubic", description="sparsity schedule; cubic: Zhu and Gupta; exp, cos, linear, cube: as defined by INC"
    )
    prune_domain: Domain = Field(
        "local", description="local: same sparsity in each matrix; global: one sparsity over all matrices together"
    )
    pattern: str = Field(
        "tile_pattern_1x1", description="tile_pattern_1x1, tile_pattern_4x1 (blocks), or N:M such as 2:4"
    )
    exclude_names: tuple[str, ...] = Field((), description="regular expressions on weight names that stay dense")
    pruners: tuple[Pruner, ...] = Field(
        (Pruner(),), min_length=1, description="INC's list of pruners; each matrix belongs to exactly one of them"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> "WeightCompression":
        for number, pruner in enumerate(self.pruners):
            at = ("pruners", number) if len(self.pruners) > 1 or pruner.own() else ()
            _check(self.model_copy(update=pruner.own()), at, locks=pruner.prune_type == LOCK)
            for key in ("names", "exclude_names"):
                for pattern in getattr(pruner, key):
                    require_expression(pattern, "pruners", number, key)
            _check_effect(pruner, ("pruners", number))
        for pattern in self.exclude_names:
            require_expression(pattern, "exclude_names")
        for step, epoch in _EPOCHS.items():
            if getattr(self, epoch) is not None and getattr(self, step) != type(self).model_fields[step].default:
                raise wrong(f"cannot be combined with `{epoch}`", step, instead="one of the two")
        unnamed = [n for n, p in enumerate(self.pruners) if not p.names]
        if len(unnamed) > 1:
            what = "only one pruner may omit `names`: it gets the matrices that no other pruner selects"
            raise wrong(what, "pruners", unnamed[1])
        return self

    def resolve(self, steps_per_epoch: int = 0) -> tuple[ResolvedPruner, ...]:
        """Returns each pruner with all values resolved.

        Args:
            steps_per_epoch: Optimizer steps per epoch; required if the schedule is given in epochs.
        """
        return tuple(_resolved(self, pruner, steps_per_epoch) for pruner in self.pruners)

    def in_epochs(self) -> bool:
        """Returns whether any value is given in epochs, so that steps depend on the size of the data."""
        return any(
            getattr(section, key) is not None
            for section in (self, *self.pruners)
            for key in ("start_epoch", "end_epoch", "update_frequency")
        )


# The keys of a schedule, which a pattern lock does not have.
RAMP_KEYS = tuple(
    key for key in WeightCompression.model_fields if key in Pruner.model_fields.keys() - {"exclude_names"}
)
NO_RAMP = "has no effect: the pattern is locked, and a locked pattern has no schedule"
# Key in steps -> key in epochs. A pruner's value, in either unit, takes precedence over its section's.
_EPOCHS = {"start_step": "start_epoch", "end_step": "end_epoch", "update_frequency_on_step": "update_frequency"}


def _resolved(section: WeightCompression, pruner: Pruner, steps_per_epoch: int) -> ResolvedPruner:
    values = section.model_copy(update=pruner.own()).model_dump(include=set(ResolvedPruner.model_fields))
    own = pruner.own()
    for step, epoch in _EPOCHS.items():
        epochs = own.get(epoch) if step not in own else None
        epochs = getattr(section, epoch) if epochs is None and step not in own else epochs
        if epochs is not None:
            assert steps_per_epoch, "a schedule in epochs needs steps_per_epoch"
            values[step] = round(epochs * steps_per_epoch)
    values["update_frequency_on_step"] = max(1, values["update_frequency_on_step"])
    excluded = (*section.exclude_names, *pruner.exclude_names)
    return ResolvedPruner.model_validate(
        values
        | {"prune_type": pruner.prune_type, "names": pruner.names, "exclude_names": tuple(dict.fromkeys(excluded))}
        | {"alpha": pruner.parameters.alpha}
    )


def _check(resolved: WeightCompression, at: tuple[str | int, ...], locks: bool) -> None:
    """Validates the values of a pruner merged with its section's."""
    pattern = PATTERN.fullmatch(resolved.pattern)
    if not pattern:
        raise wrong(
            f"unknown pattern {resolved.pattern!r}", *at, "pattern", instead="tile_pattern_1x1, tile_pattern_4x1 or 2:4"
        )
    if locks:
        return
    if resolved.end_epoch is None and resolved.start_epoch is None and resolved.end_step < resolved.start_step:
        raise wrong(f"must not be before start_step ({resolved.start_step})", *at, "end_step")
    if resolved.end_epoch is not None and resolved.end_epoch < (resolved.start_epoch or 0):
        raise wrong(f"must not be before start_epoch ({resolved.start_epoch or 0:g})", *at, "end_epoch")
    if resolved.initial_sparsity > resolved.target_sparsity:
        raise wrong(f"must not be above target_sparsity ({resolved.target_sparsity})", *at, "initial_sparsity")
    if resolved.target_sparsity > resolved.max_sparsity_ratio_per_layer:
        limit = resolved.max_sparsity_ratio_per_layer
        raise wrong(f"must not be above max_sparsity_ratio_per_layer ({limit})", *at, "target_sparsity")
    if not pattern[3]:
        return
    n, m = int(pattern[3]), int(pattern[4])
    if n >= m:
        raise wrong(f"{n}:{m} would remove all weights", *at, "pattern", instead="2:4")
    if abs(resolved.target_sparsity - n / m) > 1e-9:
        raise wrong(
            f"{resolved.pattern} means a sparsity of {n}/{m}",
            *at,
            "target_sparsity",
            instead=f"target_sparsity: {n / m:g}",
        )


def _check_effect(pruner: Pruner, at: tuple[str | int, ...]) -> None:
    """Rejects keys of a pruner that its prune type does not use."""
    ramp = [key for key in pruner.own() if key in RAMP_KEYS]
    if pruner.prune_type == LOCK and ramp:
        raise wrong(NO_RAMP, *at, ramp[0], instead="prune_type: magnitude")
    if pruner.prune_type != "group_lasso" and pruner.parameters != PrunerParameters():
        raise wrong(f"{pruner.prune_type} has no alpha", *at, "parameters", instead="prune_type: group_lasso")
    for step, epoch in _EPOCHS.items():
        if getattr(pruner, step) is not None and getattr(pruner, epoch) is not None:
            raise wrong(f"cannot be combined with `{epoch}`", *at, step, instead="one of the two")


def keys_without_effect(general: "TaskPruning | None", tasks: Mapping[str, "TaskPruning"]) -> list[tuple[str, str]]:
    """Returns (task, key) of schedule keys that no gradual pruner uses; the task is empty for the recipe's section.

    Args:
        general: The recipe's section, which tasks without a section of their own use.
        tasks: Task -> its section, with the recipe's section merged into it.
    """
    written = _ramp(general) if general else {}
    unused = [] if any(not section.only_locks for section in tasks.values()) else [("", key) for key in written]
    for name, section in tasks.items():
        if section.only_locks and section is not general:
            unused += [(name, key) for key, value in _ramp(section).items() if written.get(key) != value]
    return unused


def _ramp(section: "TaskPruning") -> dict[str, Any]:
    """Returns the schedule keys that a section sets.

    A section with all of them comes from a saved recipe, which has every default written out.
    """
    compression = section.approach.weight_compression
    defaults = {key: type(compression).model_fields[key].default for key in RAMP_KEYS}
    found = {key: getattr(compression, key) for key in RAMP_KEYS if key in compression.model_fields_set}
    if all(key in found for key, default in defaults.items() if default is not None):
        return {key: value for key, value in found.items() if value != defaults[key]}
    return found


class PruningApproach(Section):
    """INC's nesting."""

    weight_compression: WeightCompression = WeightCompression()


Backend = Literal["inc", "nncf", "magnitude"]
RewindingChoice = bool | Literal["cyclic"]
_REWINDING = (
    "rewind the learning rate at mask updates (paper, sec. 3); cyclic: at each update it returns to its peak and falls "
    "to 1 % of it until the next, after the last one to 0 (oBERT)"
)


class Pruning(Section):
    """Gradual pruning; the back end selects the weights, the toolkit applies the mask."""

    backend: Backend = Field(
        "inc",
        description="inc: neural-compressor (all prune types and patterns); nncf: NNCF; magnitude: torch only",
    )
    approach: PruningApproach = PruningApproach()
    learning_rate_rewinding: RewindingChoice = Field(True, description=_REWINDING)

    @model_validator(mode="after")
    def _can_be_done(self) -> "Pruning":
        gradual = [p for p in self.approach.weight_compression.pruners if p.prune_type != LOCK]
        if not gradual and not isinstance(self, TaskPruning):
            at = ("approach", "weight_compression", "pruners")
            raise wrong("pattern_lock alone does not prune anything", *at, instead="prune_type: magnitude")
        return self


class TaskWeightCompression(WeightCompression):
    """`WeightCompression` for a task, where the default is to lock the pattern."""

    pruners: tuple[Pruner, ...] = Field(
        (Pruner(prune_type=LOCK),),
        min_length=1,
        description="INC's list of pruners; default: [!Pruner {prune_type: pattern_lock}]",
    )


class TaskPruningApproach(Section):
    """INC's nesting."""

    weight_compression: TaskWeightCompression = TaskWeightCompression()


class TaskPruning(Pruning):
    """Pruning during fine-tuning: the pattern of a sparse model is locked (the paper), or a dense model is pruned."""

    train: Train | None = Field(None, description="training without a teacher; alternative to `distillation`")
    approach: TaskPruningApproach = TaskPruningApproach()  # type: ignore[assignment]
    learning_rate_rewinding: RewindingChoice = Field(False, description=_REWINDING)

    @property
    def only_locks(self) -> bool:
        """Whether nothing is pruned, so that the model must already be sparse."""
        return all(p.prune_type == LOCK for p in self.approach.weight_compression.pruners)

    @property
    def locks_all(self) -> bool:
        """Whether the pattern of every matrix is locked, as in the paper's transfer."""
        compression = self.approach.weight_compression
        named = any(p.names or p.exclude_names for p in compression.pruners) or compression.exclude_names
        return self.only_locks and not named


def needs_gradients(pruner: ResolvedPruner) -> bool:
    """Returns whether the pruner's scores are computed from gradients."""
    return pruner.prune_type in GRADIENT_SCORES


def unsupported(backend: Backend, pruner: ResolvedPruner) -> str:
    """Returns the setting of a pruner that a back end does not support; empty if it supports all of them."""
    if backend != "nncf":
        lasso = pruner.prune_type == "group_lasso" and pruner.tile.zeros
        return f"group_lasso in pattern {pruner.pattern!r}, which has no blocks" if lasso else ""
    if pruner.prune_type not in ("magnitude", "basic_magnitude"):
        return f"prune_type {pruner.prune_type}"
    if pruner.pattern != "tile_pattern_1x1":
        return f"pattern {pruner.pattern!r}"
    if pruner.prune_domain == "global" and pruner.max_sparsity_ratio_per_layer < 0.999:
        return "max_sparsity_ratio_per_layer in prune_domain global"
    return ""
