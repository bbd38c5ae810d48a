"""Checks of a recipe, its models and its data files before the first stage runs.

Loads no torch, except for a recipe that names layers or operations (`module_names.py`).
"""

import math
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from toolkit.core.errors import UserError
from toolkit.data import task_rows
from toolkit.data.corpus.parts import parts_of
from toolkit.data.resolved_inputs import ResolvedInputs, ResolvedModel
from toolkit.data.unlabelled import check_unlabelled
from toolkit.models.architectures import (
    layer_count,
    matrix_shapes,
    require_reconstructable,
    split_layer,
    usable_positions,
)
from toolkit.models.checkpoint import (
    MIN_SPARSITY,
    encoder_matrices,
    require_length,
    sparsity_by_tensor,
)
from toolkit.models.config import read_config
from toolkit.models.depth import depth_metrics, is_shallow, require_layers_of
from toolkit.pipeline.checkpoint_contents import check_contents, check_task_heads
from toolkit.pipeline.corpus_checks import check_calibration, check_corpus
from toolkit.pipeline.graph import check_graph
from toolkit.pipeline.missing_inputs import require_inputs
from toolkit.pipeline.module_names import check_module_names
from toolkit.pipeline.ready_models import check_task_models, require_usable
from toolkit.recipe import (
    KINDS,
    LOCK,
    Pruning,
    Recipe,
    ResolvedPruner,
    StudentPruning,
    TaskPruning,
    Train,
)
from toolkit.recipe.pruning import unsupported
from toolkit.recipe.references import corpus_files, is_hub, task_files
from toolkit.sparsity.assignment import (
    assign_matrices,
    reachable_sparsity,
    require_common_ramp,
    require_end_within,
    require_zeros,
)
from toolkit.sparsity.mask_file import require_fitting_mask
from toolkit.training.lr_schedule import require_bounded_rewinding

_LATER = "downloaded from the hub by the run"


def prunable_shapes(recipe: Recipe, model: ResolvedModel, layers: int | None = None) -> dict[str, tuple[int, int]]:
    """Returns the shapes of a model's prunable matrices by parameter name; empty if its sizes are unknown.

    Args:
        recipe: The recipe.
        model: The model.
        layers: Number of encoder layers of a student that keeps some of the model's; None: all.

    Raises:
        UserError: The model has no encoder layers, or a pattern of `model.prunable` matches no matrix.
    """
    if model.folder is not None:
        matrices = encoder_matrices(model.folder)
    elif model.config:
        matrices = matrix_shapes(model.config)
    else:
        return {}
    if not matrices:
        raise UserError("no encoder layers found to prune", where=str(model.folder), instead="a BERT-like encoder")
    if layers is not None:
        matrices = {name: shape for name, shape in matrices.items() if split_layer(name)[1] < layers}
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
    """Checks a recipe without downloading anything, and returns the findings as pairs of subject and text.

    Args:
        recipe: The recipe.
        inputs: Models and data files; None: looked up for this check only.
        read_rows: Whether to read every row of the tasks' files and every line of the corpus; `Run` does so itself,
            with `check_data`.

    Raises:
        UserError: The first error found.
    """
    inputs = inputs or ResolvedInputs()
    found = [("recipe", f"{recipe.name}, {len(recipe.tasks)} task(s): {', '.join(recipe.tasks) or 'none'}")]
    named = [("model", recipe.model.source), *((f"ready {name}", source) for name, source in recipe.ready.items())]
    named += [(f"ready {t} {name}", source) for t, task in recipe.tasks.items() for name, source in task.ready.items()]
    require_inputs(recipe, (source for _, source in named), inputs)
    for what, source in named:
        folder = inputs.model(source).folder
        found.append((what, str(folder) if folder else f"{source}, {_LATER}"))
        if folder is not None:
            require_usable(folder)
            if what.endswith((" student", " transfer")):
                require_fitting_mask(folder, prunable_shapes(recipe, inputs.model(source)))
    check_graph(recipe, inputs)
    _check_lengths(recipe, inputs)
    check_contents(recipe, inputs)
    check_task_models(recipe, inputs)
    check_task_heads(recipe, inputs)
    if recipe.student is not None:
        found += _depth(recipe, inputs)
    if recipe.student is not None and recipe.student.pruning is not None:
        found += _pruning(recipe, inputs, "student", recipe.student.pruning, recipe.student.train)
    found += _transfers(recipe, inputs)
    if recipe.corpus is not None:
        specs = corpus_files(recipe.corpus, recipe.tasks)
        counted = check_corpus(recipe.corpus, recipe.tasks) if read_rows else ""
        found.append(("corpus", "; ".join(filter(None, (_data(specs, inputs), counted)))))
    for name, task in recipe.tasks.items():
        counted = _check_task(recipe, name, inputs) if read_rows else ""
        found.append((f"task {name}", "; ".join(filter(None, (_data(task_files(task), inputs), counted)))))
        found += [("", line) for line in task_rows.repeated_files(task)]
    check_module_names(recipe, inputs)
    return found


