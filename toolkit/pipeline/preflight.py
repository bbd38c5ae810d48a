"""What can be said of a recipe and a machine before anything runs. Loads no torch."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.core.errors import UserError
from toolkit.core.files import file_hash
from toolkit.data import task_rows
from toolkit.data.files import fetch_file, paragraphs
from toolkit.data.resolved_inputs import ResolvedInputs, ResolvedModel
from toolkit.models.architectures import matrix_shapes, split_layer, usable_positions
from toolkit.models.checkpoint import (
    MIN_SPARSITY,
    encoder_matrices,
    require_length,
    require_unquantized,
    sparsity_by_tensor,
)
from toolkit.recipe import LOCK, Corpus, Pruning, Recipe, ResolvedPruner, TaskPruning, Train
from toolkit.recipe.pruning import unsupported
from toolkit.recipe.references import corpus_files, is_hub, task_files
from toolkit.sparsity.assignment import assign_matrices, reachable_sparsity, require_end_within
from toolkit.training.lr_schedule import require_bounded_rewinding

if TYPE_CHECKING:
    pass

_LATER = "from the hub when it runs"


def prunable_shapes(recipe: Recipe, model: ResolvedModel) -> dict[str, tuple[int, int]]:
    """The matrices of a checkpoint that pruning gets, by parameter name; none for one that was never fetched.

    Raises:
        UserError: Nothing is matched, or a pattern of `model.prunable` matches nothing.
    """
    if model.folder is not None:
        matrices = encoder_matrices(model.folder)
    elif model.config:
        matrices = matrix_shapes(model.config)
    else:
        return {}
    if not matrices:
        raise UserError("no encoder layers found to prune", where=str(model.folder), instead="a BERT-like encoder")
    patterns = recipe.model.prunable
    if not patterns:
        return matrices
    for pattern in patterns:
        if not any(re.search(pattern, n.removesuffix(".weight")) for n in matrices):
            raise UserError(
                f"model.prunable: {pattern!r} matches no matrix",
                where=str(model.folder or model.source),
                instead=f"a regular expression that matches names such as {next(iter(matrices), '(none)')!r}",
            )
    return {n: s for n, s in matrices.items() if any(re.search(p, n.removesuffix(".weight")) for p in patterns)}


def check_recipe(
    recipe: Recipe, inputs: ResolvedInputs | None = None, *, read_rows: bool = True
) -> list[tuple[str, str]]:
    """What was checked and what was found, line by line. Nothing is fetched from the hub.

    Args:
        recipe: What is checked.
        inputs: Models and data files; None: looked up for this check alone.
        read_rows: Look at every row of the tasks' files and every line of the corpus, which `running.Run` does by
            itself (`check_data`).

    Raises:
        UserError: The first thing that is wrong.
    """
    inputs = inputs or ResolvedInputs()
    found = [("recipe", f"{recipe.name}, {len(recipe.tasks)} task(s): {', '.join(recipe.tasks) or 'none'}")]
    named = [("model", recipe.model.source), *((f"ready {name}", source) for name, source in recipe.ready.items())]
    named += [(f"ready {t} {name}", source) for t, task in recipe.tasks.items() for name, source in task.ready.items()]
    for what, source in named:
        folder = inputs.model(source).folder
        found.append((what, str(folder) if folder else f"{source}, {_LATER}"))
        if folder is not None:
            require_unquantized(folder)
    _check_lengths(recipe, inputs)
    if recipe.student is not None:
        found += _pruning(recipe, inputs, "student", recipe.student.pruning, recipe.student.distillation.train)
    found += _transfers(recipe, inputs)
    if recipe.corpus is not None:
        specs = corpus_files(recipe.corpus, {t: recipe.tasks[t] for t in recipe.corpus.tasks})
        counted = check_corpus(recipe.corpus) if read_rows else ""
        found.append(("corpus", "; ".join(filter(None, (_data(specs, inputs), counted)))))
    for name, task in recipe.tasks.items():
        counted = task_rows.check_rows(name, task) if read_rows else ""
        found.append((f"task {name}", "; ".join(filter(None, (_data(task_files(task), inputs), counted)))))
    return found


def check_data(recipe: Recipe, tasks: Collection[str | None], inputs: ResolvedInputs, cache: Path) -> None:
    """Looks at all that stages are about to read: every row, every line of the corpus, and every length.

    Args:
        recipe: What is to be done.
        tasks: Those with a stage to make; None among them: a stage of pre-training is.
        inputs: Models and data files.
        cache: Of the run: text that was looked at is not read again.

    Raises:
        UserError: The first thing that is wrong.
    """
    _check_lengths(recipe, inputs)
    for name, task in recipe.tasks.items():
        if name in tasks:
            task_rows.check_rows(name, task)
    if None in tasks and recipe.corpus is not None:
        check_corpus(recipe.corpus, cache)


def _check_lengths(recipe: Recipe, inputs: ResolvedInputs) -> None:
    """Holds every length against the positions of the models that get it, as far as these are known."""
    first = recipe.ready.get("teacher", recipe.model.source)
    if recipe.corpus is not None and (recipe.teacher or recipe.student):
        require_length(recipe.corpus.max_seq_length, _positions([first], inputs), "corpus")
    for name, task in recipe.tasks.items():
        models = {str(stage): source for stage, source in task.ready.items()}
        if recipe.section("task_teacher", name):
            models.setdefault("task_teacher", first)
        if recipe.section("transfer", name):
            models.setdefault("transfer", recipe.ready.get("student", first))
        limit = _positions(models.values(), inputs)
        require_length(task.max_seq_length, limit, f"tasks.{name}")
        if benchmark := recipe.section("benchmark", name):
            where = f"{f'tasks.{name}.' if task.benchmark else ''}benchmark.evaluation.performance"
            require_length(benchmark.evaluation.performance.sequence_length, limit, where, "sequence_length")


def _positions(models: Iterable[str], inputs: ResolvedInputs) -> int | None:
    """Of the model that has the fewest; None: nothing is known of any."""
    configs = (inputs.model(source).config for source in dict.fromkeys(models))
    return min((count for config in configs if config and (count := usable_positions(config))), default=None)


def _data(specs: list[str], inputs: ResolvedInputs) -> str:
    """Names of data files; of splits on the hub all of it, and which are still to be fetched."""
    files = {spec: inputs.file(spec) for spec in specs}
    later = [spec for spec, file in files.items() if file is None]
    here = [spec if is_hub(spec) else file.name for spec, file in files.items() if file is not None]
    return "; ".join([", ".join(here)] * bool(here) + [f"{', '.join(later)}, {_LATER}"] * bool(later))


def _transfers(recipe: Recipe, inputs: ResolvedInputs) -> list[tuple[str, str]]:
    """What is locked or pruned while tasks are learnt; tasks that do the same are told once."""
    found: list[tuple[str, str]] = []
    told: list[TaskPruning] = []
    for task in recipe.tasks:
        transfer = recipe.section("transfer", task)
        if transfer is None or transfer.pruning in told:
            continue
        told.append(transfer.pruning)
        if not transfer.pruning.only_locks:
            found += _pruning(recipe, inputs, "transfer", transfer.pruning, transfer.train)
        elif "student" in recipe.ready:
            found += _locked(recipe, inputs.model(recipe.ready["student"]))
    return found


def _pruning(
    recipe: Recipe, inputs: ResolvedInputs, stage: str, pruning: Pruning, train: Train
) -> list[tuple[str, str]]:
    """Each pruner: its schedule, the matrices that it gets, and the sparsity that they can reach."""
    source = recipe.ready.get("teacher", recipe.model.source)
    if stage == "transfer":
        source = recipe.ready.get("student", source)
    model = inputs.model(source)
    shapes = prunable_shapes(recipe, model)
    if not shapes:
        return [("prunable", f"the matrices of {source} are checked when it was fetched")]
    weights = sum(rows * columns for rows, columns in shapes.values())
    found = [("prunable", f"{len(shapes)} encoder matrices, {weights:,} weights")]
    compression = pruning.approach.weight_compression
    where = f"{stage}.pruning.approach.weight_compression"
    # Steps that epochs amount to are known with the data; here, what can be said in epochs alone is checked.
    pruners = compression.resolve(steps_per_epoch=_EPOCH if compression.in_epochs() else 0)
    for number, (pruner, names) in enumerate(zip(pruners, assign_matrices(pruners, shapes, where), strict=True)):
        label = f"{stage} pruner {number + 1}" if len(pruners) > 1 else f"{stage} pruner"
        if pruner.prune_type == LOCK:
            shares = sparsity_by_tensor(model.folder, names) if model.folder else {}
            found += [(label, "pattern_lock"), *_by_layer(shapes, shares)]
            continue
        problem = unsupported(pruning.backend, pruner)
        if problem:
            raise UserError(f"{pruning.backend} cannot: {problem}", where=where, instead="backend: inc")
        length = _length_of_training(pruner, compression.in_epochs(), train, where)
        if length and pruning.learning_rate_rewinding:
            warmup = train.warmup_ratio * length
            require_bounded_rewinding(length, warmup, pruner.start_step, pruner.end_step, where)
        reached = reachable_sparsity(pruner, {name: shapes[name] for name in names})
        found += [(label, _schedule(pruner, compression.in_epochs(), pruning.backend)), *_by_layer(shapes, reached)]
    return found


_EPOCH = 1000  # a stand-in for the steps of an epoch, where only the ratio of epochs to training matters


def _length_of_training(pruner: ResolvedPruner, in_epochs: bool, train: Train, where: str) -> int | None:
    """The ramp has steps, and its last one lies within the training, whose length it returns where it is known."""
    if pruner.end_step < pruner.start_step or (pruner.end_step == pruner.start_step and pruner.initial_sparsity == 0):
        what = "end_epoch" if in_epochs else "end_step"
        raise UserError("the ramp has no steps", where=where, instead=f"an {what} after the start")
    if in_epochs:
        if train.epoch:
            require_end_within(pruner.end_step / _EPOCH, train.epoch, where, "epoch")
        return train.epoch and train.epoch * _EPOCH
    if train.steps:
        require_end_within(pruner.end_step, train.steps, where)
    return train.steps


def _schedule(pruner: ResolvedPruner, in_epochs: bool, backend: str) -> str:
    unit, scale = ("epochs", _EPOCH) if in_epochs else ("steps", 1)
    first, last = pruner.start_step / scale, pruner.end_step / scale
    return (
        f"{pruner.prune_type}, {pruner.initial_sparsity:.0%} -> {pruner.target_sparsity:.0%} in {unit} {first:g}.."
        f"{last:g}, every {pruner.update_frequency_on_step / scale:g}, {pruner.sparsity_decay_type}, "
        f"{pruner.pattern}, {pruner.prune_domain}, by {backend}"
    )


def _locked(recipe: Recipe, model: ResolvedModel) -> list[tuple[str, str]]:
    """The zeros of a ready sparse model, matrix by matrix."""
    folder = model.folder
    if folder is None:
        return [("locked", f"the zeros of {model.source} are checked when it was fetched")]
    shapes = prunable_shapes(recipe, model)
    shares = sparsity_by_tensor(folder, shapes)
    weights = {name: rows * columns for name, (rows, columns) in shapes.items()}
    zeros = sum(share * weights[name] for name, share in shares.items()) / sum(weights.values())
    if zeros < MIN_SPARSITY:
        raise UserError(
            "this checkpoint is dense: there is no pattern to lock", where=str(folder), instead="a pruned checkpoint"
        )
    return [
        ("locked", f"{zeros:.2%} of {sum(weights.values()):,} encoder weights are zero"),
        *_by_layer(shapes, shares),
    ]


def _by_layer(shapes: dict[str, tuple[int, int]], shares: dict[str, float]) -> list[tuple[str, str]]:
    """Matrices that are alike in all but the number of their layer share a line."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for name, zeros in shares.items():
        before, layer, after = split_layer(name)
        pattern = f"{before}*{after}"
        shape = "x".join(map(str, shapes[name]))
        groups.setdefault((pattern, shape, f"{zeros:.1%}"), []).append(layer)
    lines = []
    for (pattern, shape, share), layers in groups.items():
        whole = len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1))
        numbers = f"{layers[0]}-{layers[-1]}" if whole else ",".join(map(str, layers))
        lines.append(("", f"{pattern.replace('*', f'[{numbers}]')} {shape}: {share}"))
    return lines


def check_corpus(section: Corpus, cache: Path | None = None) -> str:
    """Reads every file that is no data set of the hub from end to end, and says how many paragraphs there are.

    Args:
        section: Names the files.
        cache: Folder that remembers which contents were found good, so that they are not read again: of those
            nothing is counted.

    Raises:
        UserError: As `lines`; or a file is not there.
    """
    count = 0
    for spec in section.files:
        if is_hub(spec):
            continue
        path = fetch_file(spec)
        good = cache / f"text-{file_hash(path)[:16]}" if cache else None
        if good is not None and good.exists():
            continue
        count += sum(1 for text in paragraphs(path) if text)
        if good is not None:
            good.parent.mkdir(parents=True, exist_ok=True)
            good.touch()
    return f"{count:,} paragraphs" if count else ""
