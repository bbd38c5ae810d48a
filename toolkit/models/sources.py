"""Where models and data come from: local files and folders, data inside installed packages, the hub. Loads no torch."""

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO, cast

from toolkit.core.errors import UserError
from toolkit.data.hub import LOCAL, hub_split, is_hub
from toolkit.models import published as known
from toolkit.recipe import Corpus, Task


def _open_zstd(path: Path, mode: str, **settings: Any) -> Any:
    """pyarrow's reader: it says when a file was cut off, which others pass over."""
    import pyarrow as pa

    stream = io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    return stream if mode == "rb" else io.TextIOWrapper(stream, **settings)


_OPENERS: dict[str, Callable[..., Any]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".zst": _open_zstd,
}
_HUB_MODEL = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
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
    """A file given by path, as `package:…`, or as `hub:…`, which is fetched once.

    Raises:
        UserError: It is not there, or cannot be fetched.
    """
    if is_hub(spec):
        return hub_split(spec).fetched()
    path = package_path(spec) if spec.startswith("package:") else Path(spec).expanduser()
    if not path.is_file():
        raise UserError("no such file", where=spec, instead="a path from the recipe's folder or from where you stand")
    return path


def at_hand(spec: str) -> Path | None:
    """As `local_file`; None for a split on the hub that was not fetched yet.

    Raises:
        UserError: A local file or package is not there.
    """
    if not is_hub(spec):
        return local_file(spec)
    file = hub_split(spec).file
    return file if file.is_file() else None


def model_folder(source: str) -> Path:
    """The folder of a checkpoint: a local folder, `package:…`, or a hub id (`owner/name[@revision]`), then fetched.

    Raises:
        UserError: There is no such folder, and the hub does not have it or cannot be reached.
    """
    return local_model(source) or _snapshot(source, fetch=True)


def model_at_hand(source: str) -> Path | None:
    """As `model_folder`; None for what may be a model on the hub that was not fetched yet.

    Raises:
        UserError: There is no such folder, and it cannot be the name of a model on the hub.
    """
    folder = local_model(source)
    if folder is not None:
        return folder
    try:
        return _snapshot(source, fetch=False)
    except UserError:
        named = _HUB_MODEL.fullmatch(source) and not Path(source).parent.is_dir()
        if named or known.config_of(source) is not None:
            return None
        raise


def config_at_hand(source: str) -> dict[str, Any] | None:
    """What a checkpoint's `config.json` says, or what is known of a model on the hub; None: nothing is.

    Raises:
        UserError: As `model_at_hand`; or the file is damaged.
    """
    folder = model_at_hand(source)
    if folder is None:
        return known.config_of(source)
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"not a model's config ({error})", where=str(path), instead="a fresh copy of it") from None
    return config if isinstance(config, dict) else {}


def is_hub_model(source: str) -> bool:
    """Whether a name in a recipe is that of a model on the hub, whatever folder of that name there may be."""
    named = _HUB_MODEL.fullmatch(source) and not source.startswith(LOCAL)
    return bool(named) or known.config_of(source) is not None


def local_model(source: str) -> Path | None:
    """The folder of a checkpoint that is no model on the hub: `package:…`, or a folder of that name.

    Raises:
        UserError: The folder has no `config.json`, or the package is not installed.
    """
    folder = package_path(source) if source.startswith("package:") else Path(source).expanduser()
    if not folder.is_dir():
        return None
    if not (folder / "config.json").is_file():
        raise UserError("no config.json in this folder", where=str(folder), instead="a Hugging Face model folder")
    return folder


def _snapshot(source: str, *, fetch: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download

        kinds = ["*.json", "*.safetensors", "*.txt", "*.model"]
        name, _, revision = source.partition("@")
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=kinds, local_files_only=not fetch)
        )
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise UserError(
            f"neither a local folder nor a model that the hub gives ({type(error).__name__})",
            where=source,
            instead="a folder with config.json and model.safetensors, package:<distribution>, or a hub id",
        ) from None


def task_specs(task: Task) -> list[str]:
    """What a recipe names as the data files of a task, the train file first."""
    return [f for f in (task.train, task.dev, *task.more_dev.values()) if f]


def corpus_specs(corpus: Corpus, tasks: Mapping[str, Task]) -> list[str]:
    """What a recipe names as the files that pre-training text comes from."""
    return [*corpus.files, *(tasks[t].train for t in corpus.tasks)]


def is_compression(suffix: str) -> bool:
    """Whether a file of this suffix is compressed text."""
    return suffix in _OPENERS


def open_text(path: Path) -> TextIO:
    """Opens a text file, compressed (.xz, .gz, .bz2, .zst) or not, as UTF-8."""
    opener = _OPENERS.get(path.suffix)
    if opener is None:
        return path.open(encoding="utf-8-sig", newline="")
    return cast(TextIO, opener(path, "rt", encoding="utf-8-sig", newline=""))


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their line ends, one by one.

    Raises:
        UserError: The file is not UTF-8, has zero bytes, or its compression is damaged.
    """
    try:
        with open_text(path) as stream:
            while line := stream.readline(_LONGEST_LINE):
                if (
                    "\0" in line
                ):  # UTF-16 without a mark at its beginning decodes as UTF-8, every other character a zero
                    raise _unreadable(path, ValueError("it has zero bytes, as UTF-16 has"), lambda raw: b"\0" in raw)
                yield line
    except (UnicodeDecodeError, EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise _unreadable(path, error, _undecodable if isinstance(error, UnicodeDecodeError) else None) from None
    except OSError as error:
        if error.errno is not None:  # bz2 and zstd say OSError without a number for damaged data
            raise
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception, bad: Callable[[bytes], bool] | None = None) -> UserError:
    """`bad` tells the line that the message names; None: the fault is no line's."""
    return UserError(
        f"cannot be read as text ({str(error) or type(error).__name__})",
        where=f"{path}:{_first_line(path, bad)}" if bad else str(path),
        instead="a whole UTF-8 file, plain or .xz, .gz, .bz2, .zst",
    )


def _first_line(path: Path, bad: Callable[[bytes], bool]) -> int:
    """Number of the first line that is bad; decoding goes by blocks and cannot tell."""
    with _OPENERS.get(path.suffix, open)(path, "rb") as stream:
        ends = (line for block in stream for line in block.splitlines())  # an old Mac's lines end in a lone CR
        return next(number for number, line in enumerate(ends, 1) if bad(line))


def _undecodable(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return True
    return False
