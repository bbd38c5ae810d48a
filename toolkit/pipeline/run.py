"""Running the steps of a recipe that are not there yet: one after the other, alone or with helping processes."""

import contextlib
import importlib
import itertools
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import NoReturn

from toolkit.core import machine
from toolkit.core.artifacts import (
    Artifact,
    Context,
    Manifest,
    Progress,
    StageResult,
    failed_checks,
    read_manifest,
    write_manifest,
)
from toolkit.core.errors import CheckFailed, UserError
from toolkit.core.files import content_hash, json_hash
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.pipeline import preflight
from toolkit.pipeline.cache_keys import section_values
from toolkit.pipeline.graph import Step, inputs_unchanged, plan, select
from toolkit.pipeline.requirements import require
from toolkit.pipeline.run_folder import exclusive, promote, resume_or_reset
from toolkit.recipe import Recipe
from toolkit.training import distributed

_DISK_FULL = 1 << 20  # bytes free
_LET_THE_FIRST_SPEAK = 30  # seconds: all processes find the same mistake, and the launcher ends those that are late


@dataclass
class Run:
    """Executes a plan. `progress_of` gives the `Progress` of a step."""

    recipe: Recipe
    folder: Path
    progress_of: Callable[[Step], contextlib.AbstractContextManager[Progress]]
    manifests: list[Manifest] = field(default_factory=list)
    inputs: ResolvedInputs = field(default_factory=lambda: ResolvedInputs(fetch=True))

    def __call__(self, *, only: str | None = None, start: str | None = None) -> list[Manifest]:
        """Runs every step that is not there; returns the manifests of all of the run's finished steps.

        Of several processes (`toolkit.training.distributed`) the first one does so, and the others help it.

        Raises:
            UserError: Bad input; every finished step is kept.
            CheckFailed: A stage's invariant does not hold; its folder stays `<stage>.partial` for a look.
            SystemExit: This process was a helper, and there is nothing left to help with.
        """
        if distributed.init():
            self._help()
        self.folder.mkdir(parents=True, exist_ok=True)
        with exclusive(self.folder):
            steps = plan(self.recipe, self.folder, self.inputs)
            again = {s.label for s in select(steps, only=only, start=start)}
            self._check_data(steps, again)
            done: dict[str, Manifest] = {}
            for step in steps:
                stands = step.manifest if step.manifest and inputs_unchanged(step.manifest, step.inputs, done) else None
                if only and step.stage.name != only:
                    done |= {step.label: stands} if stands else {}
                elif stands and step.label not in again:
                    _verify(step)
                    done[step.label] = stands
                else:
                    done[step.label] = self._make(step, done)
            self.manifests = list(done.values())
        distributed.broadcast_text("")
        return self.manifests

    def _check_data(self, steps: list[Step], again: set[str]) -> None:
        """Looks at all that unfinished steps read: a bad row must not be found days later."""
        todo = {s.task for s in steps if s.manifest is None or s.label in again}
        preflight.check_data(self.recipe, todo, self.inputs, self.folder / ".cache")

    def _help(self) -> NoReturn:
        """Trains along in every stage that the first process names; writes nothing."""
        steps: list[Step] = []
        while label := distributed.receive_text():
            steps = steps or plan(self.recipe, self.folder, self.inputs)
            step = next(s for s in steps if s.label == label)
            done = {s.label: manifest for s in steps if (manifest := read_manifest(s.folder)) is not None}
            inputs = {name: self._input(step, made, done) for name, made in step.inputs.items()}
            partial = _partial(step)
            context = Context(partial, partial / ".work", self.recipe.seed, step.task, cache=self.folder / ".cache")
            try:
                with Path(os.devnull).open("w") as silence, contextlib.redirect_stdout(silence):  # once is enough
                    _run_stage(step, inputs, context)
            except distributed.WorkerDone:
                continue
            except UserError:
                time.sleep(_LET_THE_FIRST_SPEAK)
                raise
            raise AssertionError(f"{label} has ended without training")
        raise SystemExit(0)

    def _make(self, step: Step, done: dict[str, Manifest]) -> Manifest:
        require(step.label, step.sections.get(step.stage.name))
        partial = _partial(step)
        inputs = {name: self._input(step, made, done) for name, made in step.inputs.items()}
        contents = {name: made.sha256 for name, made in inputs.items()}
        whole = read_manifest(partial)
        if whole and (whole.key, whole.inputs) == (step.key, contents):  # killed between the last write and the rename
            promote(partial, step.folder)
            return whole
        work = resume_or_reset(partial, json_hash([step.key, contents]))
        started, clock = datetime.now(timezone.utc), time.monotonic()
        with self.progress_of(step) as progress:
            context = Context(partial, work, self.recipe.seed, step.task, progress, self.folder / ".cache")
            if step.stage.trains:
                distributed.broadcast_text(step.label)
            try:
                result = _run_stage(step, inputs, context)
            except Exception as error:
                # Each library has an error of its own for a full disk; the disk itself says it for all of them.
                if shutil.disk_usage(partial).free < _DISK_FULL:
                    raise UserError(
                        "the disk is full; every finished stage is kept",
                        where=str(partial),
                        instead="make room and run the same command again: it goes on from the last checkpoint",
                    ) from error
                raise
        broken = failed_checks(result.checks)
        if broken:
            lines = "\n".join(f"  {c.name}: measured {c.measured}, limit {c.limit}" for c in broken)
            raise CheckFailed(f"{step.label}: {len(broken)} check(s) do not hold\n{lines}\n  Left in {partial}")
        shutil.rmtree(work)
        manifest = Manifest(
            stage=step.stage.name,
            task=step.task,
            key=step.key,
            config={n: section_values(n, s) for n, s in step.sections.items()},
            inputs=contents,
            data=_by_name(step.data) | result.data,
            seed=self.recipe.seed,
            artifact=Artifact(
                kind=result.kind,
                path=step.folder.relative_to(self.folder),
                sha256=content_hash(partial),
                parents=tuple(contents.values()),
            ),
            metrics=result.metrics,
            checks=tuple(result.checks),
            history=tuple(result.history),
            versions=machine.versions(),
            machine=machine.describe(),
            run={"name": self.recipe.name, "description": self.recipe.description, "model": self.recipe.model.source},
            commit=machine.commit(),
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
                f"stage `{step.label}` needs `{made.label}`, which has not run yet, or not on what is there now",
                instead="run without --only, or that stage first",
            )
        return manifest.artifact.model_copy(update={"path": made.folder.resolve()})


