"""`transfer`: the one sparse model fitted to a task, its pattern locked, taught by the dense task teacher.

With other pruners than the lock, a dense model is pruned while it learns the task.
"""

from typing import Any

from toolkit.core.artifacts import Artifact, Context, StageResult


def run(sections: Any, inputs: dict[str, Artifact], context: Context) -> StageResult:
    """Fine-tuning with pattern lock and distillation (paper, section 3.2)."""
    from toolkit.data import tasks
    from toolkit.models import load as models
    from toolkit.sparsity import checks as outcome
    from toolkit.sparsity.mask import MASK_FILE, checkpoint_mask
    from toolkit.sparsity.pruners import Joined, PatternLock, make_sparsifier
    from toolkit.training import datasets, evaluation
    from toolkit.training import loop as training
    from toolkit.training import teacher_logits as lessons

    training.seed_everything(context.seed)
    section = sections.transfer
    train, pruning = section.train, section.pruning
    source = inputs["student"].path
    tokenizer = models.load_tokenizer(source)
    task = tasks.load_task(context.task or "", sections.task, tokenizer)
    model = models.load_task_model(source, task.kind, task.labels, fitted=False)
    matrices = models.prunable_matrices(model, sections.model.prunable)
    if pruning.locks_all:  # the mask file says it, where there is one
        lock = PatternLock(checkpoint_mask(source, matrices))
        lock.attach(matrices)
        sparsifier = Joined([lock])
    else:
        sparsifier = make_sparsifier(pruning, matrices, datasets.steps_per_epoch(train, len(task.train)))

    loss, answers = lessons.task_lesson(section.distillation, inputs.get("task_teacher"), task, tokenizer, context)
    data = datasets.task_data(task.train, tokenizer.pad_token_id, train, context.seed, answers)
    outcome.must_end_within((p.section for p in sparsifier.gradual), data.steps, "transfer.pruning")
    fitted = training.fit(model, data, train, loss, context, sparsifier=sparsifier, rewound=sparsifier.rewound())
    models.save_checkpoint(model, tokenizer, context.folder)
    sparsifier.mask.save(context.folder / MASK_FILE)
    return StageResult(
        kind="task",
        metrics=fitted.metrics()
        | evaluation.task_metrics(model, task, tokenizer, data)
        | outcome.figures(sparsifier.mask),
        checks=[
            *(outcome.on_target(p.section, p.mask) for p in sparsifier.gradual),
            outcome.locked(sparsifier.mask, matrices),
        ],
        data={"note": sections.task.note},
        history=fitted.history,
    )
