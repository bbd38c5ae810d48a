"""The search: latency of all points, scores of those that can win, and the recipe of the one that does."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.core import machine
from toolkit.core.errors import UserError
from toolkit.core.files import write_atomic
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.architectures import layer_count, require_reconstructable
from toolkit.models.depth import require_layers_of
from toolkit.pipeline.preflight import check_recipe
from toolkit.pipeline.run_folder import exclusive
from toolkit.pipeline.search.goals import Goal, chosen, dense_of, frontier, nearest, next_point, time_limit
from toolkit.pipeline.search.points import Point, grid, in_8_bits, overrides
from toolkit.recipe import Performance, PerformanceConfigs, Recipe

FRONTIER, LATENCY = "frontier.json", "latency.json"
_CALM = 1.5  # latency of the slowest round by that of the fastest one


@dataclass(frozen=True)
class Inference:
    """What the latency is measured on; None: as the recipe's benchmark has it, or its texts.

    Attributes:
        length: Tokens of the text.
        batch: Examples per inference.
        threads: Inference threads.
    """

    length: int | None = None
    batch: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
        goal: The goal.
        samples: Milliseconds of each round, of every point.
        scores: Scores of the points that can win.
        score_name: What the score is.
        remarks: What a reader of the table has to know.
        section: Settings of the measurement of latency.
        left_out: Label of a point that the recipe cannot train -> the reason.
        best: The chosen point; None: none meets the goal.
        changes: Overrides that make the recipe train the chosen point; empty if there is none.
    """

    goal: Goal
    samples: dict[Point, list[float]]
    scores: dict[Point, float]
    score_name: str
    remarks: tuple[str, ...]
    section: Performance
    left_out: dict[str, str]
    best: Point | None
    changes: tuple[str, ...]

    @property
    def ms(self) -> dict[Point, float]:
        """Latency of every point: the median over the rounds."""
        return {point: statistics.median(found) for point, found in self.samples.items()}

    @property
    def dense(self) -> Point:
        """The dense model with all of its layers."""
        return dense_of(self.ms)

    @property
    def frontier(self) -> set[Point]:
        """The scored points that none beats in both latency and score."""
        return frontier(self.ms, self.scores)

    @property
    def shallow(self) -> Point | None:
        """The dense point of fewer layers with the best score that is fast enough, if it is not chosen."""
        limit = time_limit(self.goal, self.ms)
        fast = [p for p in self.scores if not p.zeros and p != self.dense and limit and self.ms[p] <= limit]
        best = max(fast, key=lambda point: self.scores[point], default=None)
        return None if best == self.best else best

    def missed(self) -> UserError:
        """Returns the error for a goal that no point meets, with the nearest point."""
        point = nearest(self.goal, self.ms, self.scores)
        assert point is not None, "the grid has more than the dense model"
        ms, dense = self.ms[point], self.ms[self.dense]
        near = f"{point.label}: {ms:.2f} ms, {dense / ms:.2f} times as fast as dense INT8"
        if point in self.scores:
            near += f", score {self.scores[point]:.4f} of {self.scores[self.dense]:.4f}"
        what = f"no size that was tried meets the goal: {self.goal}"
        return UserError(what, where=f"--{self.goal.kind}", instead=f"a goal that can be reached; nearest is {near}")


def search(
    load: Callable[[Sequence[str]], Recipe],
    run_folder: Path,
    goal: Goal,
    inference: Inference,
    task: str | None,
    log: Callable[[str], None],
) -> Found:
    """Measures the latency of all points and the scores of those that can win, and chooses.

    Everything that is measured is kept in `<run folder>/search`; a second search reads it.

    Args:
        load: Returns the recipe with some overrides.
        run_folder: Folder of the run.
        goal: The goal.
        inference: What the latency is measured on.
        task: Name of the task that scores; None: the first one with a task teacher, or none.
        log: Receives progress messages.

    Raises:
        UserError: The recipe has no student to search for, or is invalid.
    """
    recipe, inputs = load(()), ResolvedInputs(fetch=True)
    _require_searchable(recipe, task)
    full, recipes, left_out = _recipes(load, recipe, inputs)

    from toolkit.models.checkpoint import require_length
    from toolkit.pipeline.search.dense import dense_model
    from toolkit.pipeline.search.latency import latencies
    from toolkit.pipeline.search.scores import Scores

    folder = run_folder / "search"
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        dense = dense_model(recipe, run_folder, inputs, task, log)
        section = _performance(recipe, inference, dense.task, dense.longest)
        require_length(section.sequence_length, dense.tokenizer.model_max_length, "--length")
        points = [full, *recipes]
        samples = latencies(points, recipe, dense, section, folder / LATENCY, log)
        ms = {point: statistics.median(found) for point, found in samples.items()}
        job = Scores(dense, recipes, min(point.layers for point in recipes), folder, log)
        scores = {full: dense.measure(dense.model)}
        while (point := next_point(goal, ms, scores)) is not None:
            scores[point] = job.of(point)
        best = chosen(goal, ms, scores)
        changes: tuple[str, ...] = ()
        if best is not None and best != full:
            changes = _changes(recipe, best, job.kept(best))
            check_recipe(load(changes), inputs, read_rows=False)
        needs = "" if in_8_bits(recipe) else "A model in 8 bits needs a `quantize` section, which the recipe lacks."
        remarks = tuple(filter(None, (dense.remark, needs, _unrest(samples, folder))))
        found = Found(goal, samples, scores, dense.score_name, remarks, section, left_out, best, changes)
        write_atomic(folder / FRONTIER, json.dumps(document(found), indent=1))
    return found


