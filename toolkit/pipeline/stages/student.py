"""`student`: gradual pruning of a copy of the teacher, with distillation. Runs once for all tasks."""

import copy
from dataclasses import dataclass

from toolkit.core.artifacts import Artifact, Check, Context, StageResult
from toolkit.recipe import Corpus, KDLossSettings, Model, Student, Task


@dataclass(frozen=True)
class Inputs:
    """Recipe sections and artifacts that the stage reads."""

    model: Model
    corpus: Corpus
    corpus_tasks: dict[str, Task]
    student: Student
    teacher_artifact: Artifact


def run(inputs: Inputs, context: Context) -> StageResult:
    """Prunes gradually, with distillation and learning-rate rewinding (paper, section 3)."""
    from toolkit.data.corpus import load_corpus
    from toolkit.data.corpus.sequences import epoch_items
    from toolkit.models.load import load_masked_lm, load_tokenizer, prunable_matrices, save_checkpoint
    from toolkit.models.mlm_heads import mlm_head, next_sentence_head
    from toolkit.sparsity.assignment import require_end_within
    from toolkit.sparsity.checks import check_locked, check_target, sparsity_metrics
    from toolkit.sparsity.factory import make_sparsifier
    from toolkit.sparsity.mask_file import MASK_FILE
    from toolkit.training import distributed
    from toolkit.training.datasets import mlm_data, steps_per_epoch
    from toolkit.training.distillation import HiddenStateLoss, MlmLoss, Teacher, mlm_loss
    from toolkit.training.evaluation import layers_metrics, mlm_metrics
    from toolkit.training.hardware import device, teacher_bf16
    from toolkit.training.loop import fit, seed_everything

    seed_everything(context.seed)
    pruning, distillation = inputs.student.pruning, inputs.student.distillation
    train = distillation.train
    section, source = inputs.corpus, inputs.teacher_artifact.path
    tokenizer = load_tokenizer(source)
    word_loss = isinstance(train.criterion.settings, KDLossSettings) and train.criterion.settings.loss_weights[1] > 0
    model = load_masked_lm(source, pairs=section.pairs is not None, fitted=word_loss)
    teacher = copy.deepcopy(model)
    matrices = prunable_matrices(model, inputs.model.prunable)
    with distributed.main_process_first():
        text = load_corpus(
            section, inputs.corpus_tasks, tokenizer, context.cache, seed=context.seed, log=context.progress.message
        )
    sparsifier = make_sparsifier(pruning, matrices, steps_per_epoch(train, epoch_items(text.train)))

    frozen = Teacher(teacher, device(), teacher_bf16(train))
    loss = mlm_loss(mlm_head, frozen, train.criterion, distillation.positions, next_sentence_head)

    def validate() -> dict[str, float]:
        # A loss on hidden states does not train the vocabulary head, so its MLM loss would be meaningless.
        if isinstance(loss, HiddenStateLoss):
            return layers_metrics(model, loss, text.valid, tokenizer, section.mlm_probability)
        labels_only = MlmLoss(mlm_head, next_head=next_sentence_head)
        return mlm_metrics(model, labels_only, text.valid, tokenizer, section.mlm_probability)

    before = validate()
    data = mlm_data(text.train, tokenizer, section, distillation.positions, train, context.seed)
    for pruner in sparsifier.pruners_with_schedule:
        require_end_within(pruner.section.end_step, data.steps, "student.pruning")
    for line in data.passes():
        context.progress.message(line)
    result = fit(model, data, train, loss, context, sparsifier=sparsifier)
    save_checkpoint(model, tokenizer, context.folder)
    sparsifier.mask.save(context.folder / MASK_FILE)
    targets = {p.section.target_sparsity for p in sparsifier.pruners_with_schedule}
    return StageResult(
        kind="sparse",
        metrics=result.metrics()
        | result.tokens(data)
        | sparsity_metrics(sparsifier.mask)
        | {
            "prunable_weights": sum(module.weight.numel() for module in matrices.values()),
            "backend": pruning.backend,
        }
        | {f"{name}_before": value for name, value in before.items()}
        | validate()
        | ({"target_sparsity": targets.pop()} if len(targets) == 1 else {}),
        checks=[
            Check(name="matrices matched", ok=bool(matrices), measured=float(len(matrices)), limit=">= 1"),
            *(check_target(p.section, p.mask) for p in sparsifier.pruners_with_schedule),
            check_locked(sparsifier.mask, matrices),
        ],
        data={"corpus": text.summary()} | data.by_source(),
        history=result.history,
    )
