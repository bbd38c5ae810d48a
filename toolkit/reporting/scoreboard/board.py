"""Published results against what was measured here: the rows, the records of our runs, and what they amount to."""

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

# What may differ from a row's recipe without making it another experiment.
_HARMLESS = ("seed", "threads", "name")


class Source(Section):
    """Where a claim stands."""

    text: str
    url: str
    seen: Literal["yes", "second-hand"] = Field(description="read at the source, or in somebody's copy")


class PublishedResult(Section):
    """A published result: one model, sparsity, precision and task.

    Attributes:
        sparsity: 0: a dense model.
        blocks: Shape of the blocks that are pruned as one; None: single weights.
        recipe: The shipped recipe that makes it, without `.yaml`; with pre-training.
        published: The shipped recipe that starts from the published sparse model.
        claimed: Metric -> percent.
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
        """The IR that it is measured on."""
        return f"{'sparse' if self.sparsity else 'dense'}-{self.precision}"  # type: ignore[return-value]


class Scoreboard(Section):
    """All rows.

    Attributes:
        tolerance: Points below a claim that still count as reproduced.
    """

    tolerance: Number
    sources: dict[str, Source]
    rows: dict[str, PublishedResult]


class Measurement(Section):
    """One run of a row's recipe.

    Attributes:
        start: `pre-training`, or `published` for the published sparse model.
        overrides: What was changed of the recipe, by whoever ran it.
        note: What the task says beside its results, e.g. that its data are reduced.
        values: Metric -> percent, of the exported IR on the whole dev split.
        n: Metric -> examples.
        commit: Of the code that measured it.
        stages: Stage -> commit of the code that made it.
        origins: Key of the recipe -> where that model, checkpoint or file came from. Older records have none.
        differs: What of these, and of the dev split's size, is not the experiment that the recipe names, in words.
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
        """The overrides that make it another experiment."""
        return tuple(sorted(o for o in self.overrides if o.partition("=")[0].strip() not in _HARMLESS))

    @property
    def dirty(self) -> bool:
        """Whether files, and so maybe the recipe, differed from a known commit: nobody could run it again."""
        return any(not commit or commit.endswith("-dirty") for commit in (self.commit, *self.stages.values()))

    @property
    def other_inputs(self) -> tuple[str, ...]:
        """What its models and data were in place of those that the recipe names; nobody knows it of an older record."""
        return self.differs if self.origins else ("models and data of unknown origin",)

    @property
    def as_published(self) -> bool:
        """Whether it is the row's experiment: its budget, its data, nothing reduced."""
        return not (self.note or self.changes or self.dirty or self.other_inputs)

    @property
    def setting(self) -> str:
        """What it shares with the runs that differ from it by the seed alone, in words."""
        uncommitted = "uncommitted changes" if self.dirty else ""
        return "; ".join(filter(None, (self.start, self.note, " ".join(self.changes), uncommitted, *self.other_inputs)))


@dataclass(frozen=True)
class Standing:
    """A row and what was measured of it.

    Attributes:
        measured: Metric -> mean over seeds, percent; of the runs as published, else of those in another setting.
        spread: Metric -> standard deviation over seeds, points; nothing for a single one.
        note: The setting of these runs.
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
    """Reads the rows.

    Raises:
        UserError: The file is not there, or not a scoreboard.
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
    """The recipe without what the row does not need: other variants, and for FP32 the stages behind its model.

    An INT8 model that fails its checks must not keep an FP32 one from being recorded.
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
    """The record of a run of a row's recipe.

    Args:
        name: Of the row.
        row: The claim.
        manifests: Of the run.
        recipe: As it was run.
        written: With the names of models and data as its file has them.
        overrides: What was changed of it.
        published: Whether it starts from the published sparse model.

    Raises:
        UserError: The run did not measure the row's variant or metrics.
    """
    benchmark = next((m for m in manifests if m.stage == "benchmark" and m.task == row.task), None)
    found = benchmark.metrics["variants"].get(row.variant) if benchmark else None
    if benchmark is None or found is None or not row.claimed.keys() <= found["accuracy"].keys():
        raise UserError(
            f"the run did not measure {', '.join(row.claimed)} of {row.variant}",
            where=name,
            instead="a recipe that exports and benchmarks it",
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
    """Writes a measurement beside the others of its row; the same seed, setting and commit again take its place."""
    other = "" if measurement.as_published else "-" + json_hash(measurement.setting)[:8]
    name = f"{measurement.start}-seed{measurement.seed}-{measurement.commit or 'unknown'}{other}.json"
    path = folder / measurement.row / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(measurement.model_dump(mode="json"), indent=1) + "\n")
    return path


def load_measurements(folder: Path) -> list[Measurement]:
    """All records, in the order of their files.

    Raises:
        UserError: One is damaged.
    """
    found = []
    for path in sorted(folder.glob("*/*.json")):
        try:
            found.append(Measurement.model_validate_json(path.read_text()))
        except ValueError:  # of another shape, no JSON, or no UTF-8
            raise UserError(
                "not a record of a measurement", where=str(path), instead="reproduce the row again"
            ) from None
    return found


def assess(board: Scoreboard, found: Sequence[Measurement]) -> list[Standing]:
    """Every row with its status; records that lack a metric which the row claims, as older ones may, do not count."""
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
    """The runs behind a row's figures, all of one setting, the last one of each seed.

    The row's own experiment goes first, with its pre-training before the published model; else it is the setting that
    was run last.
    """
    own = [m for m in runs if m.as_published]
    first = min(own, key=lambda m: m.start != "pre-training") if own else max(runs, key=lambda m: m.started)
    alike = sorted((m for m in runs if m.setting == first.setting), key=lambda m: m.started)
    return list({m.seed: m for m in alike}.values())


def _verdict(claimed: Mapping[str, float], means: Mapping[str, float], tolerance: float) -> Status:
    return "reproduced" if all(means[m] >= claim - tolerance for m, claim in claimed.items()) else "below"