def check_data(recipe: Recipe, tasks: Collection[str | None], inputs: ResolvedInputs, cache: Path) -> None:
    """Checks all data of the stages that are about to run: every row, every line of the corpus, every length.

    Args:
        recipe: The recipe.
        tasks: Names of the tasks with a stage to run; None stands for the stages of pre-training.
        inputs: Models and data files.
        cache: Cache folder of the run; a corpus file that has been checked is not read again.

    Raises:
        UserError: The first error found.
    """
    _check_lengths(recipe, inputs)
    for name in recipe.tasks:
        if name in tasks:
            _check_task(recipe, name, inputs)
    if None in tasks and recipe.corpus is not None:
        check_corpus(recipe.corpus, recipe.tasks, cache)


def _check_task(recipe: Recipe, name: str, inputs: ResolvedInputs) -> str:
    """Checks every row of a task, and with their number a ramp in steps of a training in epochs; returns a summary."""
    task, transfer = recipe.tasks[name], recipe.section("transfer", name)
    more = [check_unlabelled(task, recipe.section(stage, name)) for stage in ("transfer", "quantize")]
    summary = "; ".join(filter(None, (task_rows.check_rows(name, task), *dict.fromkeys(more))))
    if transfer is None or "transfer" in task.ready or not transfer.train.epoch or transfer.pruning.only_locks:
        return summary
    compression = transfer.pruning.approach.weight_compression
    # The number of windows that question answering trains on is known only after tokenisation, of groups too.
    counted = not KINDS[task.kind].cuts_windows and task.ranking.group == 1 and not more[0]
    if compression.in_epochs() or not counted or inputs.file(task.train) is None:
        return summary
    batch = transfer.train.batch_size * transfer.train.gradient_accumulation_steps
    steps = transfer.train.epoch * math.ceil(len(task_rows.read_train(task)) / batch)
    for pruner in compression.resolve():
        if pruner.prune_type != LOCK:
            require_end_within(pruner.end_step, steps, "transfer.pruning")
            if transfer.pruning.learning_rate_rewinding is True:  # cycles never exceed the peak
                warmup = transfer.train.warmup_ratio * steps
                require_bounded_rewinding(steps, warmup, pruner.start_step, pruner.end_step, "transfer.pruning")
    return summary


def _check_lengths(recipe: Recipe, inputs: ResolvedInputs) -> None:
    """Checks every sequence length against the positions of the models that receive it, if these are known."""
    first = recipe.ready.get("teacher", recipe.model.source)
    if recipe.corpus is not None and (recipe.teacher or recipe.student):
        for part in parts_of(recipe.corpus, recipe.tasks):
            require_length(part.section.max_seq_length, _positions([first], inputs), part.where)
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
    """Returns the smallest number of positions of the models; None if it is unknown for all of them."""
    configs = (inputs.model(source).config for source in dict.fromkeys(models))
    return min((count for config in configs if config and (count := usable_positions(config))), default=None)


def _data(specs: list[str], inputs: ResolvedInputs) -> str:
    """Describes data files: names of local files, complete references of hub splits, and what is still to download."""
    files = {spec: inputs.file(spec) for spec in specs}
    later = [spec for spec, file in files.items() if file is None]
    here = [spec if is_hub(spec) else file.name for spec, file in files.items() if file is not None]
    return "; ".join([", ".join(here)] * bool(here) + [f"{', '.join(later)}, {_LATER}"] * bool(later))


