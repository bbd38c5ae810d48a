"""The stage graph: the steps of a recipe, and which of them are cached. Read this file first, then `run.py`.

    base ─ teacher ─ student ─┬───────────────┐            once
             └─ task_teacher ─┴─ transfer ─ quantize ─ export ─ benchmark      for each task
                                                                  └─ report

A finished stage is `<run>/<stage>/` or `<run>/tasks/<task>/<stage>/` with a `manifest.json`. Its `key` is a hash of
its recipe sections, the seed, the contents of its data files and the keys of its inputs; for an export to the sparse
engine also of the version of the packed format. A stage runs only if no folder has its key, or if one of its inputs has
since been regenerated with different content. It is written to `<stage>.partial/`, which is renamed when it is
complete, so killing a run loses at most the work since the last checkpoint in `<stage>.partial/.work/`.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.core.artifacts import Artifact, Kind, Manifest, read_manifest
from toolkit.core.errors import UserError
from toolkit.core.files import content_hash
from toolkit.data.resolved_inputs import ResolvedInputs, ResolvedModel
from toolkit.measure.manifest_schema import require_recorded
from toolkit.models.depth import is_dense, is_shallow
from toolkit.pipeline.cache_keys import accepted_keys, data_hashes, sections_of
from toolkit.recipe import KINDS, VARIANTS, Export, Recipe, variants_of_dense


@dataclass(frozen=True)
class Stage:
    """Declaration of a stage. `toolkit/pipeline/stages/<name>.py` defines its `Inputs` and `run(Inputs, Context)`.

    Attributes:
        name: Name of the stage, its module and its folder.
        kind: Kind of the artifact that it writes.
        sections: Names of the recipe sections that `run` reads and that its cache key therefore depends on.
        needs: Names of the required inputs; `a|b` is the first of the alternatives that the run has.
        optional: Names of the inputs that are used if the run has them.
        teacher: Name of the input that is required if the stage's section has `distillation`, or if the task is one
            that the dense model solves as it is, with which the stage's model is compared; unused otherwise.
        per_task: Whether the stage runs once per task rather than once per run.
        trains: Whether it can be distributed over several processes.
    """

    name: str
    kind: Kind
    sections: tuple[str, ...]
    needs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    teacher: str | None = None
    per_task: bool = True
    trains: bool = True

    def needed(self, recipe: Recipe, task: str | None) -> tuple[str, ...]:
        """Returns the names of the inputs that the stage requires with this recipe."""
        if self.teacher is None:
            return self.needs
        compared = task is not None and KINDS[recipe.tasks[task].kind].dense_teaches
        distilled = recipe.section(self.name, task).distillation is not None
        return (*self.needs, self.teacher) if compared or distilled else self.needs


STAGES = (
    Stage("teacher", "dense", ("model", "corpus", "corpus_tasks", "teacher"), ("base",), per_task=False),
    Stage("student", "sparse", ("model", "corpus", "corpus_tasks", "student"), ("teacher|base",), per_task=False),
    Stage("task_teacher", "task", ("model", "task", "task_teacher"), ("teacher|base",)),
    Stage("transfer", "task", ("model", "task", "transfer"), ("student|teacher|base",), teacher="task_teacher"),
    Stage("quantize", "quantized", ("model", "task", "quantize"), ("transfer",), teacher="task_teacher"),
    Stage(
        "export",
        "ir",
        ("model", "task", "quantize", "export"),
        (),
        ("task_teacher", "transfer", "quantize"),
        trains=False,
    ),
    Stage(
        "benchmark",
        "measurement",
        ("task", "transfer_tuning", "quantize", "benchmark"),
        ("export",),
        ("task_teacher", "transfer", "quantize"),
        trains=False,
    ),
)
STAGE_NAMES = tuple(s.name for s in STAGES)


@dataclass(frozen=True)
class Step:
    """A stage of a recipe with its inputs, its folder and its cache key.

    Attributes:
        stage: Declaration of the stage.
        task: Name of the task; None for the stages of pre-training.
        folder: Folder of the finished stage.
        key: Cache key.
        inputs: Input name -> the step that produces it, or a ready artifact.
        sections: Section name -> values, see `Stage.sections`.
        data: Data file -> content hash.
        manifest: Manifest of the finished stage if `folder` contains exactly this step, else None.
    """

    stage: Stage
    task: str | None
    folder: Path
    key: str
    inputs: "dict[str, Step | Artifact]"
    sections: dict[str, Any]
    data: dict[str, str]
    manifest: Manifest | None

    @property
    def label(self) -> str:
        """Task and stage, e.g. `sst2/transfer`."""
        return f"{self.task}/{self.stage.name}" if self.task else self.stage.name


def plan(recipe: Recipe, run_folder: Path, inputs: ResolvedInputs) -> list[Step]:
    """Returns the steps of a recipe in execution order, each with its manifest if it is cached.

    Args:
        recipe: The recipe.
        run_folder: Folder of the run; need not exist.
        inputs: Models and data files; one that is neither cached nor fetched is identified by its name.

    Raises:
        UserError: A model, checkpoint or data file is missing, or no stage provides an input.
    """
    sources: dict[tuple[str | None, str], Step | Artifact] = {}
    sources[None, "base"] = _ready("dense", recipe.model.source, inputs)
    steps = []
    for task in (None, *recipe.tasks):
        ready = recipe.tasks[task].ready if task else recipe.ready
        for stage in (s for s in STAGES if s.per_task == (task is not None)):
            if stage.name in ready:
                artifact = _ready(stage.kind, ready[stage.name], inputs)  # type: ignore[index]
                if stage.kind == "sparse" and artifact.path.is_dir() and is_shallow(artifact.path):
                    artifact = artifact.model_copy(update={"kind": "dense"})
                sources[task, stage.name] = artifact
            elif recipe.section(stage.name, task) is not None:
                step = _step(recipe, stage, task, run_folder, sources, inputs)
                sources[task, stage.name] = step
                steps.append(step)
    return steps


def _ready(kind: Kind, source: str, inputs: ResolvedInputs) -> Artifact:
    folder = inputs.model(source).folder
    if folder is None:
        return Artifact(kind=kind, path=Path(source), sha256=source)
    return Artifact(kind=kind, path=folder, sha256=content_hash(folder))


def _step(
    recipe: Recipe,
    stage: Stage,
    task: str | None,
    run_folder: Path,
    sources: "dict[tuple[str | None, str], Step | Artifact]",
    resolved: ResolvedInputs,
) -> Step:
    inputs: dict[str, Step | Artifact] = {}
    needed = stage.needed(recipe, task)
    for need in (*needed, *stage.optional):
        names = need.split("|")
        found = next((sources[t, n] for n in names for t in (task, None) if (t, n) in sources), None)
        if found is not None:
            inputs[names[0]] = found
        elif need in needed:
            raise _missing_input(recipe, stage, task, names[0])
    if not inputs:
        raise _missing_input(recipe, stage, task, stage.optional[0])
    sections = sections_of(recipe, stage.sections, task)
    data, roles = data_hashes(sections, resolved)
    folder = (run_folder / "tasks" / task if task else run_folder) / stage.name
    manifest = read_manifest(folder)
    if manifest is not None:
        require_recorded(manifest, folder, stage.name, task, complete=False)
    identities = {name: i.key if isinstance(i, Step) else i.sha256 for name, i in inputs.items()}
    keys = accepted_keys(stage.name, recipe.seed, sections, roles, identities)
    key = next((k for k in keys if manifest is not None and manifest.key == k), keys[-1])
    finished = {i.label: i.manifest for i in inputs.values() if isinstance(i, Step) and i.manifest is not None}
    same = manifest is not None and manifest.key == key and inputs_unchanged(manifest, inputs, finished)
    here = manifest if same else None
    return Step(stage, task, folder, key, inputs, sections, data, here)


def check_graph(recipe: Recipe, inputs: ResolvedInputs) -> None:
    """Checks that every stage of a recipe has its inputs, and every export a variant that it can make.

    Args:
        recipe: The recipe.
        inputs: Its models; a ready one that is not downloaded yet may be dense.

    Raises:
        UserError: No stage provides an input, or a model for one of the variants.
    """
    provided: set[tuple[str | None, str]] = {(None, "base")}
    for task in (None, *recipe.tasks):
        ready = recipe.tasks[task].ready if task else recipe.ready
        for stage in (s for s in STAGES if s.per_task == (task is not None)):
            section = recipe.section(stage.name, task)
            if stage.name not in ready and section is None:
                continue
            provided.add((task, stage.name))
            if stage.name in ready:
                continue
            for need in (*stage.needed(recipe, task), *([] if stage.needs else ["|".join(stage.optional)])):
                if not any((t, name) in provided for name in need.split("|") for t in (task, None)):
                    raise _missing_input(recipe, stage, task, need.split("|")[0])
            if isinstance(section, Export):
                own = recipe.tasks[task].ready if task else {}
                model = inputs.model(own["transfer"]) if "transfer" in own else None
                stages = {name for t, name in provided if t == task}
                require_variant(section, stages, str(task), partial(_may_be_dense, model))


def _may_be_dense(ready: ResolvedModel | None) -> bool:
    return ready is not None and (ready.folder is None or is_dense(ready.folder))


def require_variant(export: Export, stages: Collection[str], task: str, may_be_dense: Callable[[], bool]) -> None:
    """Checks that there is a model for at least one variant of an export.

    Args:
        export: The section of the recipe.
        stages: Names of the stages that have a model of the task.
        task: Name of the task.
        may_be_dense: Returns whether the model of `transfer` may be one without zeros, which has dense variants.

    Raises:
        UserError: There is none.
    """
    found = any(VARIANTS[name].source_stage in stages for name in export.variants)
    if not found and not (variants_of_dense(export.variants) and may_be_dense()):
        possible = [v.name for v in VARIANTS.values() if not v.engine and v.source_stage in stages]
        raise UserError(
            f"none of {', '.join(export.variants)} has a model in this run",
            where=f"export.variants of task {task!r}",
            instead=f"variants: [{', '.join(possible)}], or add the stages of the others",
        )


def _missing_input(recipe: Recipe, stage: Stage, task: str | None, name: str) -> UserError:
    return UserError(
        f"stage `{stage.name}`{f' of task {task!r}' if task else ''} needs `{name}`, which no stage provides",
        where=recipe.name,
        instead=f"add a `{name}` section, or set a checkpoint under `ready`",
    )


def inputs_unchanged(manifest: Manifest, inputs: "dict[str, Step | Artifact]", finished: dict[str, Manifest]) -> bool:
    """Returns whether a finished stage was run on the current content of its inputs.

    Args:
        manifest: The stage's manifest.
        inputs: The inputs of its step; ready artifacts are already part of its key.
        finished: Step label -> manifest of each finished step.
    """
    steps = ((name, finished[i.label]) for name, i in inputs.items() if isinstance(i, Step) and i.label in finished)
    return all(manifest.inputs.get(name) == source.artifact.sha256 for name, source in steps)


def select(steps: list[Step], *, only: str | None = None, start: str | None = None) -> list[Step]:
    """Returns the steps to rerun even if they are cached: those of stage `only`, or of `start` and all later stages.

    Raises:
        UserError: The recipe has no stage of that name.
    """
    wanted = only or start
    if wanted is None:
        return []
    names = [s.stage.name for s in steps]
    if wanted not in names:
        raise UserError(f"this recipe has no stage {wanted!r}", instead=f"one of {', '.join(dict.fromkeys(names))}")
    later = STAGE_NAMES[STAGE_NAMES.index(wanted) :]
    return [s for s in steps if s.stage.name == wanted or (start and s.stage.name in later)]


def finished_manifests(run_folder: Path, *, complete: bool = True) -> list[Manifest]:
    """Returns the manifests of all finished stages in a run folder, in the order of the data flow.

    Args:
        run_folder: The run folder.
        complete: Whether every figure must be there that a report shows; older versions may lack some.

    Raises:
        UserError: The folder contains no finished stage, or a manifest is damaged or lacks a figure.
    """
    found = []
    for task, parent in [(None, run_folder), *((t.name, t) for t in sorted(run_folder.glob("tasks/*")))]:
        for name in STAGE_NAMES:
            manifest = read_manifest(parent / name)
            if manifest is not None:
                require_recorded(manifest, parent / name, name, task, complete=complete)
                found.append(manifest)
    if not found:
        raise UserError("no finished stage here", where=str(run_folder), instead="a folder written by `pruneofa run`")
    return sorted(found, key=lambda m: (m.task or "", STAGE_NAMES.index(m.stage)))
