"""Execution of the steps of a recipe that are not cached, in one process or distributed over several."""

import contextlib
import importlib
import itertools
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

from toolkit.core import machine
from toolkit.core.artifacts import (
    Artifact,
    Context,
    Manifest,
    Progress,
    StageResult,
    Tracking,
    artifact_hash,
    failed_checks,
    read_manifest,
    write_manifest,
)
from toolkit.core.errors import CheckFailed, TimeLimitReached, UserError
from toolkit.core.files import json_hash
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.sources import is_hub_model
from toolkit.pipeline import preflight
from toolkit.pipeline.cache_keys import data_hashes, section_values
from toolkit.pipeline.checkpoint_contents import sources_of
from toolkit.pipeline.graph import Step, inputs_unchanged, plan, select
from toolkit.pipeline.requirements import require
from toolkit.pipeline.run_folder import exclusive, promote, resume_or_reset
from toolkit.recipe import KINDS, Quantize, Recipe
from toolkit.recipe.load import dump_recipe
from toolkit.training import distributed

_DISK_FULL = 1 << 20  # bytes free
# Seconds. Every rank hits the same error; rank 0 reports it before the launcher kills the others.
_WORKER_EXIT_DELAY = 30


@dataclass
class Run:
    """Execution of a recipe in a run folder.

    Attributes:
        recipe: The recipe.
        folder: Run folder, created if it is missing.
        progress_of: Returns a context manager with the `Progress` of a step.
        manifests: Manifests of the finished steps.
        failed: Manifest of the step whose checks failed, which is not finished; None if none did.
        inputs: Models and data files.
        time_over: Returns whether the time limit is over. Every call makes at least one optimizer step, or one stage
            that does not train, so that repeated calls finish the run.
        track: Tool that records training curves: tensorboard, mlflow or wandb; empty: none.
        finished: Called after each step with the manifests of all finished ones, once a step has run.
    """

    recipe: Recipe
    folder: Path
    progress_of: Callable[[Step], contextlib.AbstractContextManager[Progress]]
    manifests: list[Manifest] = field(default_factory=list)
    inputs: ResolvedInputs = field(default_factory=lambda: ResolvedInputs(fetch=True))
    time_over: Callable[[], bool] = lambda: False
    track: str = ""
    finished: Callable[[list[Manifest]], None] = lambda _: None
    failed: Manifest | None = None

    def __call__(self, *, only: str | None = None, start: str | None = None) -> list[Manifest]:
        """Runs every step that is not cached, and returns the manifests of all finished steps.

        In a distributed run (`toolkit.training.distributed`), rank 0 does so and the other ranks join its training.

        Args:
            only: Name of the only stage to run, even if it is cached.
            start: Name of the first stage to rerun, together with all later ones.

        Raises:
            UserError: The input is invalid; every finished step is kept.
            CheckFailed: A check of a stage failed; its folder stays `<stage>.partial` for inspection.
            TimeLimitReached: The time limit is over; the same call resumes.
            SystemExit: This process is a worker and the run is finished.
        """
        if distributed.init():
            self._help()
        self.folder.mkdir(parents=True, exist_ok=True)
        with exclusive(self.folder):
            steps = plan(self.recipe, self.folder, self.inputs)
            again = {s.label for s in select(steps, only=only, start=start)}
            self._check_data(steps, again)
            done: dict[str, Manifest] = {}
            made = False
            for step in steps:
                cached = step.manifest if step.manifest and inputs_unchanged(step.manifest, step.inputs, done) else None
                if only and step.stage.name != only:
                    done |= {step.label: cached} if cached else {}
                elif cached and step.label not in again:
                    _verify(step)
                    done[step.label] = cached
                else:
                    if made and self.time_over():
                        distributed.broadcast_text("")
                        raise TimeLimitReached(f"before stage {step.label}")
                    done[step.label] = self._make(step, done)
                    made = True
                self.manifests = list(done.values())
                if made:
                    self.finished(self.manifests)
        distributed.broadcast_text("")
        return self.manifests

    def _check_data(self, steps: list[Step], again: set[str]) -> None:
        """Checks the data of all steps to run, so that a bad row is reported now rather than days later."""
        todo = {s.task for s in steps if s.manifest is None or s.label in again}
        if any(map(is_hub_model, sources_of(self.recipe))):  # downloaded only now
            preflight.check_recipe(self.recipe, self.inputs, read_rows=False)
        preflight.check_data(self.recipe, todo, self.inputs, self.folder / ".cache")
        for step in (s for s in steps if s.manifest is None or s.label in again):
            _check_processes(step)

    def _help(self) -> NoReturn:
        """Joins the training of every stage that rank 0 broadcasts; writes nothing."""
        steps: list[Step] = []
        while label := distributed.receive_text():
            steps = steps or plan(self.recipe, self.folder, self.inputs)
            step = next(s for s in steps if s.label == label)
            done = {s.label: manifest for s in steps if (manifest := read_manifest(s.folder)) is not None}
            inputs = {name: self._input(step, source, done) for name, source in step.inputs.items()}
            partial = _partial(step)
            context = self._context(step, done, inputs, partial / ".work")
            try:
                with Path(os.devnull).open("w") as silence, contextlib.redirect_stdout(silence):  # rank 0 prints
                    _run_stage(step, inputs, context)
            except distributed.WorkerDone:
                continue
            except UserError:
                time.sleep(_WORKER_EXIT_DELAY)
                raise
            raise AssertionError(f"{label} ended without training")
        raise SystemExit(0)

    def _make(self, step: Step, done: dict[str, Manifest]) -> Manifest:
        require(step.label, step.sections.get(step.stage.name))
        partial = _partial(step)
        inputs = {name: self._input(step, source, done) for name, source in step.inputs.items()}
        contents = {name: source.sha256 for name, source in inputs.items()}
        complete = read_manifest(partial)
        if complete and (complete.key, complete.inputs) == (step.key, contents):  # killed just before the rename
            shutil.rmtree(partial / ".work", ignore_errors=True)
            promote(partial, step.folder)
            return complete
        work = resume_or_reset(partial, json_hash([step.key, contents]))
        started, clock = datetime.now(timezone.utc), time.monotonic()
        with self.progress_of(step) as progress:
            context = replace(self._context(step, done, inputs, work), progress=progress)
            if step.stage.trains:
                distributed.broadcast_text(step.label)
            try:
                result = _run_stage(step, inputs, context)
                context.require_unchanged()
            except TimeLimitReached as reached:
                distributed.broadcast_text("")
                raise TimeLimitReached(f"{reached} of stage {step.label}") from None
            except Exception as error:
                # Every library raises its own error when the disk is full, so check the free space instead.
                if shutil.disk_usage(partial).free < _DISK_FULL:
                    raise UserError(
                        "the disk is full; every finished stage is kept",
                        where=str(partial),
                        instead="free some space and repeat the command; it resumes from the last checkpoint",
                    ) from error
                raise
        broken = failed_checks(result.checks)
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
                sha256=artifact_hash(result.kind, partial),
                parents=tuple(contents.values()),
            ),
            metrics=result.metrics,
            checks=tuple(result.checks),
            history=tuple(result.history),
            versions=machine.versions(),
            machine=machine.describe(),
            run={
                "name": self.recipe.name,
                "description": self.recipe.description,
                "model": self.recipe.model.source,
                "recipe": dump_recipe(self.recipe),
            },
            commit=machine.commit(),
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - clock, 3),
        )
        if broken:
            self.failed = manifest
            lines = [
                f"  {c.name}: measured {c.measured}, limit {c.limit}" + f"\n    Instead: {c.instead}" * bool(c.instead)
                for c in broken
            ]
            what = f"{step.label}: {len(broken)} check(s) failed"
            raise CheckFailed("\n".join([what, *lines, f"  Output kept in {partial}"]))
        write_manifest(partial, manifest)
        shutil.rmtree(work)  # only now: a kill while the result is hashed must not lose the checkpoints
        promote(partial, step.folder)
        return manifest

    def _context(self, step: Step, done: dict[str, Manifest], inputs: dict[str, Artifact], work: Path) -> Context:
        """Returns the context of a step, without its progress display."""
        sources = {name: done[source.label] for name, source in step.inputs.items() if isinstance(source, Step)}
        return Context(
            _partial(step),
            work,
            self.recipe.seed,
            step.task,
            cache=self.folder / ".cache",
            scores={name: found for name, m in sources.items() if (found := m.metrics.get("dev"))},
            ready=frozenset(step.inputs.keys() - sources.keys()),
            require_unchanged=lambda: self._require_unchanged(step, inputs),
            time_over=self.time_over,
            tracking=Tracking(self.track, f"{self.recipe.name}: {step.label}", self.folder / "tensorboard" / step.label)
            if self.track
            else None,
        )

    def _require_unchanged(self, step: Step, inputs: dict[str, Artifact]) -> None:
        """Checks that the files which a step reads have the content that its cache key names.

        Raises:
            UserError: A data file or a checkpoint was changed since the run began.
        """
        # Looked up again: a local folder with the layout of a data set is read from a copy that changes with it.
        now = data_hashes(step.sections, ResolvedInputs(fetch=True))[0]
        now |= {str(source.path): artifact_hash(source.kind, source.path) for source in inputs.values()}
        read = step.data | {str(source.path): source.sha256 for source in inputs.values()}
        for path, digest in read.items():
            if now.get(path) != digest:
                raise UserError(
                    f"changed since the run began: the result of `{step.label}` would belong to neither version",
                    where=path,
                    instead="repeat the command to run it on the new files; to resume it, restore them first",
                )

    def _input(self, step: Step, source: "Step | Artifact", done: dict[str, Manifest]) -> Artifact:
        if isinstance(source, Artifact):
            return source
        manifest = done.get(source.label)
        if manifest is None:
            raise UserError(
                f"stage `{step.label}` needs `{source.label}`, which has not run yet, or not on its current inputs",
                instead="run without --only, or run that stage first",
            )
        return manifest.artifact.model_copy(update={"path": source.folder.resolve()})


