"""`student`: a copy of the teacher pruned gradually while it learns from it. Made once, used by every task."""

from typing import Any

from toolkit.artifacts import Artifact, Check, Context, StageResult


def run(sections: Any, inputs: dict[str, Artifact], context: Context) -> StageResult:
    """Gradual pruning with distillation and a rewound learning rate (paper, section 3)."""
    from toolkit import corpus, models, training
    from toolkit.distillation import MlmLoss, Teacher, mlm_loss
    from toolkit.sparsity import outcome
    from toolkit.sparsity.sparsifier import make_sparsifier

    training.seed_everything(context.seed)
    pruning, distillation = sections.student.pruning, sections.student.distillation
    train = distillation.train
    source = inputs["teacher"].path
    tokenizer = models.load_tokenizer(source)
    model, teacher = models.load_masked_lm(source), models.load_masked_lm(source)
    matrices = models.prunable_matrices(model, sections.model.prunable)
    context.progress.say("reading the corpus")
    text = corpus.load_corpus(sections.corpus, sections.corpus_tasks, tokenizer, context.work)
    sparsifier = make_sparsifier(pruning, matrices, training.steps_per_epoch(train, len(text.train)))

    probability = sections.corpus.mlm_probability
    frozen = Teacher(teacher, training.device())
    loss = mlm_loss(models.mlm_head, frozen, train.criterion, distillation.positions)
    labels_only = MlmLoss(models.mlm_head)
    before = training.mlm_loss(model, labels_only, text.valid, tokenizer, probability)
    data = training.mlm_data(text.train, tokenizer, probability, distillation.positions, train, context.seed)
    outcome.must_end_within((p.section for p in sparsifier.gradual), data.steps, "student.pruning")
    fitted = training.fit(model, data, train, loss, context, sparsifier=sparsifier, rewound=sparsifier.rewound())
    models.save_checkpoint(model, tokenizer, context.folder, sparsifier.mask)
    targets = {p.section.target_sparsity for p in sparsifier.gradual}
    return StageResult(
        kind="sparse",
        metrics=fitted.metrics()
        | outcome.figures(sparsifier.mask)
        | {
            "tokens_seen": data.tokens_seen(),
            "mlm_loss_before": before,
            "mlm_loss": training.mlm_loss(model, labels_only, text.valid, tokenizer, probability),
            "prunable_weights": sum(module.weight.numel() for module in matrices.values()),
            "backend": pruning.backend,
        }
        | ({"target_sparsity": targets.pop()} if len(targets) == 1 else {}),
        checks=[
            Check(name="matrices matched", ok=bool(matrices), measured=float(len(matrices)), limit=">= 1"),
            *(outcome.on_target(p.section, p.mask) for p in sparsifier.gradual),
            outcome.locked(sparsifier.mask, matrices),
        ],
        data={"corpus": text.summary()},
        history=fitted.history,
    )
