"""`student`: pruning of a copy of the teacher, of all or some of its layers, with distillation or by reconstruction.

Runs once for all tasks. Without pruning, the student is a dense model of fewer layers.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.core.artifacts import Artifact, Check, Context, StageResult
from toolkit.core.files import write_atomic
from toolkit.recipe import Corpus, Model, Student, Task


@dataclass(frozen=True)
class Inputs:
    """Recipe sections and artifacts that the stage reads."""

    model: Model
    corpus: Corpus
    corpus_tasks: dict[str, Task]
    student: Student
    teacher_artifact: Artifact


def run(inputs: Inputs, context: Context) -> StageResult:
    """Prunes gradually, with distillation and learning-rate rewinding (paper, section 3), or without any training."""
    from toolkit.data.corpus import load_corpus
    from toolkit.data.corpus.sequences import epoch_items
    from toolkit.models.depth import depth_metrics, keep_layers
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
    from toolkit.training.reconstruction import ReconstructingPruner, reconstruct_once

    seed_everything(context.seed)
    pruning, distillation, train = inputs.student.pruning, inputs.student.distillation, inputs.student.train
    section, source = inputs.corpus, inputs.teacher_artifact.path
    tokenizer = load_tokenizer(source)
    logits, layers = (train.criterion.logits, train.criterion.layers) if train else (None, None)
    model = load_masked_lm(
        source, pairs=section.pairs is not None, fitted=logits is not None and logits.loss_weights[1] > 0
    )
    teacher = copy.deepcopy(model)
    with distributed.main_process_first():
        text = load_corpus(
            section, inputs.corpus_tasks, tokenizer, context.cache, seed=context.seed, log=context.progress.message
        )
    if inputs.student.layers is not None:
        keep_layers(model, _kept_layers(inputs.student.layers, teacher, text.train, tokenizer.pad_token_id, context))
    matrices = prunable_matrices(model, inputs.model.prunable)
    frozen = Teacher(teacher, device(), teacher_bf16(train) if train else None)
    sparsifier = None
    if pruning is not None:
        sparsifier = make_sparsifier(pruning, matrices, steps_per_epoch(train, epoch_items(text.train)) if train else 0)
        if pruning.reconstruction:
            # Layers are reconstructed towards those that they come from: of the dense model with the same layers.
            dense = frozen.model if inputs.student.layers is None else copy.deepcopy(model)
            settings, pad_id = pruning.reconstruction, tokenizer.pad_token_id
            sparsifier = ReconstructingPruner(sparsifier, model, dense, settings, text, pad_id, context)
    pruners = sparsifier.pruners_with_schedule if sparsifier else []

    def validate() -> dict[str, float]:
        held_out = (text.valid, tokenizer, section.mlm_probability)
        found: dict[str, float] = {}
        if layers is not None:
            found |= layers_metrics(model, HiddenStateLoss(frozen, layers), *held_out)
        if logits is not None:  # hidden states do not train the vocabulary head: no MLM loss without logits
            found |= mlm_metrics(model, MlmLoss(mlm_head, next_head=next_sentence_head), *held_out)
        return found

    metrics: dict[str, Any] = {}
    if train is None or distillation is None:
        assert isinstance(sparsifier, ReconstructingPruner), "a student is trained or reconstructed"
        history, by_source = [], {}
        metrics |= reconstruct_once(sparsifier)
    else:
        loss = mlm_loss(mlm_head, frozen, train.criterion, distillation.positions, next_sentence_head)
        before = validate()
        data = mlm_data(text.train, tokenizer, section, distillation.positions, train, context.seed)
        for pruner in pruners:
            require_end_within(pruner.section.end_step, data.steps, "student.pruning")
        for line in data.passes():
            context.progress.message(line)
        result = fit(model, data, train, loss, context, sparsifier=sparsifier)
        history, by_source = result.history, data.by_source()
        metrics |= (
            result.metrics()
            | result.tokens(data)
            | {f"{name}_before": value for name, value in before.items()}
            | validate()
        )
    save_checkpoint(model, tokenizer, context.folder)
    checks = [Check(name="matrices matched", ok=bool(matrices), measured=float(len(matrices)), limit=">= 1")]
    if sparsifier is not None and pruning is not None:
        sparsifier.mask.save(context.folder / MASK_FILE)
        targets = {p.section.target_sparsity for p in pruners}
        metrics |= sparsity_metrics(sparsifier.mask)
        metrics |= {"backend": pruning.reconstruction.method if pruning.reconstruction else pruning.backend}
        metrics |= {"target_sparsity": targets.pop()} if len(targets) == 1 else {}
        checks += [*(check_target(p.section, p.mask) for p in pruners), check_locked(sparsifier.mask, matrices)]
    if isinstance(sparsifier, ReconstructingPruner):
        metrics |= {"reconstruction": sparsifier.metrics()}
    return StageResult(
        kind="sparse" if sparsifier else "dense",
        metrics=metrics
        | depth_metrics(model.config.to_dict())
        | {"prunable_weights": sum(module.weight.numel() for module in matrices.values())},
        checks=checks,
        data={"corpus": text.summary()} | by_source,
        history=history,
    )


def _kept_layers(layers: int | Sequence[int], teacher: Any, text: Any, pad_id: int, context: Context) -> list[int]:
    """Returns the layers that the student keeps; those that are chosen here are chosen once, by rank 0."""
    from toolkit.models.depth import require_layers_of
    from toolkit.training import distributed
    from toolkit.training.depth import choose_layers

    require_layers_of(teacher.config.to_dict(), layers)
    if not isinstance(layers, int):
        return list(layers)
    record = context.work / "layers.json"
    with distributed.main_process_first():
        if not record.is_file():
            chosen = choose_layers(teacher, layers, text, pad_id, context.progress.message)
            context.progress.message(f"layers kept: {', '.join(map(str, chosen))}")
            record.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(record, json.dumps(chosen))
    found: list[int] = json.loads(record.read_text())
    return found
