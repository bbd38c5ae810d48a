"""The grammar of references to models and data: a path, `package:…`, `hub:…`, or `owner/name[@revision]`."""

import os
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from toolkit.core.errors import UserError
from toolkit.recipe.corpus import Corpus
from toolkit.recipe.task import Task

HUB_PREFIX = "hub:"
# A split may be a slice, train[:1000], and the path of a folder may have colons.
HUB_SPLIT = re.compile(r"(?P<name>.+):(?P<config>[^:\[\]]*):(?P<split>[^:\[\]]+(?:\[[^\]]*\][^:\[\]]*)*)")
LOCAL_PREFIXES = ("/", ".", "~")  # no data set on the hub has a name that begins so
HUB_FORM = "hub:<dataset>[@revision]:<config>:<split>, e.g. hub:nyu-mll/glue:sst2:train (the config may be empty)"


def is_hub(spec: str) -> bool:
    """Whether a file of a recipe is a split on the hub."""
    return spec.startswith(HUB_PREFIX)


def with_local_folder(spec: str, folder: Path) -> str:
    """The same split, of the local folder that lies in `folder` under the data set's name, if there is one."""
    found = HUB_SPLIT.fullmatch(spec.removeprefix(HUB_PREFIX))
    if not found or not (folder / found["name"]).is_dir():
        return spec
    return f"{HUB_PREFIX}{os.path.normpath(folder.resolve() / found['name'])}:{found['config']}:{found['split']}"


def package_path(spec: str) -> Path:
    """The file or folder behind `package:<distribution>[/<path in site-packages>]`, without importing the package.

    With no path: the folder of the distribution that holds a model (`config.json` beside `model.safetensors`).

    Raises:
        UserError: The distribution is not installed, or has no such file.
    """
    name, _, inside = spec.removeprefix("package:").partition("/")
    try:
        distribution = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: no name at all
        raise UserError(
            f"the package {name!r} is not installed", where=spec, instead=f"pip install --no-deps {name}"
        ) from None
    files = distribution.files or []
    if inside:
        path = Path(str(distribution.locate_file(inside)))
        if not path.exists():
            alike = next((f for f in files if f.name == Path(inside).name), None)
            raise UserError(
                f"the package {name!r} has no such file",
                where=spec,
                instead=f"package:{name}/{alike}" if alike else "a path as in `pip show --files`",
            )
        return path
    paths = [Path(str(distribution.locate_file(f))) for f in files if f.name == "config.json"]
    folders = [p.parent for p in paths if p.with_name("model.safetensors").is_file()]
    if not folders:
        raise UserError(f"the package {name!r} has no folder with config.json and model.safetensors", where=spec)
    return min(folders, key=lambda p: len(p.parts))


def task_files(task: Task) -> list[str]:
    """What a recipe names as the data files of a task, the train file first."""
    return [f for f in (task.train, task.dev, *task.more_dev.values()) if f]


def corpus_files(corpus: Corpus, tasks: Mapping[str, Task]) -> list[str]:
    """What a recipe names as the files that pre-training text comes from."""
    return [*corpus.files, *(tasks[t].train for t in corpus.tasks)]
