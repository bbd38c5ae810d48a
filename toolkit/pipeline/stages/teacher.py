"""`teacher`: pre-training of the dense model on the corpus. The student starts as its copy and is distilled from it."""

from dataclasses import dataclass

from toolkit.core.artifacts import Artifact, Context, StageResult
from toolkit.recipe import Corpus, Model, Task, TrainOnly


@dataclass(frozen=True)
class Inputs:
    """Recipe sections and artifacts that the stage reads; `model` is part of the cache key only."""

    model: Model
    corpus: Corpus
    corpus_tasks: dict[str, Task]
    teacher: TrainOnly
    base_artifact: Artifact


def run(inputs: Inputs, context: Context) -> StageResult:
    """Trains the base model on masked language modelling, and on next-sentence prediction if the corpus has pairs."""
    from toolkit.data.corpus import load_corpus
    from toolkit.models.load import load_masked_lm, load_tokenizer, save_checkpoint
    from toolkit.models.mlm_heads import mlm_head, next_sentence_head
    from toolkit.training import distributed
    from toolkit.training.datasets import mlm_data
    from toolkit.training.distillation import MlmLoss
    from toolkit.training.evaluation import mlm_metrics
    from toolkit.training.loop import fit, seed_everything

    seed_everything(context.seed)
    train, section, source = inputs.teacher.train, inputs.corpus, inputs.base_artifact.path
    tokenizer = load_tokenizer(source)
    model = load_masked_lm(source, pairs=section.pairs is not None)
    with distributed.main_process_first():
        text = load_corpus(
            section, inputs.corpus_tasks, tokenizer, context.cache, seed=context.seed, log=context.progress.message
        )
    loss = MlmLoss(mlm_head, next_head=next_sentence_head)
    before = mlm_metrics(model, loss, text.valid, tokenizer, section.mlm_probability)
    data = mlm_data(text.train, tokenizer, section, "masked", train, context.seed)
    for line in data.passes():
        context.progress.message(line)
    result = fit(model, data, train, loss, context)
    save_checkpoint(model, tokenizer, context.folder)
    after = mlm_metrics(model, loss, text.valid, tokenizer, section.mlm_probability)
    return StageResult(
        kind="dense",
        metrics=result.metrics()
        | result.tokens(data)
        | {f"{name}_before": value for name, value in before.items()}
        | after,
        data={"corpus": text.summary()} | data.by_source(),
        history=result.history,
    )
