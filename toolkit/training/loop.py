"""The one training loop: transformers' Trainer with a loss of ours, pruning hooks and an exact resume."""

import contextlib
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from toolkit.core import machine as system
from toolkit.core.artifacts import Context
from toolkit.core.errors import UserError
from toolkit.data.corpus import Sequences
from toolkit.data.masking import KD_POSITIONS, mask_tokens, masked_count, pad_masked, sample_positions, sampled_count
from toolkit.data.sampler import Stream
from toolkit.data.segment_pairs import PairSequences
from toolkit.data.tasks import Split, pad
from toolkit.models.task_heads import TEACHER, batch_of
from toolkit.recipe import AdamSettings, Corpus, Positions, Sample, SGDSettings, Train
from toolkit.sparsity.pruners import Sparsifier
from toolkit.sparsity.schedule import PruningSchedule
from toolkit.training import distributed
from toolkit.training import lr_schedule as learning_rate
from toolkit.training.allocator import keep_freed_memory
from toolkit.training.distillation import Batch, LossTerms
from toolkit.training.hardware import bf16
from toolkit.training.hooks import Hooks, last_whole

_MODEL = "model.safetensors"
_NUMBER = "number"  # of an example
_MOST_LOADERS = 8  # each keeps two batches ready


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class TrainingData:
    """What a training run reads: its stream, how examples become a batch, and how long it is."""

    stream: Stream
    collate: Callable[[list[dict[str, Any]]], Batch]
    steps: int

    def tokens_seen(self) -> int:
        """Tokens of all examples that training saw, padding not counted."""
        return int(sum(self.stream.step_lengths(step).sum() for step in range(self.steps)))


def steps_of(section: Train, examples: int) -> int:
    """Optimizer steps that `steps` or `epoch` amounts to."""
    return section.steps or (section.epoch or 0) * steps_per_epoch(section, examples)


def steps_per_epoch(section: Train, examples: int) -> int:
    """Optimizer steps of one pass over the examples."""
    return math.ceil(examples / (section.batch_size * section.gradient_accumulation_steps))


def task_data(
    examples: Split, pad_id: int, section: Train, seed: int, answers: Callable[[int], np.ndarray] | None = None
) -> TrainingData:
    """Labelled examples; the losses are averaged over the examples of an optimizer step.

    Args:
        examples: What is trained on.
        pad_id: Of the tokenizer.
        section: Length and batch.
        seed: Of the order.
        answers: Number of an example -> the teacher's logits of it, where they are known already.
    """
    steps = steps_of(section, len(examples))
    stream = _stream(examples.lengths, lambda i, _: examples[i] | {_NUMBER: i}, section, steps, seed)
    items = float(section.batch_size * section.gradient_accumulation_steps)

    def collate(features: list[dict[str, Any]]) -> Batch:
        plain = [{k: v for k, v in f.items() if k not in ("step", _NUMBER)} for f in features]
        counts = {"items": items, "examples": items}
        taught = {} if answers is None else {TEACHER: batch_of([answers(f[_NUMBER]) for f in features])}
        return pad(plain, pad_id) | taught | counts

    return TrainingData(stream, collate, steps)


def mlm_data(
    sequences: Sequences | PairSequences,
    tokenizer: Any,
    corpus: Corpus,
    positions: Positions,
    section: Train,
    seed: int,
) -> TrainingData:
    """Masked sequences; the label loss is averaged over an optimizer step's masked tokens, KL over its `positions`."""
    share = positions.sample if isinstance(positions, Sample) else None
    steps = steps_of(section, len(sequences))
    specials, probability, whole_words = sequences.specials, corpus.mlm_probability, corpus.whole_word_masking

    def item(index: int, rng: np.random.Generator) -> dict[str, Any]:
        example = sequences.example(index)
        ids = example["input_ids"]
        example |= mask_tokens(ids, rng, tokenizer, probability, specials=specials, whole_words=whole_words)
        if share is None:
            return example
        return example | {KD_POSITIONS: sample_positions(example["labels"], rng, compared(len(ids)))}

    def compared(length: int) -> int:
        masked = masked_count(length, probability, specials)
        if positions == "masked":
            return masked
        return length if share is None else sampled_count(length, masked, share)

    stream = _stream(sequences.lengths, item, section, steps, seed)

    def collate(features: list[dict[str, Any]]) -> Batch:
        lengths = stream.step_lengths(features[0]["step"])
        masked = float(sum(masked_count(int(n), probability, specials) for n in lengths))
        kd_items = float(sum(compared(int(n)) for n in lengths))
        counts = {"items": masked, "kd_items": kd_items, "examples": float(len(lengths))}
        return pad_masked(features, tokenizer.pad_token_id) | counts

    return TrainingData(stream, collate, steps)


