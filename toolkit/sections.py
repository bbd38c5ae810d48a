"""What a stage may see of the recipe, and what of it, and of the data behind it, makes its cache key."""

from collections.abc import Iterable
from typing import Any

from toolkit import sources
from toolkit.artifacts import file_hash
from toolkit.hub import is_hub
from toolkit.recipe import OWN_STAGES, Recipe

# Where files lie says nothing about what they hold: the key takes their content hashes instead.
_PATH_KEYS = {
    "model": {"source"},
    "corpus": {"files"},
    "task": {"train", "dev", "more_dev", "ready", "preset", *OWN_STAGES},
}
# Keys of a task that its training texts depend on; how it is learnt, quantized, measured or called is none of them.
READ_OF_A_TASK = {"kind", "columns", "label", "rows", "drop_empty", "hold_out", "tuning_examples"}


class Sections:
    """The recipe sections that a stage declared, as attributes; any other is an AttributeError."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"this stage did not declare the recipe section {name!r} (pipeline.STAGES)")


def sections_of(recipe: Recipe, names: Iterable[str], task: str | None) -> dict[str, Any]:
    """The values behind the names; `task` and `corpus_tasks` are picked out of `recipe.tasks`."""
    special: dict[str, Any] = {
        "task": recipe.tasks[task] if task else None,
        "corpus_tasks": {t: recipe.tasks[t] for t in recipe.corpus.tasks} if recipe.corpus else {},
    }
    return {name: special[name] if name in special else recipe.section(name, task) for name in names}


def plain(name: str, value: Any) -> Any:
    """A section as JSON values, without the paths in it."""
    if value is None:
        return None
    if name == "corpus_tasks":
        return {t: section.model_dump(mode="json", include=READ_OF_A_TASK) for t, section in value.items()}
    values: dict[str, Any] = value.model_dump(mode="json", exclude=_PATH_KEYS.get(name))
    return values | {"more_dev": sorted(value.more_dev)} if name == "task" else values  # their names name the metrics


def data_hashes(sections: dict[str, Any], fetch: bool) -> dict[str, str]:
    """Data file -> content hash. Text on the hub is streamed, never fetched whole: its name is all there is to it."""
    specs: list[str] = []
    if sections.get("corpus") is not None:
        specs += sources.corpus_specs(sections["corpus"], sections["corpus_tasks"])
    streamed = {s for s in (sections["corpus"].files if sections.get("corpus") else ()) if is_hub(s)}
    if sections.get("task") is not None:
        specs += sources.task_specs(sections["task"])
    hashes = {}
    for spec in dict.fromkeys(specs):
        file = None if spec in streamed else sources.local_file(spec) if fetch else sources.at_hand(spec)
        hashes[str(file or spec)] = file_hash(file) if file else spec
    return hashes
