"""Translation of INC's files to a recipe: stages, task, accuracy criterion. Larger sections have their own modules."""

import re
from collections.abc import Sequence
from typing import Any

from toolkit.core.errors import UserError
from toolkit.core.yaml_document import KeyPath
from toolkit.recipe.inc.inc_file import IncFlags, IncPlan, IncSource
from toolkit.recipe.inc.pruning import pruning
from toolkit.recipe.inc.quantization import quantization
from toolkit.recipe.inc.training import SCRIPT, TRAINING_FLAGS, leave_out_distributions, training
from toolkit.recipe.presets import PRESETS
from toolkit.recipe.task import KINDS

_OWN_COLUMNS = ("reranking", "token_classification")  # kinds whose columns have other default names
_F1 = {
    "classification": ("f1", "accuracy"),
    "multi_label": ("f1_micro", "f1_macro"),
    "token_classification": ("f1",),
    "question_answering": ("f1", "exact_match"),
}
_GLUE = [name for name, preset in PRESETS.items() if "nyu-mll/glue" in preset["train"]]
_SECTIONS = ("pruning", "quantization", "distillation", "train", "evaluation")


def translate(sources: Sequence[IncSource], flags: IncFlags, placeholders: bool) -> IncPlan:
    """Translates INC's files and flags to a recipe.

    Raises:
        UserError: A setting is not supported, or a flag is missing.
    """
    plan = IncPlan()
    for flag, why in flags.ignored or ():
        plan.note("flag", flag, why)
    owners = {name: _owner(sources, name) for name in _SECTIONS}
    prunes, quantizes, distills = owners["pruning"], owners["quantization"], owners["distillation"]
    if not (prunes or quantizes or distills):
        raise UserError(
            "nothing to do: the file has no pruning, distillation or quantization section",
            where=str(sources[0].path),
            instead="pruning: {approach: …}, or quantization: {approach: …}",
        )
    _name(plan, sources, flags)
    _seed(plan, sources, flags)
    model = _flag(flags.model, "--model", "<model>", placeholders)
    plan.put(("model", "source"), model, "--model")
    task, kind = _task(plan, owners["evaluation"], flags, placeholders)
    transfers = prunes is not None or quantizes is None
    locks = pruning(plan, prunes) if prunes else True
    if not transfers:
        why = "--model: used as the task model, because the files have no pruning section"
        plan.put(("tasks", task, "ready", "transfer"), model, why)
    elif locks:
        plan.put(("ready", "student"), model, "--model: its zeros are locked")
    teacher = flags.teacher or ("<teacher>" if placeholders and distills else None)
    if teacher:
        plan.put(("tasks", task, "ready", "task_teacher"), teacher, "--teacher")
    elif distills:
        what = "distillation needs a teacher model"
        raise UserError(what, where=distills.where("distillation"), instead="--teacher MODEL")
    trains = quantizes is not None and quantizes.peek("quantization", "approach") == "quant_aware_training"
    stages = ["transfer"] * transfers + ["quantize"] * trains
    rules = next((rules for known, rules in KINDS.items() if known == kind), None)  # None: refused with the recipe
    for stage in stages:
        training(plan, stage, stages, owners, flags, bool(teacher))
        if rules and not (rules.has_classes or rules.per_token):  # numbers or embeddings: no distributions
            leave_out_distributions(plan, stage, kind)
    if not stages:
        for flag in (f for f in TRAINING_FLAGS if getattr(flags, f) is not None):
            plan.note("flag", f"--{flag.replace('_', '-')}", "no stage trains")
    if quantizes:
        quantization(plan, quantizes)
        _tuning(plan, quantizes)
    plan.put(("export",), {}, "always added")
    plan.put(("benchmark",), {}, "always added")
    _speed(plan, owners["evaluation"])
    return plan


