"""The stage graph: what a recipe amounts to, what of it is already there, and running the rest. Read this file first.

    base ─ teacher ─ student ─┬───────────────┐            once
             └─ task_teacher ─┴─ transfer ─ quantize ─ export ─ benchmark      for each task
                                                                  └─ report

A finished stage is `<run>/<stage>/` or `<run>/tasks/<task>/<stage>/` with a `manifest.json`. Its `key` is a hash of
what it was made from: its recipe sections, its seed, the contents of its data files and the keys of its inputs; of an
export for the sparse kernel also the packed form's version. A stage is run only when no folder with that key is there.
It is made in `<stage>.partial/` and renamed when it is whole, so a kill at any moment loses at most the work since the
last checkpoint in `<stage>.partial/.work/`.
"""

import contextlib
import importlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

from toolkit import checking, distributed, kernels, libraries, sources
from toolkit.artifacts import (
    Artifact,
    Context,
    Kind,
    Manifest,
    Progress,
    content_hash,
    failed,
    fresh_unless_same,
    json_hash,
    locked,
    promote,
    read_manifest,
    write_manifest,
)
from toolkit.errors import CheckFailed, UserError
from toolkit.measure import system
from toolkit.recipe import Recipe
from toolkit.sections import Sections, data_hashes, plain, sections_of


