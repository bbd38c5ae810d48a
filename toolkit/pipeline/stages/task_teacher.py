"""`task_teacher`: fine-tuning of the dense model: baseline of all results and teacher of the sparse model."""

from dataclasses import dataclass

from toolkit.core.artifacts import Artifact, Context, StageResult
from toolkit.recipe import Model, Task, TrainOnly


@dataclass(frozen=True)
class Inputs:
    """Recipe sections and artifacts that the stage reads; `model` is part of the cache key only."""

    model: Model
    task: Task
    task_teacher: TrainOnly
    teacher_artifact: Artifact


def run(inputs: Inputs, context: Context) -> StageResult:
    """Fine-tunes the dense model on the task."""
    from toolkit.data.tasks import load_task
    from toolkit.models.load import load_task_model, load_tokenizer, save_checkpoint
    from toolkit.training.datasets import task_data
    from toolkit.training.distillation import TaskLoss
    from toolkit.training.evaluation import task_metrics
    from toolkit.training.loop import fit, seed_everything
    from toolkit.training.teacher_logits import compared_with

    seed_everything(context.seed)
    train = inputs.task_teacher.train
    source = inputs.teacher_artifact.path
    tokenizer = load_tokenizer(source)
    task = load_task(context.task or "", inputs.task, tokenizer)
    model = load_task_model(source, task.kind, task.labels, fitted=False, pooling=task.pooling)
    data = task_data(task.train, tokenizer.pad_token_id, train, context.seed)
    result = fit(model, data, train, TaskLoss(task.kind), context)
    save_checkpoint(model, tokenizer, context.folder, inputs.task)
    task = compared_with(task, model, tokenizer)
    return StageResult(
        kind="task",
        metrics=result.metrics() | task_metrics(model, task, tokenizer, data),
        data={"note": inputs.task.note},
        history=result.history,
    )
