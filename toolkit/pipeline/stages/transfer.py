"""`transfer`: the one sparse model fitted to a task, its pattern locked, taught by the dense task teacher.

With other pruners than the lock, a dense model is pruned while it learns the task.
"""

from dataclasses import dataclass

from toolkit.core.artifacts import Artifact, Context, StageResult
from toolkit.recipe import Model, Task, Transfer


@dataclass(frozen=True)
class Inputs:
    """Recipe sections and artifacts that the stage reads; without distillation there is no task teacher."""

    model: Model
    task: Task
    transfer: Transfer
    student_artifact: Artifact
    task_teacher_artifact: Artifact | None = None


def run(inputs: Inputs, context: Context) -> StageResult:
    """Fine-tuning with pattern lock and distillation (paper, section 3.2)."""
    from toolkit.data.tasks import load_task
    from toolkit.models.load import load_task_model, load_tokenizer, prunable_matrices, save_checkpoint
    from toolkit.sparsity.assignment import require_end_within
    from toolkit.sparsity.checks import check_locked, check_target, sparsity_metrics
    from toolkit.sparsity.factory import make_sparsifier
    from toolkit.sparsity.mask import MASK_FILE, checkpoint_mask
    from toolkit.sparsity.pruners import PatternLock, PrunerGroup
    from toolkit.training.datasets import steps_per_epoch, task_data
    from toolkit.training.evaluation import task_metrics
    from toolkit.training.loop import fit, seed_everything
    from toolkit.training.teacher_logits import task_distillation

    seed_everything(context.seed)
    section = inputs.transfer
    train, pruning = section.train, section.pruning
    source = inputs.student_artifact.path
    tokenizer = load_tokenizer(source)
    task = load_task(context.task or "", inputs.task, tokenizer)
    model = load_task_model(source, task.kind, task.labels, fitted=False)
    matrices = prunable_matrices(model, inputs.model.prunable)
    if pruning.locks_all:  # the mask file says it, where there is one
        lock = PatternLock(checkpoint_mask(source, matrices))
        lock.attach(matrices)
        sparsifier = PrunerGroup([lock])
    else:
        sparsifier = make_sparsifier(pruning, matrices, steps_per_epoch(train, len(task.train)))

    loss, answers = task_distillation(section.distillation, inputs.task_teacher_artifact, task, tokenizer, context)
    data = task_data(task.train, tokenizer.pad_token_id, train, context.seed, answers)
    for pruner in sparsifier.pruners_with_schedule:
        require_end_within(pruner.section.end_step, data.steps, "transfer.pruning")
    fitted = fit(model, data, train, loss, context, sparsifier=sparsifier)
    save_checkpoint(model, tokenizer, context.folder)
    sparsifier.mask.save(context.folder / MASK_FILE)
    return StageResult(
        kind="task",
        metrics=fitted.metrics() | task_metrics(model, task, tokenizer, data) | sparsity_metrics(sparsifier.mask),
        checks=[
            *(check_target(p.section, p.mask) for p in sparsifier.pruners_with_schedule),
            check_locked(sparsifier.mask, matrices),
        ],
        data={"note": inputs.task.note},
        history=fitted.history,
    )
