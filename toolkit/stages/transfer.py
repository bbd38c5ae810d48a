"""`transfer`: the one sparse model fitted to a task, its pattern locked, taught by the dense task teacher."""

from typing import Any

from toolkit.artifacts import Artifact, Check, Context, StageResult


def run(sections: Any, inputs: dict[str, Artifact], context: Context) -> StageResult:
    """Fine-tuning with pattern lock and distillation (paper, section 3.2)."""
    from toolkit import models, tasks, training
    from toolkit.distillation import TaskLoss, Teacher
    from toolkit.sparsity.sparsifier import PatternLock

    training.seed_everything(context.seed)
    train = sections.transfer.distillation.train
    source = inputs["student"].path
    tokenizer = models.load_tokenizer(source)
    task = tasks.load_task(context.task or "", sections.task, tokenizer)
    model = models.load_classifier(source, task.labels)
    matrices = models.prunable_matrices(model, sections.model.prunable)
    mask = models.checkpoint_mask(source, matrices)
    lock = PatternLock(mask)
    lock.attach(matrices)

    teacher = models.load_classifier(inputs["task_teacher"].path, task.labels)
    loss = TaskLoss(Teacher(teacher, training.device()), train.criterion.KnowledgeDistillationLoss)
    data = training.task_data(task.train, tokenizer.pad_token_id, train, context.seed)
    fitted = training.fit(model, data, train, loss, context, sparsifier=lock)
    models.save_checkpoint(model, tokenizer, context.folder, mask)

    outside = sum(mask.violations({name: module.weight for name, module in matrices.items()}).values())
    return StageResult(
        kind="task",
        metrics=fitted.metrics()
        | training.task_metrics(model, task, tokenizer, data)
        | {"sparsity": mask.sparsity(), "per_matrix": mask.per_matrix()},
        checks=[Check(name="non-zero weights outside the mask", ok=outside == 0, measured=float(outside), limit=0.0)],
        data={"note": sections.task.note},
        history=fitted.history,
    )
