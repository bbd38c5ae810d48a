"""Artifacts and manifests: the data model of stage results, in memory and on disk.

A finished stage is a folder with a `manifest.json`. Its cache key identifies the requested configuration, inputs and
data; the content hashes of its inputs identify what was used. The result is valid while both are unchanged. Nothing
here imports torch.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.core.errors import UserError
from toolkit.core.files import MANIFEST, PAPERS, content_hash, write_atomic

Kind = Literal["dense", "sparse", "task", "quantized", "ir", "measurement"]


class Artifact(BaseModel):
    """A folder (or file) identified by its content hash.

    Attributes:
        kind: Type of the content.
        path: Location; relative to the run folder inside a manifest.
        sha256: Content hash, see `artifact_hash`.
        parents: Content hashes of the artifacts that it was computed from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    path: Path
    sha256: str
    parents: tuple[str, ...] = ()


def artifact_hash(kind: Kind, path: Path) -> str:
    """Returns the content hash of an artifact.

    The model cards of exported IRs, which are written again when more is measured, are not part of it.
    """
    return content_hash(path, PAPERS) if kind == "ir" else content_hash(path)


class Check(BaseModel):
    """One measured invariant; `limit` is the value that `measured` was compared with.

    `instead` is what to do if it fails, and the recipe key that sets the limit; it is shown, not stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    ok: bool
    measured: float | str
    limit: float | str
    instead: str = Field("", exclude=True)


class Manifest(BaseModel):
    """Record of one finished stage; reports are pure functions of manifests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    task: str | None = None
    key: str  # hash of config, inputs and data: the cache key
    config: dict[str, Any]  # the recipe sections that the stage depends on
    inputs: dict[str, str]  # input name -> content hash
    data: dict[str, Any] = {}  # provenance: file -> hash, rows, notes
    seed: int
    artifact: Artifact
    metrics: dict[str, Any] = {}
    checks: tuple[Check, ...] = ()
    history: tuple[dict[str, float], ...] = ()  # training curve: step, loss, learning_rate, sparsity, ...
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}
    run: dict[str, str] = {}  # name, description and model of the recipe, and the recipe itself as YAML
    commit: str = ""
    started: str  # ISO 8601, UTC
    seconds: float


@dataclass
class StageResult:
    """Return value of a stage function; the pipeline wraps it into a `Manifest`."""

    kind: Kind
    metrics: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


class Progress(Protocol):
    """Interface through which a stage reports progress. `figures` are shown by name: loss, sparsity, learning_rate."""

    def start(self, total: int) -> None: ...
    def update(self, step: int, **figures: float) -> None: ...
    def message(self, text: str) -> None: ...


class NullProgress:
    """`Progress` that shows nothing, for tests and library use."""

    def start(self, total: int) -> None: ...
    def update(self, step: int, **figures: float) -> None: ...
    def message(self, text: str) -> None: ...


@dataclass(frozen=True)
class Tracking:
    """Where the training curve of a stage is recorded, besides the manifest.

    Attributes:
        tool: Name of the tool, as transformers has it: tensorboard, mlflow or wandb.
        run: Name of the tool's run: that of the recipe, the task and the stage.
        folder: Folder of TensorBoard's log.
    """

    tool: str
    run: str
    folder: Path


@dataclass(frozen=True)
class Context:
    """Environment of a stage: folders, seed and progress display.

    Attributes:
        folder: Output folder; it becomes the stage's folder when the stage returns.
        work: Scratch folder that survives an interruption (trainer checkpoints); deleted when the stage is done.
        cache: Folder shared by all stages of a run and kept after it. Entries are named by their content and
            recomputed when missing.
        seed: Seed of all randomness in the stage.
        task: Name of the task; None for `teacher` and `student`.
        progress: Progress display of the stage.
        scores: Name of an input -> the scores on dev that its stage measured; a ready checkpoint has none.
        ready: Names of the inputs that are ready checkpoints.
        require_unchanged: Raises a UserError if an input or a data file differs from the one that the cache key names.
        time_over: Returns whether the run's time limit is over: a training saves a checkpoint at its next optimizer
            step and raises TimeLimitReached.
        tracking: Tool that records the training curve, too; None: none. Results do not depend on it.
    """

    folder: Path
    work: Path
    seed: int
    task: str | None = None
    progress: Progress = field(default_factory=NullProgress)
    cache: Path = Path(".cache")
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    ready: frozenset[str] = frozenset()
    require_unchanged: Callable[[], None] = lambda: None
    time_over: Callable[[], bool] = lambda: False
    tracking: Tracking | None = None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` atomically.

    Raises:
        UserError: A measured value is NaN or infinite, which JSON cannot hold: the manifest could not be read back.
    """
    measured = {"metrics": manifest.metrics, "history": manifest.history, "data": manifest.data}
    measured["checks"] = {check.name: check.measured for check in manifest.checks}
    if broken := _non_finite(measured):
        raise UserError(
            f"the stage measured a value that is not finite: {broken}",
            where=str(folder),
            instead="check its training curve and its inputs; a lower learning_rate if the training diverged",
        )
    write_atomic(folder / MANIFEST, manifest.model_dump_json(indent=1))


def _non_finite(value: Any, key: str = "") -> str:
    """Returns the first number in nested values that is NaN or infinite, with its key; empty if there is none."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{key} is {value}"
    nested = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    parts = (_non_finite(inner, f"{key}.{name}" if key else str(name)) for name, inner in nested)
    return next(filter(None, parts), "")


def read_manifest(folder: Path) -> Manifest | None:
    """Returns the manifest of a stage folder, or None if the folder has no finished stage.

    Raises:
        UserError: The manifest exists but cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise UserError(
            f"this manifest cannot be read ({reason}): it is damaged, or of another version of the toolkit",
            where=str(path),
            instead="delete the folder; the next run reruns the stage",
        ) from None


def failed_checks(checks: Iterable[Check]) -> list[Check]:
    """Returns the checks that failed."""
    return [c for c in checks if not c.ok]