def _stream(lengths: np.ndarray, item: Any, section: Train, steps: int, seed: int) -> Stream:
    return Stream(
        lengths,
        item,
        batch_size=section.batch_size,
        steps=steps,
        accumulation=section.gradient_accumulation_steps,
        seed=seed,
    )


@dataclass
class Fitted:
    """What a training run leaves behind besides the weights.

    Attributes:
        history: The training curve.
        steps: Optimizer steps.
        seconds_per_step: Of all steps, those before an interruption too.
        processes: How many trained together.
        bf16: Under bfloat16 autocast.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds_per_step: float = 0.0
    processes: int = 1
    bf16: bool = False

    def metrics(self) -> dict[str, float]:
        """For the manifest."""
        figures = {"steps": self.steps, "seconds_per_step": self.seconds_per_step}
        figures |= {"processes": self.processes} if self.processes > 1 else {}
        return figures | ({"bf16": True} if self.bf16 else {})

    def tokens(self, data: TrainingData) -> dict[str, float]:
        """For the manifest of pre-training: tokens of all examples, and as many a second as at this run's speed."""
        seen = data.tokens_seen()
        return {"tokens_seen": seen, "tokens_per_second": seen / self.steps / self.seconds_per_step}


def fit(
    model: nn.Module,
    data: TrainingData,
    section: Train,
    loss: Callable[[Any, Batch], LossTerms],
    context: Context,
    *,
    sparsifier: Sparsifier | None = None,
    rewound: PruningSchedule | None = None,
) -> Fitted:
    """Trains in place, from the last whole checkpoint in `context.work` where there is one.

    An interrupted run that is started again ends with the same weights, bit for bit (same machine and threads):
    examples and masking are functions of the step, and a checkpoint keeps the generators, optimizer and mask.
    Several processes (`toolkit.training.distributed`) share each batch; the first one writes, and alone it returns.

    Args:
        model: Anything that `loss` can be computed of.
        data: The stream of examples.
        section: Steps, batch, optimizer, checkpoints.
        loss: (model, batch) -> terms; `terms.total` is differentiated.
        context: Where checkpoints and progress go.
        sparsifier: Attached already; prunes before steps, and puts zeros back after them.
        rewound: The pruning schedule along which the learning rate is rewound; None: plain linear decay.

    Raises:
        UserError: The batch cannot be divided among the processes; or the rate would be rewound far above its peak.
        PartDone: This is not the first process.
    """
    keep_freed_memory()
    rank, processes = distributed.rank(), distributed.processes()
    stage = context.folder.name.removesuffix(".partial")
    if section.batch_size % processes:
        raise UserError(
            f"a batch of {section.batch_size} cannot be divided among {processes} processes",
            where=f"train.batch_size of {stage}",
            instead=f"batch_size: {processes * (section.batch_size // processes + 1)}",
        )
    checkpoints = context.work / "checkpoints"
    hooks = Hooks(sparsifier, context, section.log_every, bf16(section))
    with distributed.first_alone():
        resume = last_whole(checkpoints, context)
    if resume is not None:
        hooks.load(resume)
    distributed.share(value for value in model.state_dict().values() if isinstance(value, Tensor))
    trainer = CompressionTrainer(
        model=model,
        args=_arguments(section, data.steps, checkpoints, context.seed),
        train_dataset=data.stream if processes == 1 else data.stream.share(rank, processes),
        data_collator=data.collate,
        hooks=hooks,
        # Normalised by the whole optimizer step: given like this, the Trainer does not divide it by the passes again.
        compute_loss_func=loss,
        multiplier=_multiplier(section, data.steps, rewound, stage),
        autocast=hooks.bf16,  # as the run began, wherever it goes on
        optimizer_cls_and_kwargs=optimizer_class(section),
    )
    context.progress.start(data.steps)
    with compiled(model if section.compile else None), recomputed(model if section.recompute else None):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if rank:
        raise distributed.PartDone
    return Fitted(hooks.history, data.steps, hooks.seconds() / data.steps, processes, hooks.bf16)


@contextlib.contextmanager
def compiled(model: Any) -> Iterator[None]:
    """The encoder runs as what torch.compile makes of it; heads and losses, whose sizes change, as they are."""
    if model is None:
        yield
        return
    model.base_model.compile()
    try:
        yield
    finally:
        model.base_model._compiled_call_impl = None  # evaluation has a shape for every batch


