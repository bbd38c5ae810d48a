"""What stages hand to each other and leave on disk: artifacts, manifests, hashes.

A finished stage is a folder with a `manifest.json`. Its key says what it was to be made of; the content hashes of its
inputs, what it was made of. It stands as long as both are what they were. Nothing here imports torch.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from toolkit.core.errors import UserError

MANIFEST = "manifest.json"
Kind = Literal["dense", "sparse", "task", "quantized", "ir", "measurement"]


class Artifact(BaseModel):
    """A folder (or file) with known content.

    Attributes:
        kind: What it holds.
        path: Where it lies; relative to the run folder inside a manifest.
        sha256: Content hash, see `content_hash`.
        parents: Hashes of the artifacts that it was made from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    path: Path
    sha256: str
    parents: tuple[str, ...] = ()


class Check(BaseModel):
    """One invariant, as measured. `limit` says what it was held against."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    ok: bool
    measured: float | str
    limit: float | str


class Manifest(BaseModel):
    """The record of one finished stage; reports are pure functions of these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    task: str | None = None
    key: str  # hash of config, inputs and data: the cache key
    config: dict[str, Any]  # the recipe sections the stage saw
    inputs: dict[str, str]  # input name -> content hash
    data: dict[str, Any] = {}  # provenance: file -> hash, rows, notes
    seed: int
    artifact: Artifact
    metrics: dict[str, Any] = {}
    checks: tuple[Check, ...] = ()
    history: tuple[dict[str, float], ...] = ()  # training curve: step, loss, learning_rate, sparsity, ...
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}
    run: dict[str, str] = {}  # name, description and model of the recipe
    commit: str = ""
    started: str  # ISO 8601, UTC
    seconds: float


@dataclass
class StageResult:
    """What a stage function returns; the pipeline wraps it into a `Manifest`."""

    kind: Kind
    metrics: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


class Progress(Protocol):
    """Where a stage says how far it is. `figures` are shown by name: loss, sparsity, learning_rate."""

    def start(self, total: int) -> None: ...
    def update(self, step: int, **figures: float) -> None: ...
    def say(self, text: str) -> None: ...


class Silent:
    """A `Progress` that shows nothing (tests, libraries)."""

    def start(self, total: int) -> None: ...
    def update(self, step: int, **figures: float) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass(frozen=True)
class Context:
    """What a stage may use besides its recipe sections and inputs.

    Attributes:
        folder: Where the stage writes its result; becomes the stage's folder when it returns.
        work: Scratch that survives an interruption (trainer checkpoints); deleted when the stage is done.
        cache: What all stages of a run share and is made again when it is missing, each under a name made of its
            content; it stays.
        seed: Seed of all randomness in the stage.
        task: Name of the task, None for `teacher`, `student` and `report`.
        progress: Where to say how far the stage is.
    """

    folder: Path
    work: Path
    seed: int
    task: str | None = None
    progress: Progress = field(default_factory=Silent)
    cache: Path = Path(".cache")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_hash(path: Path) -> str:
    """Hash of a file, or of a folder's relative names and contents (manifest and hidden files left out)."""
    if path.is_file():
        return file_hash(path)
    entries = [
        (str(p.relative_to(path)), file_hash(p))
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name != MANIFEST and not any(s.startswith(".") for s in p.relative_to(path).parts)
    ]
    return json_hash(entries)


def json_hash(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Writes a file that later runs rely on: a kill leaves the old text or the new one, never an empty file."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` atomically."""
    write_whole(folder / MANIFEST, manifest.model_dump_json(indent=1))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a stage folder, or None when the stage has not finished there.

    Raises:
        UserError: The manifest is there but cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_text())
    except (ValidationError, ValueError) as error:
        raise UserError(
            f"this manifest cannot be read ({str(error).splitlines()[0]})",
            where=str(path),
            instead="delete the folder; the next run makes it again",
        ) from None


def failed(checks: Iterable[Check]) -> list[Check]:
    """Those that do not hold."""
    return [c for c in checks if not c.ok]


def fresh_unless_same(partial: Path, key: str) -> Path:
    """The scratch folder of an interrupted attempt with this key, or a new one."""
    work = partial / ".work"
    marker = work / "key.json"
    if not (marker.is_file() and marker.read_text() == json.dumps(key)):
        shutil.rmtree(partial, ignore_errors=True)
        work.mkdir(parents=True)
        write_whole(marker, json.dumps(key))
    return work


def promote(partial: Path, folder: Path) -> None:
    """Puts the whole stage in its place; what was there before goes only when the new one is complete."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Two processes in one run folder would overwrite each other."""
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError("another process is running in this folder", where=str(folder)) from None
        stream.write(str(os.getpid()))
        yield
