"""Translation of INC's `train` sections: duration, optimizer, loss and distillation."""

import re
from typing import Any

from toolkit.core.yaml_document import KeyPath
from toolkit.recipe.inc.inc_file import IncFlags, IncPlan, IncSource
from toolkit.recipe.inc.schema_train import KDLossSettings

# Epochs and learning rate of INC's published commands for Prune-OFA, where they are flags and not in the files.
_DEFAULT = "INC's default"  # origin of a value that no file has
_PUBLISHED = {"transfer": (9, 1e-4), "quantize": (3, 1e-5)}
SCRIPT = "default of INC's published command"
TRAINING_FLAGS = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "temperature", "loss_weights")


def training(
    plan: IncPlan,
    stage: str,
    stages: list[str],
    owners: dict[str, IncSource | None],
    flags: IncFlags,
    has_teacher: bool,
) -> None:
    """Translates duration, optimizer and loss of a stage.

    Args:
        plan: Plan to write to.
        stage: `transfer` or `quantize`.
        stages: All training stages, in order. Flags for epochs and learning rate apply to the first one.
        owners: Section of INC's files -> file that has it.
        flags: Command-line flags.
        has_teacher: Whether the stage is distilled from a teacher.

    Raises:
        UserError: A setting is not supported, or the loss needs a teacher and there is none.
    """
    own = "pruning" if stage == "transfer" else "quantization"
    section = "distillation" if has_teacher else own
    at: KeyPath = (stage, section, "train")
    first = stage == stages[0]
    sources = _sources(owners, [own, "distillation"] if first else [own])
    epochs, rate = _PUBLISHED[stage]
    plan.put(*_length(sources, at, epochs))
    _optimizer(plan, (*at, "optimizer"), sources, rate)
    _batch(plan, at, sources, flags)
    if first:
        if flags.num_train_epochs is not None:
            _drop(plan, (*at, "steps"))
            _override(plan, (*at, "epoch"), flags.num_train_epochs, "--num-train-epochs")
        if flags.learning_rate is not None:
            (optimizer,) = plan.recipe[stage][section]["train"]["optimizer"]
            _override(plan, (*at, "optimizer", optimizer, "learning_rate"), flags.learning_rate, "--learning-rate")
    elif flags.num_train_epochs is not None or flags.learning_rate is not None:
        plan.note(
            "--num-train-epochs, --learning-rate",
            stage,
            f"they apply to {stages[0]}; for {stage} use overrides such as {'.'.join(map(str, at))}.epoch=3",
        )
    for source, path in _sources(owners, [own, "distillation"]):  # one distillation section applies to all stages
        _criterion(plan, at, source, path, has_teacher)
    if has_teacher and "criterion" not in plan.recipe[stage]["distillation"]["train"]:
        for key, value in KDLossSettings().model_dump(mode="json").items():
            plan.put((*at, "criterion", "KnowledgeDistillationLoss", key), value, _DEFAULT)
    if has_teacher:
        _distillation_flags(plan, (*at, "criterion"), flags)
    elif flags.temperature is not None or flags.loss_weights is not None:
        plan.note("--temperature, --loss-weights", stage, "there is no --teacher")


def _sources(owners: dict[str, IncSource | None], sections: list[str]) -> list[tuple[IncSource, KeyPath]]:
    """Returns the `train` entries of these sections that exist, followed by INC's top-level `train`."""
    paths: list[tuple[IncSource | None, KeyPath]] = [(owners[s], (s, "train")) for s in sections]
    paths.append((owners["train"], ("train",)))
    return [(source, path) for source, path in paths if source is not None and source.peek(*path) is not None]


def _length(sources: list[tuple[IncSource, KeyPath]], at: KeyPath, published: int) -> tuple[KeyPath, int, str]:
    """Returns the key (steps or epoch), its value, and the origin of the value."""
    for source, path in sources:
        keys = [k for k in ("epoch", "end_epoch", "iteration") if source.written(*path, k)]
        if not keys:
            continue
        values = {k: source.take(*path, k) for k in ("epoch", "start_epoch", "end_epoch", "iteration")}
        epochs = values["end_epoch"] - values["start_epoch"] if values["end_epoch"] else values["epoch"]
        if values["iteration"]:
            return (*at, "steps"), epochs * values["iteration"], source.where(*path, "iteration")
        return (*at, "epoch"), epochs, source.where(*path, keys[-1])
    return (*at, "epoch"), published, SCRIPT


def _optimizer(plan: IncPlan, at: KeyPath, sources: list[tuple[IncSource, KeyPath]], rate: float) -> None:
    for source, path in sources:
        optimizer = source.peek(*path, "optimizer")
        if optimizer is None:
            continue
        for name in ("SGD", "AdamW", "Adam"):
            settings = getattr(optimizer, name)
            if settings is None:
                continue
            where = (*path, "optimizer", name)
            if getattr(settings, "amsgrad", False):
                raise source.refuse((*where, "amsgrad"), "AMSGrad is not supported", "amsgrad: false")
            source.take(*where)
            for key in type(settings).model_fields:
                if key != "amsgrad":
                    plan.put((*at, name, key), getattr(settings, key), source.where(*where, key))
            return
    plan.put((*at, "AdamW", "learning_rate"), rate, SCRIPT)