@contextlib.contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """Layers keep what went into them and run again in the backward pass, with the same random numbers."""
    if model is None:
        yield
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


def _arguments(section: Train, steps: int, folder: Path, seed: int) -> TrainingArguments:
    optimizer = section.optimizer.settings
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=section.batch_size // distributed.processes(),
        gradient_accumulation_steps=section.gradient_accumulation_steps,
        learning_rate=optimizer.learning_rate,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=section.max_grad_norm,
        bf16=False,  # autocast is ours, around the loss alone
        dataloader_num_workers=_loaders(),
        use_cpu=device().type == "cpu",
        seed=seed,
        save_strategy="no" if distributed.rank() else "steps",
        save_steps=section.checkpoint_every,
        save_total_limit=2,  # the older one is there while the newer one is being written
        logging_strategy="no",
        disable_tqdm=True,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=device().type == "cuda",
        accelerator_config={"non_blocking": device().type == "cuda"},
        logging_nan_inf_filter=False,  # to look at each step's loss would wait for the GPU
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # a process has one GPU; the Trainer would spread each batch over all that it sees
    return arguments


def _loaders() -> int:
    """Processes that make batches while a GPU computes; next to a step on a CPU a batch takes no time.

    A batch of 512 x 128 tokens takes about 0.15 s of a core, which a fast GPU would wait for. They have this process's
    share of the cores, less the one that gives the GPU its work.
    """
    if device().type != "cuda":
        return 0
    share = system.cores() // distributed.processes_here()
    return max(1, min(_MOST_LOADERS, share - 1))


def optimizer_class(section: Train) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Class and settings; weight decay is not in them: the Trainer gives it to some parameters only."""
    settings = section.optimizer.settings
    if isinstance(settings, SGDSettings):
        momentum = {"momentum": settings.momentum, "nesterov": settings.nesterov}
        return torch.optim.SGD, {"lr": settings.learning_rate, **momentum}
    kind = torch.optim.Adam if isinstance(settings, AdamSettings) else torch.optim.AdamW
    betas = (settings.beta_1, settings.beta_2)
    return kind, {"lr": settings.learning_rate, "betas": betas, "eps": settings.epsilon, "fused": True}


def _multiplier(section: Train, steps: int, rewound: PruningSchedule | None, stage: str) -> Callable[[int], float]:
    warmup = round(section.warmup_ratio * steps)
    if rewound is None:
        return lambda step: learning_rate.linear(step, steps, warmup)
    learning_rate.must_stay_near_the_peak(steps, warmup, rewound.start, rewound.end, f"{stage}.pruning")
    return lambda step: learning_rate.rewinding(step, steps, warmup, rewound.start, rewound.end, rewound.frequency)


class CompressionTrainer(Trainer):
    """A Trainer with a loss of ours, examples in the order of a `Stream`, and a learning rate that is given by step."""

    def __init__(
        self,
        *args: Any,
        multiplier: Callable[[int], float],
        autocast: bool,
        hooks: Hooks,
        **kwargs: Any,
    ) -> None:
        self._multiplier, self._autocast, self._hooks = multiplier, autocast, hooks
        super().__init__(*args, **kwargs)
        self.add_callback(hooks)
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, *_: Any) -> Any:
        stream: Any = self.train_dataset
        return torch.utils.data.SequentialSampler(stream)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """LambdaLR over the multiplier: a function of the step alone, so that resuming is exact."""
        chosen = optimizer or self.optimizer
        assert chosen is not None
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, self._multiplier)
        return self.lr_scheduler

    # transformers writes some checkpoints under older tensor names (LayerNorm.gamma) and does not know them when it
    # resumes: those weights would silently stay as they were before. And it cannot name NNCF's. So both ways are ours.
    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_model(self._plain_model(), str(Path(output_dir) / _MODEL))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_model(self._plain_model(), str(Path(resume_from_checkpoint) / _MODEL), strict=True)

    def _plain_model(self) -> nn.Module:
        model: nn.Module = self.accelerator.unwrap_model(self.model)
        return model

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward; after the last pass of an optimizer step the gradients are those of all processes."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            distributed.add_up(p.grad for p in self._plain_model().parameters() if p.grad is not None)
        return loss

    def compute_loss(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> Tensor:
        """The total of the loss's terms; the terms are kept for the training curve."""
        assert self.compute_loss_func is not None
        with torch.autocast(device().type, torch.bfloat16, enabled=self._autocast):
            terms: LossTerms = self.compute_loss_func(self.accelerator.unwrap_model(model), inputs)
        self._hooks.add(terms)
        return terms.total
