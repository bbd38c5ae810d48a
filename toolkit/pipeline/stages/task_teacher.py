"""`task_teacher`: the dense model fitted to the task: reference of all results, teacher of the sparse model."""

from typing import Any

from toolkit.core.artifacts import Artifact, Context, StageResult


def run(sections: Any, inputs: dict[str, Artifact], context: Context) -> StageResult:
    """Ordinary fine-tuning."""
    from toolkit.data import tasks
    from toolkit.models import load as models
    from toolkit.training import datasets, evaluation
    from toolkit.training import loop as training
    from toolkit.training.distillation import TaskLoss

    training.seed_everything(context.seed)
    train = sections.task_teacher.train
    source = inputs["teacher"].path
    tokenizer = models.load_tokenizer(source)
    task = tasks.load_task(context.task or "", sections.task, tokenizer)
    model = models.load_task_model(source, task.kind, task.labels, fitted=False)
    data = datasets.task_data(task.train, tokenizer.pad_token_id, train, context.seed)
    fitted = training.fit(model, data, train, TaskLoss(), context)
    models.save_checkpoint(model, tokenizer, context.folder)
    return StageResult(
        kind="task",
        metrics=fitted.metrics() | evaluation.task_metrics(model, task, tokenizer, data),
        data={"note": sections.task.note},
        history=fitted.history,
    )