def _batch(plan: IncPlan, at: KeyPath, sources: list[tuple[IncSource, KeyPath]], flags: IncFlags) -> None:
    written = [(s, (*p, "dataloader", "batch_size")) for s, p in sources if s.written(*p, "dataloader", "batch_size")]
    if written:
        source, path = written[0]
        plan.put((*at, "batch_size"), source.take(*path), source.where(*path))
    else:
        plan.put((*at, "batch_size"), 32, SCRIPT)
    if flags.per_device_train_batch_size is not None:
        _override(plan, (*at, "batch_size"), flags.per_device_train_batch_size, "--per-device-train-batch-size")


def _override(plan: IncPlan, path: KeyPath, value: Any, flag: str) -> None:
    """Sets a flag's value; notes the value of a file that it replaces."""
    before = plan.origin.get(path, "")
    if re.search(r":\d+$", before):
        plan.note(before, str(path[-1]), f"{flag} takes precedence")
    plan.put(path, value, flag)


def _drop(plan: IncPlan, path: KeyPath) -> None:
    section = plan.recipe
    for key in path[:-1]:
        section = section[key]  # type: ignore[index]
    if section.pop(path[-1], None) is not None:  # type: ignore[arg-type]
        plan.note(plan.origin.pop(path), str(path[-1]), "--num-train-epochs takes precedence")


def _criterion(plan: IncPlan, at: KeyPath, source: IncSource, path: KeyPath, has_teacher: bool) -> None:
    criterion = source.peek(*path, "criterion")
    if criterion is None or "criterion" in _at(plan, at):
        return
    where = (*path, "criterion")
    if criterion.SelfKnowledgeDistillationLoss is not None:
        raise source.refuse(
            (*where, "SelfKnowledgeDistillationLoss"),
            "self-distillation is not supported",
            "KnowledgeDistillationLoss and --teacher",
        )
    plain = criterion.CrossEntropyLoss or criterion.SparseCategoricalCrossentropy
    if plain is not None:
        named = "CrossEntropyLoss" if criterion.CrossEntropyLoss else "SparseCategoricalCrossentropy"
        if path[0] == "distillation":
            raise source.refuse((*where, named), "not a distillation loss", "KnowledgeDistillationLoss: {…}")
        if plain.reduction not in ("mean", "auto", "sum_over_batch_size"):
            raise source.refuse(
                (*where, named, "reduction"), "only the mean over examples is supported", "reduction: mean"
            )
        return
    name = (
        "KnowledgeDistillationLoss"
        if criterion.KnowledgeDistillationLoss
        else "IntermediateLayersKnowledgeDistillationLoss"
    )
    settings = getattr(criterion, name)
    if not has_teacher:
        raise source.refuse((*where, name), "distillation needs a teacher model", "--teacher MODEL")
    source.take(*where)
    if name == "KnowledgeDistillationLoss" and settings.loss_types[0] != "CE":
        raise source.refuse((*where, name, "loss_types"), "the first loss must be cross entropy (CE)", "[CE, KL]")
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        if key == "layer_mappings":
            value = [[m[0], int(m[1]), m[2], int(m[3])] if len(m) == 4 else list(m) for m in value]
        if value not in ((), None):
            plan.put(
                (*at, "criterion", name, key),
                list(value) if isinstance(value, tuple) else value,
                source.where(*where, name, key),
            )


def leave_out_distributions(plan: IncPlan, stage: str, kind: str) -> None:
    """Leaves out the settings of a distillation that compares distributions, for a kind that compares distances."""
    at = (stage, "distillation", "train", "criterion", "KnowledgeDistillationLoss")
    settings = _at(plan, at)
    for key in ("temperature", "loss_types"):
        if key in settings:
            del settings[key]
            origin = plan.origin.pop((*at, key))
            if origin != _DEFAULT:
                plan.note(origin, key, f"distillation of {kind} compares distances, not distributions")


def _at(plan: IncPlan, path: KeyPath) -> Any:
    value: Any = plan.recipe
    for key in path:
        value = value.get(key, {})
    return value


def _distillation_flags(plan: IncPlan, at: KeyPath, flags: IncFlags) -> None:
    settings = _at(plan, at).get("KnowledgeDistillationLoss")
    for key, value, flag in (
        ("temperature", flags.temperature, "--temperature"),
        ("loss_weights", flags.loss_weights, "--loss-weights"),
    ):
        if value is None:
            continue
        if settings is None:
            plan.note(flag, key, "the loss compares hidden layers, not logits")
            continue
        _override(
            plan, (*at, "KnowledgeDistillationLoss", key), list(value) if isinstance(value, tuple) else value, flag
        )
