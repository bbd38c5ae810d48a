"""The recipe's sections on pruning: which weights go, when, how far, in which pattern, and what stays locked."""

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from toolkit.recipe.fields import Count, Fraction, Number, Position, Section, wrong
from toolkit.recipe.train import Train

Decay = Literal["cubic", "linear", "cos", "exp", "cube"]
Domain = Literal["local", "global"]
PruneType = Literal[
    "magnitude", "basic_magnitude", "pattern_lock", "snip", "snip_momentum", "gradient_sensitivity", "group_lasso"
]
PATTERN = re.compile(r"tile_pattern_([1-9]\d*)x([1-9]\d*)|([1-9]\d*):([1-9]\d*)")

LOCK: PruneType = "pattern_lock"


class Tile(Section):
    """A pattern taken apart: weights go in blocks of `rows` x `columns`, or `zeros` in every `columns` of a row."""

    rows: int
    columns: int
    zeros: int | None = None

    @classmethod
    def of(cls, pattern: str) -> "Tile":
        """From `tile_pattern_4x1` or `2:4`; the recipe has checked that it is one."""
        found = PATTERN.fullmatch(pattern)
        assert found is not None, pattern
        if found[3]:
            return cls(rows=1, columns=int(found[4]), zeros=int(found[3]))
        return cls(rows=int(found[1]), columns=int(found[2]))

    def divides(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix of this shape is made of whole blocks."""
        return not (shape[0] % self.rows or shape[1] % self.columns)


class PrunerParameters(Section):
    """What only some prune types need."""

    alpha: Number = Field(1e-4, ge=0, description="group_lasso: weight of the group-lasso term in the gradient")


class Pruner(Section):
    """INC's `!Pruner`; what it leaves out is taken from `weight_compression`."""

    prune_type: PruneType = Field(
        "magnitude",
        description="magnitude (basic_magnitude is the same): the smallest weights go; pattern_lock: zeros stay zeros; "
        "snip, snip_momentum: smallest |weight x gradient|; gradient_sensitivity: smallest |gradient|; "
        "group_lasso: magnitude, with a penalty that drives whole blocks to zero",
    )
    names: tuple[str, ...] = Field(
        (), description="regular expressions on weight names; empty: every matrix that no other pruner names"
    )
    exclude_names: tuple[str, ...] = Field((), description="regular expressions: what of `names` is left alone")
    start_step: Position | None = Field(None, description="in place of weight_compression's")
    end_step: Position | None = Field(None, description="in place of weight_compression's")
    update_frequency_on_step: Count | None = Field(None, description="in place of weight_compression's")
    start_epoch: Number | None = Field(None, ge=0, description="in place of weight_compression's")
    end_epoch: Number | None = Field(None, ge=0, description="in place of weight_compression's")
    update_frequency: Number | None = Field(None, gt=0, description="in place of weight_compression's")
    initial_sparsity: Fraction | None = Field(None, description="in place of weight_compression's")
    target_sparsity: Fraction | None = Field(None, description="in place of weight_compression's")
    max_sparsity_ratio_per_layer: Fraction | None = Field(None, description="in place of weight_compression's")
    sparsity_decay_type: Decay | None = Field(None, description="in place of weight_compression's")
    prune_domain: Domain | None = Field(None, description="in place of weight_compression's")
    pattern: str | None = Field(None, description="in place of weight_compression's")
    parameters: PrunerParameters = PrunerParameters()

    def own(self) -> dict[str, Any]:
        """What this pruner says itself over `weight_compression`."""
        return self.model_dump(exclude={"prune_type", "names", "parameters"}, exclude_none=True, exclude_defaults=True)


class ResolvedPruner(Section):
    """One pruner with everything filled in; steps are optimizer steps."""

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
        """The pattern taken apart."""
        return Tile.of(self.pattern)


class WeightCompression(Section):
    """When, how far and in which pattern weights go. Steps are optimizer steps; epochs may be said in their place."""

    initial_sparsity: Fraction = Field(0.0, description="share of zeros at start_step")
    target_sparsity: Fraction = Field(0.9, description="share of zeros from end_step on, in each prunable matrix")
    max_sparsity_ratio_per_layer: Fraction = Field(
        0.999, description="no matrix gets a larger share of zeros; matters where prune_domain is global"
    )
    start_step: Position = Field(0, description="first pruning step")
    end_step: Position = Field(0, description="last pruning step; the mask stays fixed afterwards")
    update_frequency_on_step: Count = Field(1, description="steps between two prunings")
    start_epoch: Number | None = Field(None, ge=0, description="in place of start_step")
    end_epoch: Number | None = Field(None, ge=0, description="in place of end_step")
    update_frequency: Number | None = Field(None, gt=0, description="epochs; in place of update_frequency_on_step")
    sparsity_decay_type: Decay = Field(
        "cubic", description="cubic is Zhu-Gupta's; exp, cos, linear and cube mean what INC means by them"
    )
    prune_domain: Domain = Field("local", description="local: same sparsity in each matrix")
    pattern: str = Field(
        "tile_pattern_1x1", description="tile_pattern_1x1, tile_pattern_4x1 (blocks), or N:M such as 2:4"
    )
    exclude_names: tuple[str, ...] = Field((), description="regular expressions on weight names that stay dense")
    pruners: tuple[Pruner, ...] = Field(
        (Pruner(),), min_length=1, description="INC's list; a matrix belongs to the one pruner that names it"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> "WeightCompression":
        for number, pruner in enumerate(self.pruners):
            at = ("pruners", number) if len(self.pruners) > 1 or pruner.own() else ()
            _check(self.model_copy(update=pruner.own()), at, locks=pruner.prune_type == LOCK)
            for key in ("names", "exclude_names"):
                _check_expressions(getattr(pruner, key), ("pruners", number, key))
        _check_expressions(self.exclude_names, ("exclude_names",))
        unnamed = [n for n, p in enumerate(self.pruners) if not p.names]
        if len(unnamed) > 1:
            raise wrong("only one pruner may go without `names`: it gets what the others leave", "pruners", unnamed[1])
        return self

    def resolve(self, steps_per_epoch: int = 0) -> tuple[ResolvedPruner, ...]:
        """Each pruner with everything filled in.

        Args:
            steps_per_epoch: What an epoch of the training amounts to; needed where epochs are said.
        """
        return tuple(_resolved(self, pruner, steps_per_epoch) for pruner in self.pruners)

    def in_epochs(self) -> bool:
        """Whether something is said in epochs, so that steps are known only with the data."""
        return any(
            getattr(section, key) is not None
            for section in (self, *self.pruners)
            for key in ("start_epoch", "end_epoch", "update_frequency")
        )


# Key in steps -> the same in epochs. A pruner's own value, in either unit, wins over its section's.
_EPOCHS = {"start_step": "start_epoch", "end_step": "end_epoch", "update_frequency_on_step": "update_frequency"}


def _resolved(section: WeightCompression, pruner: Pruner, steps_per_epoch: int) -> ResolvedPruner:
    values = section.model_copy(update=pruner.own()).model_dump(include=set(ResolvedPruner.model_fields))
    own = pruner.own()
    for step, epoch in _EPOCHS.items():
        said = own.get(epoch) if step not in own else None
        said = getattr(section, epoch) if said is None and step not in own else said
        if said is not None:
            assert steps_per_epoch, "epochs need steps_per_epoch"
            values[step] = round(said * steps_per_epoch)
    values["update_frequency_on_step"] = max(1, values["update_frequency_on_step"])
    excluded = (*section.exclude_names, *pruner.exclude_names)
    return ResolvedPruner.model_validate(
        values
        | {"prune_type": pruner.prune_type, "names": pruner.names, "exclude_names": tuple(dict.fromkeys(excluded))}
        | {"alpha": pruner.parameters.alpha}
    )


def _check(resolved: WeightCompression, at: tuple[str | int, ...], locks: bool) -> None:
    """What holds for a pruner with its section's values filled in."""
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
        raise wrong(f"{n}:{m} leaves nothing", *at, "pattern", instead="2:4")
    if abs(resolved.target_sparsity - n / m) > 1e-9:
        raise wrong(
            f"{resolved.pattern} means a sparsity of {n}/{m}",
            *at,
            "target_sparsity",
            instead=f"target_sparsity: {n / m:g}",
        )


def _check_expressions(patterns: tuple[str, ...], at: tuple[str | int, ...]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise wrong(f"{pattern!r} is not a regular expression ({error})", *at) from None


class PruningApproach(Section):
    """INC's form."""

    weight_compression: WeightCompression = WeightCompression()


Backend = Literal["inc", "nncf", "magnitude"]


class Pruning(Section):
    """Gradual pruning; `backend` says who picks the weights, the mask is always ours."""

    backend: Backend = Field(
        "inc",
        description="inc: neural-compressor (all prune types and patterns); nncf; magnitude: plain torch alone",
    )
    approach: PruningApproach = PruningApproach()
    learning_rate_rewinding: bool = Field(True, description="rewind the rate at each pruning step (paper, section 3)")

    @model_validator(mode="after")
    def _can_be_done(self) -> "Pruning":
        gradual = [p for p in self.approach.weight_compression.pruners if p.prune_type != LOCK]
        if not gradual and type(self) is Pruning:
            at = ("approach", "weight_compression", "pruners")
            raise wrong("pattern_lock keeps zeros and makes none", *at, instead="prune_type: magnitude")
        return self


class TaskWeightCompression(WeightCompression):
    """The same for a task, where the pattern is locked unless something else is said."""

    pruners: tuple[Pruner, ...] = Field(
        (Pruner(prune_type=LOCK),),
        min_length=1,
        description="INC's list; default: [!Pruner {prune_type: pattern_lock}]",
    )


class TaskPruningApproach(Section):
    """INC's form."""

    weight_compression: TaskWeightCompression = TaskWeightCompression()


class TaskPruning(Pruning):
    """Pruning while a task is learnt: the pattern of a sparse model locked (the paper), or a dense model pruned."""

    train: Train | None = Field(None, description="training without a teacher; or use `distillation`")
    approach: TaskPruningApproach = TaskPruningApproach()  # type: ignore[assignment]
    learning_rate_rewinding: bool = Field(False, description="rewind the rate at each pruning step (paper, section 3)")

    @property
    def only_locks(self) -> bool:
        """Whether the model must be sparse already."""
        return all(p.prune_type == LOCK for p in self.approach.weight_compression.pruners)

    @property
    def locks_all(self) -> bool:
        """Whether every matrix keeps the pattern that it has: the paper's transfer."""
        compression = self.approach.weight_compression
        named = any(p.names or p.exclude_names for p in compression.pruners) or compression.exclude_names
        return self.only_locks and not named


_MAGNITUDE = {"magnitude", "basic_magnitude"}
_GRADIENT = {"snip", "snip_momentum", "gradient_sensitivity"}


def needs_gradients(pruner: ResolvedPruner) -> bool:
    """Whether the scores of its weights come from gradients."""
    return pruner.prune_type in _GRADIENT


def unsupported(backend: Backend, pruner: ResolvedPruner) -> str:
    """What of a pruner a back end cannot do, in words; empty when it can do all of it."""
    if backend != "nncf":
        lasso = pruner.prune_type == "group_lasso" and pruner.tile.zeros
        return f"group_lasso in pattern {pruner.pattern!r}: it needs blocks" if lasso else ""
    if pruner.prune_type not in _MAGNITUDE:
        return f"prune_type {pruner.prune_type}"
    if pruner.pattern != "tile_pattern_1x1":
        return f"pattern {pruner.pattern!r}"
    if pruner.prune_domain == "global" and pruner.max_sparsity_ratio_per_layer < 0.999:
        return "max_sparsity_ratio_per_layer in prune_domain global"
    return ""
