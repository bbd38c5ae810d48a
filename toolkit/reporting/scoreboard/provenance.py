"""Origins of a measurement's models and data, and their deviations from those that its recipe names. Loads no torch.

A local folder with the name of a hub model or data set is used in its place; the measurement then has other inputs than
the recipe names.
"""

from dataclasses import dataclass
from pathlib import Path

from toolkit.core.files import content_hash, file_hash
from toolkit.data.files import fetch_file
from toolkit.data.hub import hub_split
from toolkit.data.published import published_rows
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.sources import is_hub_model, local_model
from toolkit.recipe import Recipe, Task
from toolkit.recipe.references import HUB_PREFIX, LOCAL_PREFIXES, is_hub

_EMPTY = 0.001  # fraction of a public split that `drop_empty` may remove: enough for its empty rows, not for sampling


@dataclass(frozen=True)
class Origin:
    """Origin of a model or data file.

    Attributes:
        text: Hub id with revision, or `local` with the content hash; no path, which would reveal details of a machine.
        stands_in: Hub reference that a local folder replaces, with the folder's hash; empty: as the recipe names it.
    """

    text: str
    stands_in: str = ""


def origins(used: Recipe, written: Recipe, task: str, inputs: ResolvedInputs) -> dict[str, Origin]:
    """Returns the origins of all models and files that a task depends on, by recipe key.

    Args:
        used: The recipe as it was run, with resolved references.
        written: The recipe with references as its file has them (`recipe.load.parse_recipe`).
        task: Name of the task.
        inputs: Models and data files.
    """
    models, data = _models(written, task), _data(written, task)
    return {key: _of_model(spec, models[key], inputs) for key, spec in _models(used, task).items()} | {
        key: _of_data(spec, data[key], inputs) for key, spec in _data(used, task).items()
    }


def reduced(section: Task, counts: dict[str, int]) -> tuple[str, ...]:
    """Returns the deviations in size from the public dev splits that a task names, as text.

    Args:
        section: The task's section of the recipe, with references as its file has them.
        counts: Metric -> number of examples; metrics of a further split are named like `accuracy (mismatched)`.
    """
    found = []
    for metric, n in counts.items():
        more = metric.partition(" (")[2].removesuffix(")")
        rows = published_rows(section.more_dev.get(more, "") if more else section.dev or "")
        least = rows and rows - (round(_EMPTY * rows) if section.drop_empty else 0)
        if rows and least and not least <= n <= rows:
            found.append(f"{n:,} of {rows:,} dev rows" + (f" ({more})" if more else ""))
    return tuple(dict.fromkeys(found))


def _models(recipe: Recipe, task: str) -> dict[str, str]:
    own = {f"tasks.{task}.ready.{name}": source for name, source in recipe.tasks[task].ready.items()}
    return {"model.source": recipe.model.source, **{f"ready.{n}": s for n, s in recipe.ready.items()}, **own}


def _data(recipe: Recipe, task: str) -> dict[str, str]:
    section, corpus = recipe.tasks[task], recipe.corpus
    files = {f"corpus.files.{number}": spec for number, spec in enumerate(corpus.all_files if corpus else ())}
    names = (*(corpus.all_tasks if corpus else ()), task)
    train = {f"tasks.{t}.train": recipe.tasks[t].train for t in names}
    train |= {f"tasks.{t}.more_train.{n}": spec for t in names for n, spec in enumerate(recipe.tasks[t].more_train)}
    dev = {f"tasks.{task}.dev": section.dev} if section.dev else {}
    return files | train | dev | {f"tasks.{task}.more_dev.{name}": spec for name, spec in section.more_dev.items()}


def _of_model(used: str, written: str, inputs: ResolvedInputs) -> Origin:
    folder = local_model(used)
    if folder is None:
        snapshot = inputs.model(used).folder  # the folder's name is the commit
        return Origin(f"{used.partition('@')[0]}@{snapshot.name}" if snapshot else used)
    return _local(folder, written if is_hub_model(written) else "")


def _of_data(used: str, written: str, inputs: ResolvedInputs) -> Origin:
    meant = written.removeprefix(HUB_PREFIX)
    if not is_hub(used):
        return _local(fetch_file(used), "")
    split = hub_split(used)
    if folder := split.folder:
        return _local(folder, "" if meant.startswith(LOCAL_PREFIXES) else hub_split(written).dataset)
    file = inputs.file(used)  # None for a stream, which has no hash
    return Origin(f"{split.name}, sha256:{file_hash(file)}" if file else split.name)


def _local(path: Path, replaced: str) -> Origin:
    digest = content_hash(path)
    return Origin(f"local, sha256:{digest}", f"{replaced} from a local folder ({digest[:8]})" if replaced else "")
