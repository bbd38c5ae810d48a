"""Recipe sections that a stage reads, and the part of them and of their data files that enters its cache key."""

from collections.abc import Iterable
from typing import Any

from toolkit.core.files import file_hash, json_hash
from toolkit.data.documents import as_read
from toolkit.data.hub import hub_split
from toolkit.data.kinds.retrieval import files_of, judged_files
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.ir import kernels
from toolkit.recipe import KINDS, OWN_STAGES, VARIANTS, Recipe, Task, TransferTuning
from toolkit.recipe.corpus import corpus_settings
from toolkit.recipe.references import corpus_files, is_hub, table_format, unlabelled_files
from toolkit.recipe.task import settings_for_keys

# Left out of cache keys: paths, since moving a file does not change its content, whose hash is in the key instead; and
# `transfer.tuning`, which does not change the model: it is part of the benchmark's key.
_LEFT_OUT: dict[str, Any] = {
    "model": {"source"},
    "task": {"train", "more_train", "dev", "more_dev", "retrieval", "ready", "preset", *OWN_STAGES},
    "transfer": {"tuning": True, "distillation": {"unlabelled": {"files"}}},
    "quantize": {"distillation": {"unlabelled": {"files"}}},
}
# Keys that are left out of cache keys while they have their default, so that the keys of older runs stay valid.
_ADDED: dict[str, dict[str, Any]] = {
    "student": {"layers": None},
    "transfer": {"reconstruction": None},
    "export": {"exact_activations": False},
}
_ADDED_TO_TRAIN: dict[str, Any] = {"dropout": None}
_ADDED_TO_DISTILLATION: dict[str, Any] = {"unlabelled": None}


def sections_of(recipe: Recipe, names: Iterable[str], task: str | None) -> dict[str, Any]:
    """Returns recipe sections by name; `task`, `corpus_tasks` and `transfer_tuning` are parts of others."""
    transfer = recipe.section("transfer", task)
    special: dict[str, Any] = {
        "transfer_tuning": transfer.tuning if transfer else None,
        "task": recipe.tasks[task] if task else None,
        "corpus_tasks": {t: recipe.tasks[t] for t in recipe.corpus.all_tasks} if recipe.corpus else {},
    }
    return {name: special[name] if name in special else recipe.section(name, task) for name in names}


def section_values(name: str, value: Any) -> Any:
    """Returns a section as JSON values, without the paths in it."""
    if value is None:
        return None
    if name == "corpus_tasks":
        return {t: settings_for_keys(section, texts_only=True) for t, section in value.items()}
    if name == "task":  # the names of more_dev name the metrics
        sets = {"retrieval": sorted(value.retrieval)} if value.retrieval else {}
        return settings_for_keys(value, exclude=_LEFT_OUT[name]) | {"more_dev": sorted(value.more_dev)} | sets
    if name == "corpus":
        return corpus_settings(value)
    values = value.model_dump(mode="json", exclude=_LEFT_OUT.get(name))
    if values.get("distillation"):
        values["distillation"] = _without(values["distillation"], _ADDED_TO_DISTILLATION)
    for section in (values, values.get("distillation") or {}):
        if section.get("train"):
            section["train"] = _without(section["train"], _ADDED_TO_TRAIN)
    return _without(values, _ADDED.get(name, {}))


def _without(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}


def data_hashes(sections: dict[str, Any], inputs: ResolvedInputs) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns content hashes of the data files, by file and by role; cache keys contain the latter.

    A corpus on the hub is streamed and never downloaded completely: its hash is `HubSplit.content`.
    """
    hashes: dict[str, str] = {}
    corpus, task = sections.get("corpus"), sections.get("task")
    streamed = {s for s in (corpus.all_files if corpus else ()) if is_hub(s)}

    def hashed(spec: str) -> str:
        file = None if spec in streamed else inputs.file(spec)
        name = str(file or spec)
        if name not in hashes:
            hashes[name] = file_hash(file) if file else hub_split(spec).content
        return hashes[name]

    def judged(tasks: Iterable[Task]) -> list[list[str]]:
        """Returns the hashes of the documents and queries beside each file of judgements."""
        return [[hashed(file) for file in files] for task in tasks for files in judged_files(task)]

    roles: dict[str, Any] = {}
    if corpus is not None:
        own = len(corpus.all_files)  # the others are read as tables of their tasks
        roles["corpus"] = [
            # TSV keeps the key that it had when it was read as plain text; the tokenised corpus has a key of its own.
            hashed(spec) if number >= own or table_format(spec) == "tsv" else as_read(spec, hashed(spec))
            for number, spec in enumerate(corpus_files(corpus, sections["corpus_tasks"]))
        ]
        if found := judged(sections["corpus_tasks"].values()):
            roles["corpus_judged"] = found
    if task is not None:
        roles |= {name: hashed(spec) for name in ("train", "dev") if (spec := getattr(task, name))}
        if task.more_train:
            roles["more_train"] = [hashed(spec) for spec in task.more_train]
        if task.retrieval:
            roles["retrieval"] = {name: [hashed(f) for f in files_of(spec)] for name, spec in task.retrieval.items()}
        if found := judged([task]):
            roles["judged"] = found
        roles["more_dev"] = {name: hashed(spec) for name, spec in task.more_dev.items()}
    if files := [spec for name in ("transfer", "quantize") for spec in unlabelled_files(sections.get(name))]:
        roles["unlabelled"] = [hashed(spec) for spec in files]
    return hashes, roles


def accepted_keys(
    stage: str, seed: int, sections: dict[str, Any], data: dict[str, Any], inputs: dict[str, str]
) -> list[str]:
    """Returns the cache keys under which a finished stage is taken as it is; this machine makes the last one.

    Args:
        stage: Name of the stage.
        seed: The recipe's seed.
        sections: The recipe sections that the stage reads, from `sections_of`.
        data: Content hashes of its data by role, from `data_hashes`.
        inputs: Input name -> key of the step that makes it, or content hash of a ready checkpoint.
    """
    made_from = {
        "stage": stage,
        "seed": seed,
        "config": {
            name: section_values(name, value)
            for name, value in sections.items()
            if name != "transfer_tuning" or value not in (None, TransferTuning())  # as if there was no such key
        }
        | _windows(sections),
        "data": data,
        "inputs": inputs,
    }
    return [json_hash(made_from | kernel) for kernel in _kernels(stage, sections)]


def _windows(sections: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of the windows that the pairs of a mixed corpus are cut into, by task."""
    corpus, tasks = sections.get("corpus"), sections.get("corpus_tasks")
    paired = {t for source in (corpus.sources if corpus else ()) if source.shape == "pairs" for t in source.tasks}
    cut = sorted(t for t in paired if KINDS[tasks[t].kind].cuts_windows) if tasks else []
    return {"corpus_windows": {t: tasks[t].windows.model_dump(mode="json") for t in cut}} if tasks and cut else {}


def _kernels(stage: str, sections: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the accepted kernel versions of an export as parts of a key; this machine exports with the last one.

    A machine without a compiler accepts an export that another machine made with the kernels; a machine with one
    reruns an export that lacks the variants for the sparse engine.
    """
    if stage != "export" or not any(VARIANTS[name].engine for name in sections["export"].variants):
        return [{}]
    with_it = {"kernel": kernels.FORMAT_VERSION, "graph": kernels.EXPORT_VERSION}
    return [with_it] if kernels.available() else [with_it, {"kernel": None}]
