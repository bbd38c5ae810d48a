"""The stage graph: what a recipe amounts to, and what of it is already there. Read this file first, then `run.py`.

    base ─ teacher ─ student ─┬───────────────┐            once
             └─ task_teacher ─┴─ transfer ─ quantize ─ export ─ benchmark      for each task
                                                                  └─ report

A finished stage is `<run>/<stage>/` or `<run>/tasks/<task>/<stage>/` with a `manifest.json`. Its `key` is a hash of
what it was made from: its recipe sections, its seed, the contents of its data files and the keys of its inputs; of an
export for the sparse kernel also the packed form's version. A stage is run only when no folder with that key is there,
or when an input was made anew since and came out otherwise. It is made in `<stage>.partial/` and renamed when it is
whole, so a kill at any moment loses at most the work since the last checkpoint in `<stage>.partial/.work/`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.artifacts import Artifact, Kind, Manifest, read_manifest
from toolkit.core.errors import UserError
from toolkit.core.files import content_hash, json_hash
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.ir import kernels
from toolkit.pipeline.cache_keys import data_hashes, section_values, sections_of
from toolkit.recipe import VARIANTS, Recipe


@dataclass(frozen=True)
class Stage:
    """One kind of stage. `toolkit/pipeline/stages/<name>.py` holds its `Inputs` and `run(Inputs, Context)`.

    Attributes:
        sections: What `run` may see of the recipe, and so what its cache key depends on.
        needs: Names of the inputs; the first name of a pair `a|b` that the run has is taken.
        optional: Inputs that are used when the run has them.
        teacher: The input that is needed when the stage's section has `distillation`, and not used otherwise.
        per_task: Made once for each task, or once for all.
        trains: Several processes can share its work.
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
        """Inputs that this stage of the recipe cannot do without."""
        taught = self.teacher and recipe.section(self.name, task).distillation is not None
        return (*self.needs, self.teacher) if self.teacher and taught else self.needs


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
        ("task", "quantize", "benchmark"),
        ("export",),
        ("task_teacher", "transfer", "quantize"),
        trains=False,
    ),
)
STAGE_NAMES = tuple(s.name for s in STAGES)


