"""Scoreboard: published results, records of our own runs of them, and the status of each result."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from toolkit.core.artifacts import Manifest
from toolkit.core.errors import UserError
from toolkit.core.files import json_hash, write_atomic
from toolkit.core.yaml_document import read_yaml
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.recipe import Recipe, VariantName
from toolkit.recipe.fields import Fraction, Number, Section
from toolkit.reporting.scoreboard.provenance import origins, reduced

Status = Literal["unverified", "reproduced", "below", "other setting"]

# Overrides that do not make a run another experiment than the recipe's.
_HARMLESS = ("seed", "threads", "name")


class Source(Section):
    """Source of a published result.

    Attributes:
        text: Citation.
        url: Address.
        seen: Whether the result was read at the source itself.
    """

    text: str
    url: str
    seen: Literal["yes", "second-hand"] = Field(description="yes: read at the source; second-hand: read in a copy")


class PublishedResult(Section):
    """A published result: one model, sparsity, precision and task.

    Attributes:
        model: Name of the model.
        sparsity: Fraction of zeros; 0: a dense model.
        blocks: Shape of the blocks that are pruned together; None: single weights.
        precision: Precision of the model.
        task: Name of the task.
        source: Key of the source.
        recipe: Name of the shipped recipe that reproduces it including pre-training.
        published: Name of the shipped recipe that starts from the published sparse model.
        claimed: Metric -> published score in percent.
    """

    model: str
    sparsity: Fraction
    blocks: str | None = None
    precision: Literal["fp32", "int8"]
    task: str
    source: str
    recipe: str | None = None
    published: str | None = None
    claimed: dict[str, Number]

    @property
    def variant(self) -> VariantName:
        """Name of the variant that it is measured on."""
        return f"{'sparse' if self.sparsity else 'dense'}-{self.precision}"  # type: ignore[return-value]


class Scoreboard(Section):
    """Contents of the scoreboard file.

    Attributes:
        tolerance: Points that a measurement may be below the published score and still count as reproduced.
        sources: Sources by key.
        rows: Published results by name.
    """

    tolerance: Number
    sources: dict[str, Source]
    rows: dict[str, PublishedResult]


class Measurement(Section):
    """Record of one run of a published result's recipe.

    Attributes:
        row: Name of the published result.
        start: `pre-training`, or `published` if the run started from the published sparse model.
        overrides: Overrides of the recipe.
        note: The task's note on its results, e.g. that its data are reduced.
        values: Metric -> score in percent of the exported IR on the complete dev split.
        n: Metric -> number of examples.
        seed: Seed of the run.
        machine: Machine of the benchmark.
        versions: Library versions of the benchmark.
        commit: Commit of the code that ran the benchmark.
        stages: Stage -> commit of the code that ran it.
        origins: Recipe key -> origin of that model, checkpoint or file. Absent from older records.
        differs: Deviations of models, data or dev split size from those that the recipe names, as text.
        started: Start of the benchmark, ISO 8601, UTC.
    """

    row: str
    start: Literal["pre-training", "published"]
    overrides: tuple[str, ...]
    note: str
    values: dict[str, Number]
    n: dict[str, int]
    seed: int
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str
    stages: dict[str, str] = Field({})
    origins: dict[str, str] = Field({})
    differs: tuple[str, ...] = Field(())
    started: str

    @property
    def changes(self) -> tuple[str, ...]:
        """Overrides that make it another experiment."""
        return tuple(sorted(o for o in self.overrides if o.partition("=")[0].strip() not in _HARMLESS))

    @property
    def dirty(self) -> bool:
        """Whether the code, and so possibly the recipe, differs from a known commit: the run cannot be repeated."""
        return any(not commit or commit.endswith("-dirty") for commit in (self.commit, *self.stages.values()))

    @property
    def other_inputs(self) -> tuple[str, ...]:
        """Deviations of models and data from those that the recipe names; unknown for older records."""
        return self.differs if self.origins else ("models and data of unknown origin",)

    @property
    def as_published(self) -> bool:
        """Whether it is the published experiment: same budget, same data, nothing reduced."""
        return not (self.note or self.changes or self.dirty or self.other_inputs)

    @property
    def setting(self) -> str:
        """Text that is equal for runs that differ in the seed only."""
        uncommitted = "uncommitted changes" if self.dirty else ""
        return "; ".join(filter(None, (self.start, self.note, " ".join(self.changes), uncommitted, *self.other_inputs)))


@dataclass(frozen=True)
class Standing:
    """A published result with its measurements.

    Attributes:
        name: Name of the published result.
        row: The published result.
        status: Outcome of the comparison.
        measured: Metric -> mean over seeds in percent: of the runs as published, else of runs in another setting.
        spread: Metric -> standard deviation over seeds in points; empty for a single seed.
        n: Metric -> number of examples.
        seeds: Seeds of these runs.
        note: Setting of these runs.
    """

    name: str
    row: PublishedResult
    status: Status
    measured: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    n: dict[str, int] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    note: str = ""


def load_scoreboard(path: Path) -> Scoreboard:
    """Reads a scoreboard file.

    Raises:
        UserError: The file is missing or invalid.
    """
    if not path.is_file():
        raise UserError("no scoreboard here", where=str(path), instead="--file benchmarks/scoreboard.yaml")
    document = read_yaml(path)
    try:
        board = Scoreboard.model_validate(document.data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{key}: {first['msg']}", where=document.place(first["loc"]).text) from None
    for name, row in board.rows.items():
        if row.source not in board.sources:
            place = document.place(("rows", name, "source")).text
            raise UserError(f"unknown source {row.source!r}", where=place, instead=", ".join(board.sources))
    return board


def needed_recipe(recipe: Recipe, row: PublishedResult) -> Recipe:
    """Returns the recipe reduced to what a result needs: its variant and, for FP32, no later training stages.

    Otherwise an INT8 model that fails its checks would prevent an FP32 result from being recorded.
    """
    if recipe.export is None:
        return recipe
    changes: dict[str, Any] = {"export": recipe.export.model_copy(update={"variants": (row.variant,)})}
    if row.precision == "fp32":
        left_out = dict.fromkeys(("quantize",) if row.sparsity else ("transfer", "quantize"))
        tasks = {name: task.model_copy(update=left_out) for name, task in recipe.tasks.items()}
        changes |= {"tasks": tasks, **left_out} | ({} if row.sparsity else {"student": None})
    return recipe.model_copy(update=changes)


def measurement_of(
    name: str,
    row: PublishedResult,
    manifests: Sequence[Manifest],
    recipe: Recipe,
    written: Recipe,
    overrides: Sequence[str],
    published: bool,
) -> Measurement:
    """Returns the record of a run of a published result's recipe.

    Args:
        name: Name of the published result.
        row: The published result.
        manifests: Manifests of the run.
        recipe: The recipe as it was run, with resolved references.
        written: The recipe with references as its file has them.
        overrides: Overrides of the recipe.
        published: Whether the run started from the published sparse model.

    Raises:
        UserError: The run did not measure the result's variant or metrics.
    """
    benchmark = next((m for m in manifests if m.stage == "benchmark" and m.task == row.task), None)
    found = benchmark.metrics["variants"].get(row.variant) if benchmark else None
    if benchmark is None or found is None or not row.claimed.keys() <= found["accuracy"].keys():
        raise UserError(
            f"the run did not measure {', '.join(row.claimed)} of {row.variant}",
            where=name,
            instead="use a recipe that exports and benchmarks it",
        )
    counts = {metric: benchmark.metrics["counts"][metric] for metric in row.claimed}
    found_at = origins(recipe, written, row.task, ResolvedInputs())
    stand_ins = (origin.stands_in for origin in found_at.values() if origin.stands_in)
    return Measurement(
        row=name,
        start="published" if published else "pre-training",
        overrides=tuple(overrides),
        note=recipe.tasks[row.task].note,
        values={metric: round(100 * found["accuracy"][metric], 4) for metric in row.claimed},
        n=counts,
        seed=recipe.seed,
        machine=benchmark.machine,
        versions=benchmark.versions,
        commit=benchmark.commit or "",
        stages={m.stage: m.commit for m in manifests if m.task in (None, row.task)},
        origins={key: origin.text for key, origin in found_at.items()},
        differs=(*dict.fromkeys(stand_ins), *reduced(written.tasks[row.task], counts)),
        started=benchmark.started,
    )


def save_measurement(measurement: Measurement, folder: Path) -> Path:
    """Writes a record to its result's folder and returns the path; equal seed, setting and commit overwrite it."""
    other = "" if measurement.as_published else "-" + json_hash(measurement.setting)[:8]
    name = f"{measurement.start}-seed{measurement.seed}-{measurement.commit or 'unknown'}{other}.json"
    path = folder / measurement.row / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(measurement.model_dump(mode="json"), indent=1) + "\n")
    return path


