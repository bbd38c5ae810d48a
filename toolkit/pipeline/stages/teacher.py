"""`teacher`: the dense model fitted to the pre-training text. It teaches the student, which starts as its copy."""

from typing import Any

from toolkit.core.artifacts import Artifact, Context, StageResult


def run(sections: Any, inputs: dict[str, Artifact], context: Context) -> StageResult:
    """Masked-language-model training of the base model; with next-sentence prediction where the corpus has pairs."""
    from toolkit.data import corpus
    from toolkit.models import load as models
    from toolkit.models import mlm_heads
    from toolkit.training import datasets, distributed, evaluation
    from toolkit.training import loop as training
    from toolkit.training.distillation import MlmLoss

    training.seed_everything(context.seed)
    train, section = sections.teacher.train, sections.corpus
    tokenizer = models.load_tokenizer(inputs["base"].path)
    model = models.load_masked_lm(inputs["base"].path, pairs=section.pairs is not None)
    with distributed.first_alone():
        text = corpus.load_corpus(
            section, sections.corpus_tasks, tokenizer, context.cache, seed=context.seed, say=context.progress.say
        )
    loss = MlmLoss(mlm_heads.mlm_head, next_head=mlm_heads.next_sentence_head)
    before = evaluation.mlm_metrics(model, loss, text.valid, tokenizer, section.mlm_probability)
    data = datasets.mlm_data(text.train, tokenizer, section, "masked", train, context.seed)
    fitted = training.fit(model, data, train, loss, context)
    models.save_checkpoint(model, tokenizer, context.folder)
    after = evaluation.mlm_metrics(model, loss, text.valid, tokenizer, section.mlm_probability)
    return StageResult(
        kind="dense",
        metrics=fitted.metrics()
        | fitted.tokens(data)
        | {f"{name}_before": value for name, value in before.items()}
        | after,
        data={"corpus": text.summary()},
        history=fitted.history,
    )
