"""`quantize`: the transferred sparse model trained in 8 bits, its pattern still locked, still taught by its teacher."""

from typing import Any

from toolkit.artifacts import Artifact, Check, Context, StageResult


def run(sections: Any, inputs: dict[str, Artifact], context: Context) -> StageResult:
    """Quantization-aware training with pattern lock and distillation (paper, section 3.3)."""
    from toolkit import models, tasks, training
    from toolkit.distillation import TaskLoss, Teacher
    from toolkit.quantization import nncf
    from toolkit.sparsity.sparsifier import PatternLock

    training.seed_everything(context.seed)
    train, section = sections.quantize.distillation.train, sections.quantize.quantization
    source = inputs["transfer"].path
    tokenizer = models.load_tokenizer(source)
    task = tasks.load_task(context.task or "", sections.task, tokenizer)
    plain = models.load_classifier(source, task.labels)
    mask = models.checkpoint_mask(source, models.prunable_matrices(plain, sections.model.prunable))
    data = training.task_data(task.train, tokenizer.pad_token_id, train, context.seed)

    calibration = nncf.calibration_batches(data.collate, task.train, section.calibration.sampling_size)
    model = nncf.quantize(plain, calibration, section)
    matrices = models.prunable_matrices(model, sections.model.prunable)
    lock = PatternLock(mask)
    lock.attach(matrices)
    teacher = models.load_classifier(inputs["task_teacher"].path, task.labels)
    loss = TaskLoss(Teacher(teacher, training.device()), train.criterion.KnowledgeDistillationLoss)
    fitted = training.fit(model, data, train, loss, context, sparsifier=lock)

    nncf.save(model, context.folder)
    plain.config.save_pretrained(context.folder)
    tokenizer.save_pretrained(context.folder)
    mask.save(context.folder / "mask.safetensors")
    outside = sum(mask.violations({name: module.weight for name, module in matrices.items()}).values())
    return StageResult(
        kind="quantized",
        metrics=fitted.metrics()
        | training.task_metrics(model, task, tokenizer, data)
        | {
            "sparsity": mask.sparsity(),
            "per_matrix": mask.per_matrix(),
            "overflow_fix": nncf.resolve_overflow_fix(section),
        },
        checks=[Check(name="non-zero weights outside the mask", ok=outside == 0, measured=float(outside), limit=0.0)],
        data={"note": sections.task.note},
        history=fitted.history,
    )
