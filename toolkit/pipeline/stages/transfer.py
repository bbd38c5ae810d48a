"""`transfer`: fine-tuning of the sparse model on a task, with its pattern locked and distillation.

With pruners other than the lock, a dense model is pruned during fine-tuning instead. A dense student, which has fewer
layers than its teacher, is trained without a lock.
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
    """Fine-tunes with pattern lock and distillation (paper, section 3.2)."""
    from toolkit.data.tasks import load_task
    from toolkit.models.checkpoint import MIN_SPARSITY
    from toolkit.models.depth import depth_metrics
    from toolkit.models.load import load_task_model, load_tokenizer, prunable_matrices, save_checkpoint
    from toolkit.sparsity.assignment import require_end_within
    from toolkit.sparsity.checks import check_locked, check_target, sparsity_metrics
    from toolkit.sparsity.factory import make_sparsifier
    from toolkit.sparsity.mask import SparsityMask, checkpoint_mask
    from toolkit.sparsity.mask_file import MASK_FILE
    from toolkit.sparsity.pruners import PatternLock, PrunerGroup
    from toolkit.training.datasets import steps_per_epoch, task_data
    from toolkit.training.evaluation import SimilarTexts, task_metrics
    from toolkit.training.loop import fit, seed_everything
    from toolkit.training.reconstruction import ReconstructedLock
    from toolkit.training.teacher_checks import load_same_model
    from toolkit.training.teacher_logits import task_distillation, with_dense

    seed_everything(context.seed)
    section = inputs.transfer
    train, pruning = section.train, section.pruning
    source = inputs.student_artifact.path
    tokenizer = load_tokenizer(source)
    similar = SimilarTexts(inputs.student_artifact, tokenizer, inputs.task.max_seq_length, context.cache)
    task = load_task(context.task or "", inputs.task, tokenizer, section.unlabelled, similar)
    task = with_dense(task, inputs.task_teacher_artifact, tokenizer, context.cache)
    model = load_task_model(source, task.kind, task.labels, fitted=False, pooling=task.pooling)
    matrices = prunable_matrices(model, inputs.model.prunable)
    sparsifier: PrunerGroup | None
    if pruning.locks_all and inputs.student_artifact.kind == "dense":  # of fewer layers: it has no zeros to keep
        sparsifier = None
    elif pruning.locks_all:
        lock = PatternLock(checkpoint_mask(source, matrices))
        lock.attach(matrices)
        sparsifier = PrunerGroup([lock])
        if section.reconstruction and inputs.task_teacher_artifact:
            teacher = load_same_model(inputs.task_teacher_artifact.path, task, tokenizer)
            examples, pad_id = section.reconstruction.examples, tokenizer.pad_token_id
            sparsifier = ReconstructedLock(lock, model, teacher, task.train, examples, pad_id, context)
    else:
        sparsifier = make_sparsifier(pruning, matrices, steps_per_epoch(train, len(task.train.groups)))
    selected = sparsifier.mask.tensors if sparsifier else {}
    rest = SparsityMask.from_zeros({name: m.weight for name, m in matrices.items() if name not in selected})
    if freed := [name for name, zeros in rest.per_matrix().items() if zeros > MIN_SPARSITY]:
        context.progress.message(
            f"the zeros of {len(freed)} matrices that no pruner selects are trained: e.g. {freed[0]}"
        )

    loss, logits = task_distillation(section.distillation, inputs.task_teacher_artifact, task, tokenizer, context)
    data = task_data(task.train, tokenizer.pad_token_id, train, context.seed, logits)
    pruners = sparsifier.pruners_with_schedule if sparsifier else []
    for pruner in pruners:
        require_end_within(pruner.section.end_step, data.steps, "transfer.pruning")
    result = fit(model, data, train, loss, context, sparsifier=sparsifier)
    save_checkpoint(model, tokenizer, context.folder, inputs.task)
    metrics, checks = depth_metrics(model.config.to_dict()), [check_target(p.section, p.mask) for p in pruners]
    if sparsifier is not None:
        sparsifier.mask.save(context.folder / MASK_FILE)
        metrics |= sparsity_metrics(sparsifier.mask)
        checks.append(check_locked(sparsifier.mask, matrices))
    if isinstance(sparsifier, ReconstructedLock):
        metrics |= {"reconstruction": sparsifier.metrics()}
    return StageResult(
        kind="task",
        metrics=result.metrics() | task_metrics(model, task, tokenizer, data) | metrics,
        checks=checks,
        data={"note": inputs.task.note},
        history=result.history,
    )