def _by_name(hashes: dict[str, str]) -> dict[str, dict[str, str]]:
    """Data files by their names, with as many of their folders as it takes to tell them apart."""
    for depth in itertools.count(1):
        named = {"/".join(Path(file).parts[-depth:]): {"sha256": digest} for file, digest in hashes.items()}
        if len(named) == len(hashes):
            return named
    raise AssertionError("paths differ")


def _partial(step: Step) -> Path:
    return step.folder.with_name(step.folder.name + ".partial")


def _run_stage(step: Step, inputs: dict[str, Artifact], context: Context) -> StageResult:
    """Runs a stage on the sections and artifacts that it declares."""
    stage = importlib.import_module(f"toolkit.pipeline.stages.{step.stage.name}")
    artifacts = {f"{name}_artifact": artifact for name, artifact in inputs.items()}
    result: StageResult = stage.run(stage.Inputs(**step.sections, **artifacts), context)
    return result


def _verify(step: Step) -> None:
    """A finished stage must still be what its manifest says: catches truncated, edited and half-copied files."""
    assert step.manifest is not None
    if content_hash(step.folder) != step.manifest.artifact.sha256:
        raise UserError(
            "its files are not the ones that this stage wrote (damaged, or edited since)",
            where=str(step.folder),
            instead=f"delete the folder (it is made again), or `ready: {{{step.stage.name}: <your checkpoint>}}`",
        )
