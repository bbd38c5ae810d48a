"""`student`: a copy of the teacher pruned gradually while it learns from it. Made once, used by every task."""

import copy
from typing import Any

from toolkit.core.artifacts import Artifact, Check, Context, StageResult


def run(sections: Any, inputs: dict[str, Artifact], context: Context) -> StageResult:
    """Gradual pruning with distillation and a rewound learning rate (paper, section 3)."""
    from toolkit.data import corpus
    from toolkit.models import load as models
    from toolkit.models import mlm_heads
    from toolkit.recipe import KDLossSettings
    from toolkit.sparsity import checks as outcome
    from toolkit.sparsity.mask import MASK_FILE
    from toolkit.sparsity.pruners import make_sparsifier
    from toolkit.training import datasets, distributed, evaluation, hardware
    from toolkit.training import loop as training
    from toolkit.training.distillation import LayersLoss, MlmLoss, Teacher, mlm_loss
    from toolkit.training.hardware import teacher_bf16

    training.seed_everything(context.seed)
    pruning, distillation = sections.student.pruning, sections.student.distillation
    train = distillation.train
    section, source = sections.corpus, inputs["teacher"].path
    tokenizer = models.load_tokenizer(source)
    words_taught = isinstance(train.criterion.settings, KDLossSettings) and train.criterion.settings.loss_weights[1] > 0
    model = models.load_masked_lm(source, pairs=section.pairs is not None, fitted=words_taught)
    teacher = copy.deepcopy(model)
    matrices = models.prunable_matrices(model, sections.model.prunable)
    with distributed.first_alone():
        text = corpus.load_corpus(
            section, sections.corpus_tasks, tokenizer, context.cache, seed=context.seed, say=context.progress.say
        )
    sparsifier = make_sparsifier(pruning, matrices, datasets.steps_per_epoch(train, len(text.train)))

    frozen = Teacher(teacher, hardware.device(), teacher_bf16(train))
    loss = mlm_loss(mlm_heads.mlm_head, frozen, train.criterion, distillation.positions, mlm_heads.next_sentence_head)

    def held_out() -> dict[str, float]:
        # Where words play no part in the loss, the word head stays as it was: its own loss would tell nothing.
        if isinstance(loss, LayersLoss):
            return evaluation.layers_metrics(model, loss, text.valid, tokenizer, section.mlm_probability)
        labels_only = MlmLoss(mlm_heads.mlm_head, next_head=mlm_heads.next_sentence_head)
        return evaluation.mlm_metrics(model, labels_only, text.valid, tokenizer, section.mlm_probability)

    before = held_out()
    data = datasets.mlm_data(text.train, tokenizer, section, distillation.positions, train, context.seed)
    outcome.must_end_within((p.section for p in sparsifier.gradual), data.steps, "student.pruning")
    fitted = training.fit(model, data, train, loss, context, sparsifier=sparsifier, rewound=sparsifier.rewound())
    models.save_checkpoint(model, tokenizer, context.folder)
    sparsifier.mask.save(context.folder / MASK_FILE)
    targets = {p.section.target_sparsity for p in sparsifier.gradual}
    return StageResult(
        kind="sparse",
        metrics=fitted.metrics()
        | fitted.tokens(data)
        | outcome.figures(sparsifier.mask)
        | {
            "prunable_weights": sum(module.weight.numel() for module in matrices.values()),
            "backend": pruning.backend,
        }
        | {f"{name}_before": value for name, value in before.items()}
        | held_out()
        | ({"target_sparsity": targets.pop()} if len(targets) == 1 else {}),
        checks=[
            Check(name="matrices matched", ok=bool(matrices), measured=float(len(matrices)), limit=">= 1"),
            *(outcome.on_target(p.section, p.mask) for p in sparsifier.gradual),
            outcome.locked(sparsifier.mask, matrices),
        ],
        data={"corpus": text.summary()},
        history=fitted.history,
    )