def _transfers(recipe: Recipe, inputs: ResolvedInputs) -> list[tuple[str, str]]:
    """Describes the locking or pruning of each task; tasks with equal settings are listed once."""
    found: list[tuple[str, str]] = []
    listed: list[TaskPruning] = []
    for task in recipe.tasks:
        transfer = recipe.section("transfer", task)
        if transfer and transfer.reconstruction:
            _check_reconstructed_transfer(recipe, task, inputs)
        if transfer is None or transfer.pruning in listed:
            continue
        listed.append(transfer.pruning)
        if not transfer.pruning.only_locks:
            found += _pruning(recipe, inputs, "transfer", transfer.pruning, transfer.train)
        elif "student" in recipe.ready:
            found += _locked(recipe, inputs.model(recipe.ready["student"]))
    return found


def _check_reconstructed_transfer(recipe: Recipe, task: str, inputs: ResolvedInputs) -> None:
    """Checks that a ready student has the encoder of its task teacher, whose outputs its matrices are to give."""
    where = "transfer.reconstruction"
    teacher = inputs.model(recipe.tasks[task].ready.get("task_teacher", recipe.model.source))
    require_reconstructable(teacher.config, where)
    student = inputs.model(recipe.ready["student"]) if "student" in recipe.ready else None
    if student is None or student.folder is None or teacher.folder is None:
        return
    if encoder_matrices(student.folder) != encoder_matrices(teacher.folder):
        what = f"the encoders of {student.source} and of the task teacher, {teacher.source}, have different matrices"
        raise UserError(what, where=where, instead="remove the key, or a student with the layers of its teacher")


def _depth(recipe: Recipe, inputs: ResolvedInputs) -> list[tuple[str, str]]:
    """Checks that the student's layers are layers of its teacher, and describes them."""
    layers = recipe.student.layers if recipe.student else None
    if recipe.student is None or layers is None:
        return []
    config = inputs.model(recipe.ready.get("teacher", recipe.model.source)).config
    if config is not None:
        require_layers_of(config, layers)
    total = f" of {layer_count(config)}" if config else ""
    which = (
        f"{layers}{total}, chosen by the run" if isinstance(layers, int) else f"{', '.join(map(str, layers))}{total}"
    )
    return [("student layers", f"{which}{'; dense' if recipe.student.pruning is None else ''}")]


def _pruning(
    recipe: Recipe, inputs: ResolvedInputs, stage: str, pruning: Pruning, train: Train | None
) -> list[tuple[str, str]]:
    """Describes each pruner: its schedule, its matrices, and the sparsity that they can reach."""
    source = recipe.ready.get("teacher", recipe.model.source)
    if stage == "transfer":
        source = recipe.ready.get("student", source)
    model = inputs.model(source)
    cut = recipe.student.layers if recipe.student and (stage == "student" or "student" not in recipe.ready) else None
    shapes = prunable_shapes(recipe, model, len(cut) if isinstance(cut, tuple) else cut)
    if not shapes:
        return [("prunable", f"the matrices of {source} are checked after its download")]
    weights = sum(rows * columns for rows, columns in shapes.values())
    found = [("prunable", f"{len(shapes)} encoder matrices, {weights:,} weights")]
    compression = pruning.approach.weight_compression
    where = f"{stage}.pruning.approach.weight_compression"
    # The steps per epoch are unknown before the data is read, so a schedule in epochs is checked in epochs.
    pruners = compression.resolve(steps_per_epoch=_EPOCH if compression.in_epochs() else 0)
    if pruning.learning_rate_rewinding:
        gradual = [p for p in pruners if p.prune_type != LOCK]
        require_common_ramp([(p.start_step, p.end_step, p.update_frequency_on_step) for p in gradual], where)
    for number, (pruner, names) in enumerate(zip(pruners, assign_matrices(pruners, shapes, where), strict=True)):
        label = f"{stage} pruner {number + 1}" if len(pruners) > 1 else f"{stage} pruner"
        if pruner.prune_type == LOCK:
            sparsities = sparsity_by_tensor(model.folder, names) if model.folder else {}
            if sparsities and not (stage == "transfer" and recipe.student):  # else the zeros are still to be made
                require_zeros(_zeros(sparsities, shapes), names, where)
            found += [(label, "pattern_lock"), *_by_layer(shapes, sparsities)]
            continue
        reconstruction = pruning.reconstruction if isinstance(pruning, StudentPruning) else None
        if reconstruction:
            require_reconstructable(model.config, "student.pruning.reconstruction")
            check_calibration(reconstruction, recipe.corpus, {name: shapes[name] for name in names})
        elif problem := unsupported(pruning.backend, pruner):
            raise UserError(f"{pruning.backend} does not support {problem}", where=where, instead="backend: inc")
        length = _length_of_training(pruner, compression.in_epochs(), train, where, at_once=reconstruction is not None)
        if length and train and pruning.learning_rate_rewinding is True:  # cycles never exceed the peak
            warmup = train.warmup_ratio * length
            require_bounded_rewinding(length, warmup, pruner.start_step, pruner.end_step, where)
        reached = reachable_sparsity(pruner, {name: shapes[name] for name in names})
        by = f"reconstruction ({reconstruction.method})" if reconstruction else pruning.backend
        found += [(label, _schedule(pruner, compression.in_epochs(), by)), *_by_layer(shapes, reached)]
    return found