@dataclass(frozen=True)
class Stage:
    """One kind of stage. `toolkit/stages/<name>.py` holds its `run(sections, inputs, context)`.

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
        ("transfer", "quantize"),
        trains=False,
    ),
)
STAGE_NAMES = tuple(s.name for s in STAGES)
_DISK_FULL = 1 << 20  # bytes free
_LET_THE_FIRST_SPEAK = 30  # seconds: all processes find the same mistake, and the launcher ends those that are late


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


def plan(recipe: Recipe, run_folder: Path, *, fetch: bool = True) -> list[Step]:
    """The steps of a recipe in the order in which they run, each with what is already there.

    Args:
        recipe: What to do.
        run_folder: Where it is done.
        fetch: Get models and data from the hub; else what is not at hand is taken for something never seen.

    Raises:
        UserError: A model, checkpoint or data file is missing, or a stage has no input.
    """
    made: dict[tuple[str | None, str], Step | Artifact] = {}
    made[None, "base"] = _ready("dense", recipe.model.source, fetch)
    steps = []
    for task in (None, *recipe.tasks):
        ready = recipe.tasks[task].ready if task else recipe.ready
        for stage in (s for s in STAGES if s.per_task == (task is not None)):
            if stage.name in ready:
                made[task, stage.name] = _ready(stage.kind, ready[stage.name], fetch)  # type: ignore[index]
            elif recipe.section(stage.name, task) is not None:
                step = _step(recipe, stage, task, run_folder, made, fetch)
                made[task, stage.name] = step
                steps.append(step)
    return steps


def _ready(kind: Kind, source: str, fetch: bool) -> Artifact:
    folder = sources.model_folder(source) if fetch else sources.model_at_hand(source)
    if folder is None:
        return Artifact(kind=kind, path=Path(source), sha256=source)
    return Artifact(kind=kind, path=folder, sha256=content_hash(folder))


def _step(
    recipe: Recipe,
    stage: Stage,
    task: str | None,
    run_folder: Path,
    made: "dict[tuple[str | None, str], Step | Artifact]",
    fetch: bool,
) -> Step:
    inputs: dict[str, Step | Artifact] = {}
    needed = stage.needed(recipe, task)
    for need in (*needed, *stage.optional):
        names = need.split("|")
        found = next((made[t, n] for n in names for t in (task, None) if (t, n) in made), None)
        if found is not None:
            inputs[names[0]] = found
        elif need in needed:
            raise UserError(
                f"stage `{stage.name}`{f' of task {task!r}' if task else ''} needs `{names[0]}`, which nothing makes",
                where=recipe.name,
                instead=f"add a `{names[0]}` section, or name a checkpoint under `ready`",
            )
    sections = sections_of(recipe, stage.sections, task)
    data, roles = data_hashes(sections, fetch)
    made_from = {
        "stage": stage.name,
        "seed": recipe.seed,
        "config": {name: plain(name, value) for name, value in sections.items()},
        "data": roles,
        "inputs": {n: i.key if isinstance(i, Step) else i.sha256 for n, i in inputs.items()},
    }
    folder = (run_folder / "tasks" / task if task else run_folder) / stage.name
    manifest = read_manifest(folder)
    keys = [json_hash(made_from | kernel) for kernel in _kernels(stage, sections)]
    key = next((k for k in keys if manifest is not None and manifest.key == k), keys[-1])
    here = manifest if manifest is not None and manifest.key == key else None
    return Step(stage, task, folder, key, inputs, sections, data, here)


def _kernels(stage: Stage, sections: dict[str, Any]) -> list[dict[str, Any]]:
    """The sparse kernels whose variants will do, as parts of a key; the last is the one that this machine makes.

    A machine without a compiler takes what another one exported; one that has it makes what was left out.
    """
    if stage.name != "export" or not any("engine" in variant for variant in sections["export"].variants):
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


@dataclass
class Run:
    """Executes a plan. `progress_of` gives the `Progress` of a step."""

    recipe: Recipe
    folder: Path
    progress_of: Callable[[Step], contextlib.AbstractContextManager[Progress]]
    manifests: list[Manifest] = field(default_factory=list)

    def __call__(self, *, only: str | None = None, start: str | None = None) -> list[Manifest]:
        """Runs every step that is not there; returns the manifests of all of the run's finished steps.

        Of several processes (`toolkit.distributed`) the first one does so, and the others help it.

        Raises:
            UserError: Bad input; every finished step is kept.
            CheckFailed: A stage's invariant does not hold; its folder stays `<stage>.partial` for a look.
            SystemExit: This process was a helper, and there is nothing left to help with.
        """
        if distributed.connect():
            self._help()
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            steps = plan(self.recipe, self.folder)
            again = {s.label for s in select(steps, only=only, start=start)}
            self._check_data(steps, again)
            done: dict[str, Manifest] = {}
            for step in steps:
                if only and step.stage.name != only:
                    if step.manifest is not None:
                        done[step.label] = step.manifest
                    continue
                if step.manifest is not None and step.label not in again:
                    _verify(step)
                    done[step.label] = step.manifest
                    continue
                done[step.label] = self._make(step, done)
            self.manifests = list(done.values())
        distributed.tell("")
        return self.manifests

    def _check_data(self, steps: list[Step], again: set[str]) -> None:
        """Looks at all that unfinished steps read: a bad row must not be found days later."""
        todo = {s.task for s in steps if s.manifest is None or s.label in again}
        checking.check_data(self.recipe, todo, self.folder / ".cache")

    def _help(self) -> NoReturn:
        """Trains along in every stage that the first process names; writes nothing."""
        steps: list[Step] = []
        while label := distributed.told():
            steps = steps or plan(self.recipe, self.folder)
            step = next(s for s in steps if s.label == label)
            done = {s.label: manifest for s in steps if (manifest := read_manifest(s.folder)) is not None}
            inputs = {name: self._input(step, made, done) for name, made in step.inputs.items()}
            partial = _partial(step)
            context = Context(partial, partial / ".work", self.recipe.seed, step.task, cache=self.folder / ".cache")
            try:
                with Path(os.devnull).open("w") as silence, contextlib.redirect_stdout(silence):  # once is enough
                    _stage_run(step)(Sections(step.sections), inputs, context)
            except distributed.PartDone:
                continue
            except UserError:
                time.sleep(_LET_THE_FIRST_SPEAK)
                raise
            raise AssertionError(f"{label} has ended without training")
        raise SystemExit(0)

    def _make(self, step: Step, done: dict[str, Manifest]) -> Manifest:
        libraries.must_be_there(step.label, step.sections.get(step.stage.name))
        partial = _partial(step)
        whole = read_manifest(partial)
        if whole is not None and whole.key == step.key:  # killed between the last write and the rename
            promote(partial, step.folder)
            return whole
        work = fresh_unless_same(partial, step.key)
        inputs = {name: self._input(step, made, done) for name, made in step.inputs.items()}
        started, clock = datetime.now(timezone.utc), time.monotonic()
        with self.progress_of(step) as progress:
            context = Context(partial, work, self.recipe.seed, step.task, progress, self.folder / ".cache")
            if step.stage.trains:
                distributed.tell(step.label)
            try:
                result = _stage_run(step)(Sections(step.sections), inputs, context)
            except Exception as error:
                # Each library has an error of its own for a full disk; the disk itself says it for all of them.
                if shutil.disk_usage(partial).free < _DISK_FULL:
                    raise UserError(
                        "the disk is full; every finished stage is kept",
                        where=str(partial),
                        instead="make room and run the same command again: it goes on from the last checkpoint",
                    ) from error
                raise
        broken = failed(result.checks)
        if broken:
            lines = "\n".join(f"  {c.name}: measured {c.measured}, limit {c.limit}" for c in broken)
            raise CheckFailed(f"{step.label}: {len(broken)} check(s) do not hold\n{lines}\n  Left in {partial}")
        shutil.rmtree(work)
        manifest = Manifest(
            stage=step.stage.name,
            task=step.task,
            key=step.key,
            config={n: plain(n, s) for n, s in step.sections.items()},
            inputs={n: a.sha256 for n, a in inputs.items()},
            data={Path(f).name: {"sha256": h} for f, h in step.data.items()} | result.data,
            seed=self.recipe.seed,
            artifact=Artifact(
                kind=result.kind,
                path=step.folder.relative_to(self.folder),
                sha256=content_hash(partial),
                parents=tuple(a.sha256 for a in inputs.values()),
            ),
            metrics=result.metrics,
            checks=tuple(result.checks),
            history=tuple(result.history),
            versions=system.versions(),
            machine=system.machine(),
            run={"name": self.recipe.name, "description": self.recipe.description, "model": self.recipe.model.source},
            commit=system.commit(),
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - clock, 3),
        )
        write_manifest(partial, manifest)
        promote(partial, step.folder)
        return manifest

    def _input(self, step: Step, made: "Step | Artifact", done: dict[str, Manifest]) -> Artifact:
        if isinstance(made, Artifact):
            return made
        manifest = done.get(made.label)
        if manifest is None:
            raise UserError(
                f"stage `{step.label}` needs `{made.label}`, which has not run yet",
                instead="run without --only, or that stage first",
            )
        return manifest.artifact.model_copy(update={"path": made.folder.resolve()})


def _partial(step: Step) -> Path:
    return step.folder.with_name(step.folder.name + ".partial")


def _stage_run(step: Step) -> Callable[[Sections, dict[str, Artifact], Context], Any]:
    run: Callable[..., Any] = importlib.import_module(f"toolkit.stages.{step.stage.name}").run
    return run


def _verify(step: Step) -> None:
    """A finished stage must still be what its manifest says: catches truncated, edited and half-copied files."""
    assert step.manifest is not None
    if content_hash(step.folder) != step.manifest.artifact.sha256:
        raise UserError(
            "its files are not the ones that this stage wrote (damaged, or edited since)",
            where=str(step.folder),
            instead=f"delete the folder (it is made again), or `ready: {{{step.stage.name}: <your checkpoint>}}`",
        )


def finished(run_folder: Path) -> list[Manifest]:
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
