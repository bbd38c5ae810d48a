"""`teacher`: the dense model fitted to the pre-training text. It teaches the student, which starts as its copy."""

from typing import Any

from toolkit.artifacts import Artifact, Context, StageResult


def run(sections: Any, inputs: dict[str, Artifact], context: Context) -> StageResult:
    """Masked-language-model training of the base model."""
    from toolkit import corpus, models, training
    from toolkit.distillation import MlmLoss

    training.seed_everything(context.seed)
    train = sections.teacher.train
    tokenizer = models.load_tokenizer(inputs["base"].path)
    model = models.load_masked_lm(inputs["base"].path)
    context.progress.say("reading the corpus")
    text = corpus.load_corpus(sections.corpus, sections.corpus_tasks, tokenizer, context.work)
    loss = MlmLoss(models.mlm_head)
    probability = sections.corpus.mlm_probability
    before = training.mlm_loss(model, loss, text.valid, tokenizer, probability)
    data = training.mlm_data(text.train, tokenizer, probability, "masked", train, context.seed)
    fitted = training.fit(model, data, train, loss, context)
    models.save_checkpoint(model, tokenizer, context.folder)
    return StageResult(
        kind="dense",
        metrics=fitted.metrics()
        | {
            "tokens_seen": data.tokens_seen(),
            "mlm_loss_before": before,
            "mlm_loss": training.mlm_loss(model, loss, text.valid, tokenizer, probability),
        },
        data={"corpus": text.summary()},
        history=fitted.history,
    )