def _name(plan: IncPlan, sources: Sequence[IncSource], flags: IncFlags) -> None:
    """Sets the run name, the description and INC's workspace folder."""
    for source in sources:
        if not source.take("model", "framework").startswith(("pytorch", "NA")):
            what = "only PyTorch models are supported"
            raise source.refuse(("model", "framework"), what, "framework: pytorch")
        if source.written("tuning", "workspace", "path") and plan.run_folder is None:
            plan.run_folder = source.take("tuning", "workspace", "path")
    name = flags.name or sources[0].take("model", "name")
    origin = "--name" if flags.name else sources[0].where("model", "name")
    plan.put(("name",), re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-."), origin)
    plan.put(("description",), "from " + ", ".join(s.path.name for s in sources), "the files")


def _owner(sources: Sequence[IncSource], section: str) -> IncSource | None:
    """Returns the file that has a section; several files may have it only if its content is equal."""
    found = [s for s in sources if s.peek(section) is not None]
    for other in found[1:]:
        if other.peek(section) != found[0].peek(section):
            raise UserError(
                f"`{section}` is also in {found[0].path.name}, with different content",
                where=other.where(section),
                instead=f"only one file with `{section}`",
            )
        other.take(section)
    return found[0] if found else None


def _flag(value: str | None, flag: str, placeholder: str, placeholders: bool) -> str:
    if value is None and not placeholders:
        raise UserError(f"{flag} is missing: INC's files do not contain this setting", instead=f"{flag} …")
    return value or placeholder


def _seed(plan: IncPlan, sources: Sequence[IncSource], flags: IncFlags) -> None:
    """Sets the seed: the flag, else the first file's that has one. Other files with the same value are not noted."""
    written = [s for s in sources if s.written("tuning", "random_seed")]
    if flags.seed is not None:
        plan.put(("seed",), flags.seed, "--seed")
        return
    if not written:
        plan.put(("seed",), 1978, "INC's default")
        return
    seed = written[0].peek("tuning", "random_seed")
    plan.put(("seed",), seed, written[0].where("tuning", "random_seed"))
    for source in written:
        if source.peek("tuning", "random_seed") == seed:
            source.take("tuning", "random_seed")


def _task(plan: IncPlan, evaluation: IncSource | None, flags: IncFlags, placeholders: bool) -> tuple[str, str]:
    """Translates the flags of the task, and returns its name and kind."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", _flag(flags.task, "--task", "task", placeholders))
    known = _public(name)
    public: dict[str, Any] = PRESETS.get(known, {})
    at = ("tasks", name)
    if public:
        plan.put((*at, "preset"), known, "--task")
    kind = flags.kind or public.get("kind", "classification")
    if flags.kind:
        plan.put((*at, "kind"), kind, "--kind")
    files = (("train", flags.train_file, "--train-file"), ("dev", flags.validation_file, "--validation-file"))
    for split, file, flag in files:
        if file is None and public and not placeholders:  # the public splits, from the hub
            if split == "dev" and name.lower().endswith("mm"):
                plan.put((*at, "dev"), public["more_dev"]["mismatched"], "--task")
            continue
        plan.put((*at, split), _flag(file, flag, f"<{flag[2:].replace('-', ' ')}>", placeholders), flag)
    if flags.columns:
        plan.put((*at, "columns"), list(flags.columns), "--text-column")
    elif not public and kind not in _OWN_COLUMNS:
        plan.put((*at, "columns"), ["sentence"], "toolkit's default")
    if flags.label:
        plan.put((*at, "label"), flags.label, "--label-column")
    if flags.labels:
        plan.put((*at, "labels"), list(flags.labels), "--class-label")
    if flags.max_seq_length or "max_seq_length" not in public:
        length = flags.max_seq_length or 128
        plan.put((*at, "max_seq_length"), length, "--max-seq-length" if flags.max_seq_length else SCRIPT)
    metrics, origin = _metrics(evaluation, public, kind)
    if metrics:
        plan.put((*at, "metrics"), metrics, origin)
    return name, kind


def _public(name: str) -> str:
    """Returns the preset of a task name: SST-2, stsb, or mnli-mm for the mismatched dev split of MNLI."""
    return name.lower().replace("-", "").replace("_", "").removesuffix("mm")


def _metrics(evaluation: IncSource | None, public: dict[str, Any], kind: str) -> tuple[list[str], str]:
    """Returns the recipe's metrics for INC's metric, and their origin; empty if those of preset or kind apply."""
    at = ("evaluation", "accuracy", "metric")
    metric = evaluation.peek(*at) if evaluation else None
    if metric is None or evaluation is None:
        return (["accuracy"], "toolkit's default") if kind == "classification" and not public else ([], "")
    (name,) = [key for key in type(metric).model_fields if getattr(metric, key) is not None] or ["Accuracy"]
    value = evaluation.take(*at, name)
    if kind == "classification" and (name == "Accuracy" or (name == "topk" and value.k == 1)):
        return ["accuracy"], evaluation.where(*at, name)
    if name == "F1" and kind in _F1:
        return list(_F1[kind]), evaluation.where(*at, name)
    if name == "GLUE" and kind in ("classification", "regression") and _public(value.task) in _GLUE:
        return list(PRESETS[_public(value.task)].get("metrics", ["accuracy"])), evaluation.where(*at, name)
    if name == "SquadF1" and kind == "question_answering":
        return ["f1", "exact_match"], evaluation.where(*at, name)
    raise evaluation.refuse(
        (*at, name),
        f"this metric is not supported for {kind.replace('_', ' ')}",
        "topk: 1, Accuracy or GLUE of a classification task, F1 of one with classes, SquadF1 of squad; or remove the "
        "key for the toolkit's own metrics",
    )


def _tuning(plan: IncPlan, source: IncSource) -> None:
    """Translates accuracy criterion and tuning of the file that has the quantization section."""
    at: KeyPath = ("quantize", "tuning")
    criterion = source.peek("tuning", "accuracy_criterion")
    kind = "absolute" if criterion is not None and criterion.absolute is not None else "relative"
    value = getattr(criterion, kind) if criterion is not None else None
    if criterion is not None and not criterion.higher_is_better:
        raise source.refuse(
            ("tuning", "accuracy_criterion", "higher_is_better"),
            "higher is better for all supported metrics",
            "higher_is_better: true",
        )
    source.take("tuning", "accuracy_criterion", kind)
    plan.put(
        (*at, "accuracy_criterion", kind),
        0.01 if value is None else value,
        source.where("tuning", "accuracy_criterion", kind),
    )
    if source.peek("tuning") is None:
        return
    several = source.peek("tuning", "multi_objectives")
    objective = source.take("tuning", "objective")
    where = source.where("tuning", "objective")
    if several is not None and source.written("tuning", "objective"):
        raise source.refuse(("tuning", "multi_objectives"), "cannot be combined with `objective`", "one of the two")
    if several is not None:
        if len(several.objective) != 1:
            raise source.refuse(
                ("tuning", "multi_objectives"),
                "only one objective is supported",
                "objective: performance",
            )
        objective, where = several.objective[0], source.where("tuning", "multi_objectives", "objective")
        source.take("tuning", "multi_objectives", "objective")
    plan.put((*at, "objective"), objective, where)
    for key in ("timeout", "max_trials"):
        plan.put(
            (*at, "exit_policy", key),
            source.take("tuning", "exit_policy", key),
            source.where("tuning", "exit_policy", key),
        )
    if source.take("tuning", "exit_policy", "performance_only"):
        if source.written("tuning", "exit_policy", "max_trials"):
            plan.note(
                source.where("tuning", "exit_policy", "max_trials"), "max_trials", "performance_only implies one trial"
            )
        plan.put((*at, "exit_policy", "max_trials"), 1, source.where("tuning", "exit_policy", "performance_only"))


def _speed(plan: IncPlan, source: IncSource | None) -> None:
    """Translates threads, streams and batch size of the benchmark."""
    if source is None:
        return
    at: KeyPath = ("evaluation", "performance")
    target: KeyPath = ("benchmark", *at)
    for key in ("cores_per_instance", "num_of_instance"):
        if source.written(*at, "configs", key):
            value = source.take(*at, "configs", key)
            plan.put((*target, "configs", key), value, source.where(*at, "configs", key))
    batch: KeyPath = (*at, "dataloader", "batch_size")
    if source.written(*batch):
        plan.put((*target, "batch_sizes"), [source.take(*batch)], source.where(*batch))