def load_measurements(folder: Path) -> list[Measurement]:
    """Reads all records, ordered by path.

    Raises:
        UserError: A record is damaged.
    """
    found = []
    for path in sorted(folder.glob("*/*.json")):
        try:
            found.append(Measurement.model_validate_json(path.read_text()))
        except ValueError:  # wrong fields, invalid JSON or invalid UTF-8
            raise UserError(
                "not a record of a measurement", where=str(path), instead="delete it and run `pruneofa reproduce` again"
            ) from None
    return found


def assess(board: Scoreboard, found: Sequence[Measurement]) -> list[Standing]:
    """Compares every result with its records, except (older) ones that lack a published metric."""
    by_row: dict[str, list[Measurement]] = {}
    for measurement in found:
        row = board.rows.get(measurement.row)
        if row is not None and row.claimed.keys() <= measurement.values.keys():
            by_row.setdefault(measurement.row, []).append(measurement)
    return [_standing(name, row, by_row.get(name, []), board.tolerance) for name, row in board.rows.items()]


def _standing(name: str, row: PublishedResult, runs: list[Measurement], tolerance: float) -> Standing:
    if not runs:
        return Standing(name=name, row=row, status="unverified")
    counted = _counted(runs)
    values = {metric: [m.values[metric] for m in counted] for metric in row.claimed}
    means = {metric: statistics.mean(v) for metric, v in values.items()}
    status = _verdict(row.claimed, means, tolerance) if counted[0].as_published else "other setting"
    return Standing(
        name=name,
        row=row,
        status=status,
        measured=means,
        spread={metric: statistics.stdev(v) for metric, v in values.items() if len(v) > 1},
        n=counted[-1].n,
        seeds=tuple(sorted(m.seed for m in counted)),
        note=counted[0].setting,
    )


def _counted(runs: Sequence[Measurement]) -> list[Measurement]:
    """Selects the runs to average: those of one setting, the last one per seed.

    The published experiment takes precedence, with pre-training before the published model; without it, the most recent
    setting is taken.
    """
    own = [m for m in runs if m.as_published]
    first = min(own, key=lambda m: m.start != "pre-training") if own else max(runs, key=lambda m: m.started)
    alike = sorted((m for m in runs if m.setting == first.setting), key=lambda m: m.started)
    return list({m.seed: m for m in alike}.values())


def _verdict(claimed: Mapping[str, float], means: Mapping[str, float], tolerance: float) -> Status:
    return "reproduced" if all(means[m] >= claim - tolerance for m, claim in claimed.items()) else "below"