def _require_searchable(recipe: Recipe, task: str | None) -> None:
    """Checks that a recipe has a student whose size can be searched for.

    Raises:
        UserError: It has none, or an unknown task is named.
    """
    if "student" in recipe.ready:
        raise UserError(
            f"the student is ready ({recipe.ready['student']}), so there is no size to search for",
            where="ready.student",
            instead="a recipe that makes its student: 'ready={teacher: …}' with a `student` section and a `corpus`",
        )
    if recipe.student is None:
        raise UserError(
            "the recipe makes no student, so there is no size to search for",
            where=recipe.name,
            instead="a `student` section, such as student: {distillation: {train: {epoch: 3}}}, and a `corpus`",
        )
    if task is not None and task not in recipe.tasks:
        what = f"the recipe has no task {task!r}"
        raise UserError(what, where="--task", instead=", ".join(recipe.tasks) or "no --task")


def _recipes(
    load: Callable[[Sequence[str]], Recipe], recipe: Recipe, inputs: ResolvedInputs
) -> tuple[Point, dict[Point, Recipe], dict[str, str]]:
    """Returns the dense model's point, the recipe of every other one, and the reasons why some are left out.

    The recipe itself need not say how it prunes, so it is not checked.

    Raises:
        UserError: No point is left, or the model's layers cannot be removed, or rows of the data are invalid.
    """
    config = inputs.model(recipe.ready.get("teacher", recipe.model.source)).config
    assert config is not None, "models are fetched"
    total = layer_count(config)
    require_layers_of(config, total)
    require_reconstructable(config, recipe.model.source)  # every size is scored by it, dense ones too
    dense, *points = grid(total)
    found, errors = dict[Point, Recipe](), dict[Point, UserError]()
    checked = set[tuple[int, bool, int]]()  # the fraction of zeros is part of the recipe's own validation
    for point in points:
        kept = None if point.layers == dense.layers else range(point.layers)
        try:
            made = load(_changes(recipe, point, kept))
            if (kind := (point.layers, point.zeros > 0, point.block)) not in checked:
                check_recipe(made, inputs, read_rows=False)
                checked.add(kind)
        except UserError as error:
            errors[point] = error
        else:
            found[point] = made
    left_out = {point.label: f"{error.where}: {error.what}".removeprefix(": ") for point, error in errors.items()}
    if not found and len(set(left_out.values())) == 1:
        raise next(iter(errors.values()))
    if not found:
        reasons = "\n".join(f"  {label}: {reason}" for label, reason in left_out.items())
        raise UserError(f"the recipe can train no size:\n{reasons}", where=recipe.name)
    check_recipe(next(iter(found.values())), inputs)  # with the rows, which all have in common
    return dense, found, left_out


def _unrest(samples: Mapping[Point, Sequence[float]], folder: Path) -> str:
    """Returns a remark if the rounds of a point differ too much for a comparison; empty if they do not."""
    widest = max(max(found) / min(found) for found in samples.values())
    if widest < _CALM:
        return ""
    return (
        f"The rounds of one size differ by up to {widest:.1f} times: the machine was not idle. Delete "
        f"{folder / LATENCY} to measure again."
    )


def _changes(recipe: Recipe, point: Point, kept: Sequence[int] | None) -> tuple[str, ...]:
    """Returns the overrides that make the recipe train a size, in a run folder of its own."""
    return (f"name={recipe.name}-found", *overrides(recipe, point, kept))


def _performance(recipe: Recipe, inference: Inference, task: str | None, longest: int) -> Performance:
    """Returns the settings of a short measurement."""
    names = [task] if task else list(recipe.tasks)
    sections = [found for name in names if (found := recipe.section("benchmark", name)) is not None]
    given = sections[0].evaluation.performance if sections else None
    configs = given.configs if given else PerformanceConfigs()
    return Performance(
        warmup=0,
        iteration=3,
        seconds=1,
        batch_sizes=(inference.batch or (given.batch_sizes[0] if given else 1),),
        sequence_length=inference.length or (given.sequence_length if given else longest),
        configs=configs.model_copy(update={"cores_per_instance": inference.threads}) if inference.threads else configs,
    )


def document(found: Found) -> dict[str, object]:
    """Returns the result as JSON values."""
    points = [
        {
            "label": point.label,
            "layers": point.layers,
            "zeros": point.zeros,
            "block": point.block,
            "ms": found.ms[point],
            "samples_ms": found.samples[point],
            "score": found.scores.get(point),
            "frontier": point in found.frontier,
        }
        for point in sorted(found.samples, key=lambda point: found.ms[point])
    ]
    return {
        "goal": {"kind": found.goal.kind, "value": found.goal.value},
        "score": found.score_name,
        "remarks": list(found.remarks),
        "dense": found.dense.label,
        "chosen": found.best.label if found.best else None,
        "overrides": list(found.changes),
        "points": points,
        "left_out": found.left_out,
        "performance": found.section.model_dump(mode="json"),
        "machine": machine.describe(),
        "versions": machine.versions(),
    }