_EPOCH = 1000  # placeholder for the steps per epoch; only the ratio to the training's length matters here


def _length_of_training(
    pruner: ResolvedPruner, in_epochs: bool, train: Train | None, where: str, *, at_once: bool
) -> int | None:
    """Checks that the ramp has steps and ends within the training, and returns the training's length if it is known.

    Reconstruction may prune at once (`at_once`), and needs no training.
    """
    if train is None:
        return None
    no_steps = pruner.end_step == pruner.start_step and pruner.initial_sparsity == 0 and not at_once
    if pruner.end_step < pruner.start_step or no_steps:
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
    """Describes the zeros of a ready student, matrix by matrix; one of fewer layers may have none."""
    folder = model.folder
    if folder is None:
        return [("locked", f"the zeros of {model.source} are checked after its download")]
    if is_shallow(folder):
        kept = depth_metrics(read_config(folder))
        total = kept["layers_before"]
        return [("student layers", f"{', '.join(map(str, kept['kept_layers']))} of {total}; dense")]
    shapes = prunable_shapes(recipe, model)
    sparsities = sparsity_by_tensor(folder, shapes)
    zeros = _zeros(sparsities, shapes)
    if zeros < MIN_SPARSITY:
        raise UserError(
            "this checkpoint is dense: there is no pattern to lock", where=str(folder), instead="a pruned checkpoint"
        )
    return [
        ("locked", f"{zeros:.2%} of {sum(map(math.prod, shapes.values())):,} encoder weights are zero"),
        *_by_layer(shapes, sparsities),
    ]


def _zeros(sparsities: dict[str, float], shapes: dict[str, tuple[int, int]]) -> float:
    """Returns the fraction of zeros of some matrices together."""
    weights = {name: math.prod(shapes[name]) for name in sparsities}
    return sum(sparsity * weights[name] for name, sparsity in sparsities.items()) / sum(weights.values())


def _by_layer(shapes: dict[str, tuple[int, int]], sparsities: dict[str, float]) -> list[tuple[str, str]]:
    """Returns one line per group of matrices that differ in their layer number only."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for name, zeros in sparsities.items():
        before, layer, after = split_layer(name)
        pattern = f"{before}*{after}"
        shape = "x".join(map(str, shapes[name]))
        groups.setdefault((pattern, shape, f"{zeros:.1%}"), []).append(layer)
    lines = []
    for (pattern, shape, sparsity), layers in groups.items():
        contiguous = len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1))
        numbers = f"{layers[0]}-{layers[-1]}" if contiguous else ",".join(map(str, layers))
        lines.append(("", f"{pattern.replace('*', f'[{numbers}]')} {shape}: {sparsity}"))
    return lines