def _by_name(hashes: dict[str, str]) -> dict[str, dict[str, str]]:
    """Returns the hashes by file name, with as many parent folders as make the names unique."""
    for depth in itertools.count(1):
        named = {"/".join(Path(file).parts[-depth:]): {"sha256": digest} for file, digest in hashes.items()}
        if len(named) == len(hashes):
            return named
    raise AssertionError("paths differ")


def _check_processes(step: Step) -> None:
    """Checks that the settings of a step allow as many processes as there are."""
    section: Any = step.sections.get(step.stage.name)
    train = getattr(section, "train", None)
    if train is not None:
        distributed.require_divisible(train.batch_size, step.stage.name)
        task = step.sections.get("task")
        if task is not None and KINDS[task.kind].dense_teaches:
            distributed.require_one_process_for_embeddings(step.stage.name)
    if isinstance(section, Quantize):
        distributed.require_one_process_to_retrain(section.tuning.retrain_steps)


def _partial(step: Step) -> Path:
    return step.folder.with_name(step.folder.name + ".partial")


def _run_stage(step: Step, inputs: dict[str, Artifact], context: Context) -> StageResult:
    """Runs a stage with the sections and artifacts that it declares."""
    stage = importlib.import_module(f"toolkit.pipeline.stages.{step.stage.name}")
    artifacts = {f"{name}_artifact": artifact for name, artifact in inputs.items()}
    result: StageResult = stage.run(stage.Inputs(**step.sections, **artifacts), context)
    return result


def _verify(step: Step) -> None:
    """Checks the content hash of a finished stage, to detect truncated, edited and partly copied files."""
    assert step.manifest is not None
    if artifact_hash(step.stage.kind, step.folder) != step.manifest.artifact.sha256:
        raise UserError(
            "the files differ from those that the stage wrote (damaged or edited)",
            where=str(step.folder),
            instead=f"delete the folder (the stage runs again), or `ready: {{{step.stage.name}: <your checkpoint>}}`",
        )