@dataclass(frozen=True)
class Step:
    """A stage of this recipe, with its place on disk and its cache key.

    Attributes:
        manifest: The record of the finished stage when `folder` holds exactly this step, else None.
        inputs: Input name -> the step that makes it, or the ready artifact.
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
        """E.g. `sst2/transfer`."""
        return f"{self.task}/{self.stage.name}" if self.task else self.stage.name


def plan(recipe: Recipe, run_folder: Path, inputs: ResolvedInputs) -> list[Step]:
    """The steps of a recipe in the order in which they run, each with what is already there.

    Args:
        recipe: What to do.
        run_folder: Where it is done.
        inputs: Models and data files; one that is not cached, and not fetched, has its name for its content.

    Raises:
        UserError: A model, checkpoint or data file is missing, or a stage has no input.
    """
    made: dict[tuple[str | None, str], Step | Artifact] = {}
    made[None, "base"] = _ready("dense", recipe.model.source, inputs)
    steps = []
    for task in (None, *recipe.tasks):
        ready = recipe.tasks[task].ready if task else recipe.ready
        for stage in (s for s in STAGES if s.per_task == (task is not None)):
            if stage.name in ready:
                made[task, stage.name] = _ready(stage.kind, ready[stage.name], inputs)  # type: ignore[index]
            elif recipe.section(stage.name, task) is not None:
                step = _step(recipe, stage, task, run_folder, made, inputs)
                made[task, stage.name] = step
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
    made: "dict[tuple[str | None, str], Step | Artifact]",
    resolved: ResolvedInputs,
) -> Step:
    inputs: dict[str, Step | Artifact] = {}
    needed = stage.needed(recipe, task)
    for need in (*needed, *stage.optional):
        names = need.split("|")
        found = next((made[t, n] for n in names for t in (task, None) if (t, n) in made), None)
        if found is not None:
            inputs[names[0]] = found
        elif need in needed:
            raise _lacking(recipe, stage, task, names[0])
    if not inputs:
        raise _lacking(recipe, stage, task, stage.optional[0])
    sections = sections_of(recipe, stage.sections, task)
    data, roles = data_hashes(sections, resolved)
    made_from = {
        "stage": stage.name,
        "seed": recipe.seed,
        "config": {name: section_values(name, value) for name, value in sections.items()},
        "data": roles,
        "inputs": {n: i.key if isinstance(i, Step) else i.sha256 for n, i in inputs.items()},
    }
    folder = (run_folder / "tasks" / task if task else run_folder) / stage.name
    manifest = read_manifest(folder)
    keys = [json_hash(made_from | kernel) for kernel in _kernels(stage, sections)]
    key = next((k for k in keys if manifest is not None and manifest.key == k), keys[-1])
    there = {i.label: i.manifest for i in inputs.values() if isinstance(i, Step) and i.manifest is not None}
    same = manifest is not None and manifest.key == key and inputs_unchanged(manifest, inputs, there)
    here = manifest if same else None
    return Step(stage, task, folder, key, inputs, sections, data, here)


def _lacking(recipe: Recipe, stage: Stage, task: str | None, name: str) -> UserError:
    return UserError(
        f"stage `{stage.name}`{f' of task {task!r}' if task else ''} needs `{name}`, which nothing makes",
        where=recipe.name,
        instead=f"add a `{name}` section, or name a checkpoint under `ready`",
    )


def inputs_unchanged(manifest: Manifest, inputs: "dict[str, Step | Artifact]", there: dict[str, Manifest]) -> bool:
    """Whether a stage's inputs still hold what they held when it was made: they may have been made anew since.

    Args:
        manifest: Of the stage.
        inputs: Of its step; ready ones are part of its key.
        there: Label of a step -> what is there of it.
    """
    steps = ((name, there[i.label]) for name, i in inputs.items() if isinstance(i, Step) and i.label in there)
    return all(manifest.inputs.get(name) == made.artifact.sha256 for name, made in steps)


def _kernels(stage: Stage, sections: dict[str, Any]) -> list[dict[str, Any]]:
    """The sparse kernels whose variants will do, as parts of a key; the last is the one that this machine makes.

    A machine without a compiler takes what another one exported; one that has it makes what was left out.
    """
    if stage.name != "export" or not any(VARIANTS[name].engine for name in sections["export"].variants):
        return [{}]
    with_it = {"kernel": kernels.FORMAT_VERSION}
    return [with_it] if kernels.available() else [with_it, {"kernel": None}]


def select(steps: list[Step], *, only: str | None = None, start: str | None = None) -> list[Step]:
    """The steps that a run makes anew even when they are there: those of stage `only`, or of `start` and after it.

    Raises:
        UserError: No such stage in this recipe.
    """
    wanted = only or start
    if wanted is None:
        return []
    names = [s.stage.name for s in steps]
    if wanted not in names:
        raise UserError(f"this recipe has no stage {wanted!r}", instead=f"one of {', '.join(dict.fromkeys(names))}")
    later = STAGE_NAMES[STAGE_NAMES.index(wanted) :]
    return [s for s in steps if s.stage.name == wanted or (start and s.stage.name in later)]


def finished_manifests(run_folder: Path) -> list[Manifest]:
    """Manifests of all finished stages in a run folder, in the order of the data flow.

    Raises:
        UserError: It is not a run folder, or nothing has finished in it.
    """
    folders = [run_folder / name for name in STAGE_NAMES]
    folders += [t / name for t in sorted(run_folder.glob("tasks/*")) for name in STAGE_NAMES]
    found = [m for m in map(read_manifest, folders) if m is not None]
    if not found:
        raise UserError("no finished stage here", where=str(run_folder), instead="a folder that `pruneofa run` made")
    return sorted(found, key=lambda m: (m.task or "", STAGE_NAMES.index(m.stage)))
