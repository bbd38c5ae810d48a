"""What stages hand to each other and leave on disk: artifacts, manifests, hashes.

A finished stage is a folder with a `manifest.json`. Its key says what it was to be made of; the content hashes of its
inputs, what it was made of. It stands as long as both are what they were. Nothing here imports torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from toolkit.core.errors import UserError
from toolkit.core.files import MANIFEST, write_atomic

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
    def message(self, text: str) -> None: ...


class NullProgress:
    """A `Progress` that shows nothing (tests, libraries)."""

    def start(self, total: int) -> None: ...
    def update(self, step: int, **figures: float) -> None: ...
    def message(self, text: str) -> None: ...


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
    progress: Progress = field(default_factory=NullProgress)
    cache: Path = Path(".cache")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` atomically."""
    write_atomic(folder / MANIFEST, manifest.model_dump_json(indent=1))


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


def failed_checks(checks: Iterable[Check]) -> list[Check]:
    """Those that do not hold."""
    return [c for c in checks if not c.ok]
