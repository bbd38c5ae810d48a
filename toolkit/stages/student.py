"""`student`: a copy of the teacher pruned gradually while it learns from it. Made once, used by every task."""

from typing import Any

from toolkit.artifacts import Artifact, Check, Context, StageResult


def run(sections: Any, inputs: dict[str, Artifact], context: Context) -> StageResult:
    """Gradual pruning with distillation and a rewound learning rate (paper, section 3)."""
    from toolkit import corpus, models, training
    from toolkit.distillation import MlmLoss, Teacher
    from toolkit.sparsity.sparsifier import make_sparsifier

    training.seed_everything(context.seed)
    pruning, distillation = sections.student.pruning, sections.student.distillation
    source = inputs["teacher"].path
    tokenizer = models.load_tokenizer(source)
    model, teacher = models.load_masked_lm(source), models.load_masked_lm(source)
    matrices = models.prunable_matrices(model, sections.model.prunable)
    sparsifier = make_sparsifier(pruning)
    sparsifier.attach(matrices)
    context.progress.say("reading the corpus")
    text = corpus.load_corpus(sections.corpus, sections.corpus_tasks, tokenizer, context.work)

    probability = sections.corpus.mlm_probability
    settings = distillation.train.criterion.KnowledgeDistillationLoss
    frozen = Teacher(teacher, training.device())
    loss = MlmLoss(models.mlm_head, frozen, settings, distillation.positions)
    labels_only = MlmLoss(models.mlm_head)
    before = training.mlm_loss(model, labels_only, text.valid, tokenizer, probability)
    data = training.mlm_data(
        text.train, tokenizer, probability, distillation.positions, distillation.train, context.seed
    )
    fitted = training.fit(
        model,
        data,
        distillation.train,
        loss,
        context,
        sparsifier=sparsifier,
        rewound=sparsifier.schedule if pruning.learning_rate_rewinding else None,
    )
    mask = sparsifier.mask
    models.save_checkpoint(model, tokenizer, context.folder, mask)

    target = sparsifier.schedule.final
    off_target = max(abs(share - target) for share in mask.per_matrix().values())
    weights = {name: module.weight for name, module in matrices.items()}
    outside = sum(mask.violations(weights).values())
    # Only the whole is held to the target when matrices may differ.
    local = pruning.approach.weight_compression.resolved().prune_domain == "local"
    off = off_target if local else abs(mask.sparsity() - target)
    where = "each matrix" if local else "all matrices together"
    return StageResult(
        kind="sparse",
        metrics=fitted.metrics()
        | {
            "tokens_seen": data.tokens_seen(),
            "mlm_loss_before": before,
            "mlm_loss": training.mlm_loss(model, labels_only, text.valid, tokenizer, probability),
            "sparsity": mask.sparsity(),
            "target_sparsity": target,
            "prunable_weights": sum(w.numel() for w in weights.values()),
            "per_matrix": mask.per_matrix(),
            "backend": pruning.backend,
        },
        checks=[
            Check(name="matrices matched", ok=bool(matrices), measured=float(len(matrices)), limit=">= 1"),
            Check(name=f"sparsity of {where}, off target by", ok=off <= 0.001, measured=off, limit=0.001),
            Check(name="non-zero weights outside the mask", ok=outside == 0, measured=float(outside), limit=0.0),
        ],
        data={"corpus": text.summary()},
        history=fitted.history,
    )
