"""Where the models and data behind a measurement came from, and what of them its recipe does not mean. Loads no torch.

A folder that lies under the name of a model or data set stands in for it, which is handy, and no longer what was named.
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

_EMPTY = 0.001  # share of a public split that `drop_empty` may leave out: all that is empty there, and no sample of it


@dataclass(frozen=True)
class Origin:
    """Of one model or file.

    Attributes:
        text: A hub id with its revision, or what is local with its hash. No path: it would tell of somebody's machine.
        stands_in: What a local folder was taken for, with the folder's hash; empty: it is what the recipe names.
    """

    text: str
    stands_in: str = ""


def origins(used: Recipe, written: Recipe, task: str, inputs: ResolvedInputs) -> dict[str, Origin]:
    """Key of the recipe -> where that came from, of all that one task depends on.

    Args:
        used: The recipe as it was run.
        written: The same, with the names as the recipe's file has them (`recipe.load.parse_recipe`).
        task: Which one.
        inputs: Models and data files.
    """
    models, data = _models(written, task), _data(written, task)
    return {key: _of_model(spec, models[key], inputs) for key, spec in _models(used, task).items()} | {
        key: _of_data(spec, data[key], inputs) for key, spec in _data(used, task).items()
    }


def reduced(section: Task, counts: dict[str, int]) -> tuple[str, ...]:
    """What was measured on fewer, or more, examples than the public split that a task names has, in words.

    Args:
        section: As written.
        counts: Metric -> examples; those of a further split are named `accuracy (mismatched)`.
    """
    found = []
    for metric, n in counts.items():
        more = metric.partition(" (")[2].removesuffix(")")
        rows = published_rows(section.more_dev[more] if more else section.dev or "")
        least = rows and rows - (round(_EMPTY * rows) if section.drop_empty else 0)
        if rows and least and not least <= n <= rows:
            found.append(f"{n:,} of {rows:,} dev rows" + (f" ({more})" if more else ""))
    return tuple(dict.fromkeys(found))


def _models(recipe: Recipe, task: str) -> dict[str, str]:
    own = {f"tasks.{task}.ready.{name}": source for name, source in recipe.tasks[task].ready.items()}
    return {"model.source": recipe.model.source, **{f"ready.{n}": s for n, s in recipe.ready.items()}, **own}


def _data(recipe: Recipe, task: str) -> dict[str, str]:
    section, corpus = recipe.tasks[task], recipe.corpus
    files = {f"corpus.files.{number}": spec for number, spec in enumerate(corpus.files if corpus else ())}
    train = {f"tasks.{t}.train": recipe.tasks[t].train for t in (*(corpus.tasks if corpus else ()), task)}
    dev = {f"tasks.{task}.dev": section.dev} if section.dev else {}
    return files | train | dev | {f"tasks.{task}.more_dev.{name}": spec for name, spec in section.more_dev.items()}


def _of_model(used: str, written: str, inputs: ResolvedInputs) -> Origin:
    folder = local_model(used)
    if folder is None:
        snapshot = inputs.model(used).folder  # a folder that is called by its commit
        return Origin(f"{used.partition('@')[0]}@{snapshot.name}" if snapshot else used)
    return _local(folder, written if is_hub_model(written) else "")


def _of_data(used: str, written: str, inputs: ResolvedInputs) -> Origin:
    meant = written.removeprefix(HUB_PREFIX)
    if not is_hub(used):
        return _local(fetch_file(used), "")
    split = hub_split(used)
    if folder := split.folder:
        return _local(folder, "" if meant.startswith(LOCAL_PREFIXES) else hub_split(written).dataset)
    file = inputs.file(used)  # of a stream there is none, and no hash
    return Origin(f"{split.name}, sha256:{file_hash(file)}" if file else split.name)


def _local(path: Path, taken_for: str) -> Origin:
    digest = content_hash(path)
    return Origin(f"local, sha256:{digest}", f"{taken_for} from a local folder ({digest[:8]})" if taken_for else "")
