"""The one training loop: transformers' Trainer with a loss of ours, pruning hooks and an exact resume."""

import json
import math
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from toolkit import learning_rate
from toolkit.artifacts import Context
from toolkit.corpus import Sequences
from toolkit.distillation import Batch, LossTerms
from toolkit.masking import mask_tokens, masked_count, pad_masked
from toolkit.pairs import PairSequences
from toolkit.recipe import AdamSettings, Corpus, SGDSettings, Train
from toolkit.sparsity.schedule import PruningSchedule
from toolkit.sparsity.sparsifier import Sparsifier
from toolkit.stream import Stream
from toolkit.tasks import Split, pad

_WHOLE = "whole.json"  # written last into a checkpoint: one without it was cut off
_MODEL = "model.safetensors"
_SPARSIFIER = "sparsifier.safetensors"


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


def task_data(examples: Split, pad_id: int, section: Train, seed: int) -> TrainingData:
    """Labelled examples; the losses are averaged over the examples of an optimizer step."""
    steps = steps_of(section, len(examples))
    stream = _stream(examples.lengths, lambda i, _: examples[i], section, steps, seed)
    items = float(section.batch_size * section.gradient_accumulation_steps)

    def collate(features: list[dict[str, Any]]) -> Batch:
        plain = [{k: v for k, v in f.items() if k != "step"} for f in features]
        return pad(plain, pad_id) | {"items": items, "examples": items}

    return TrainingData(stream, collate, steps)


def mlm_data(
    sequences: Sequences | PairSequences,
    tokenizer: Any,
    corpus: Corpus,
    positions: str,
    section: Train,
    seed: int,
) -> TrainingData:
    """Masked sequences; the label loss is averaged over an optimizer step's masked tokens, KL over its `positions`."""
    steps = steps_of(section, len(sequences))
    specials, probability, whole_words = sequences.specials, corpus.mlm_probability, corpus.whole_word_masking

    def item(index: int, rng: np.random.Generator) -> dict[str, Any]:
        example = sequences.example(index)
        ids = example["input_ids"]
        return example | mask_tokens(ids, rng, tokenizer, probability, specials=specials, whole_words=whole_words)

    stream = _stream(sequences.lengths, item, section, steps, seed)

    def collate(features: list[dict[str, Any]]) -> Batch:
        lengths = stream.step_lengths(features[0]["step"])
        masked = float(sum(masked_count(int(n), probability, specials) for n in lengths))
        kd_items = masked if positions == "masked" else float(lengths.sum())
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
    """What a training run leaves behind besides the weights."""

    history: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds_per_step: float = 0.0

    def metrics(self) -> dict[str, float]:
        """For the manifest."""
        return {"steps": self.steps, "seconds_per_step": self.seconds_per_step}


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

    Args:
        model: Anything that `loss` can be computed of.
        data: The stream of examples.
        section: Steps, batch, optimizer, checkpoints.
        loss: (model, batch) -> terms; `terms.total` is differentiated.
        context: Where checkpoints and progress go.
        sparsifier: Attached already; prunes before steps, and puts zeros back after them.
        rewound: The pruning schedule along which the learning rate is rewound; None: plain linear decay.
    """
    checkpoints = context.work / "checkpoints"
    hooks = _Hooks(sparsifier, context, section.log_every)
    resume = _last_whole(checkpoints, context)
    if resume is not None:
        hooks.load(resume)
    trainer = CompressionTrainer(
        model=model,
        args=_arguments(section, data.steps, checkpoints, context.seed),
        train_dataset=data.stream,
        data_collator=data.collate,
        hooks=hooks,
        loss=loss,
        multiplier=_multiplier(section, data.steps, rewound),
        autocast=section.precision == "bf16",
        optimizer_cls_and_kwargs=optimizer_class(section),
    )
    context.progress.start(data.steps)
    started, first = time.monotonic(), hooks.last_step
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    done = max(1, data.steps - first)
    return Fitted(hooks.history, data.steps, (time.monotonic() - started) / done)


def _arguments(section: Train, steps: int, folder: Path, seed: int) -> TrainingArguments:
    optimizer = section.optimizer.settings
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=section.batch_size,
        gradient_accumulation_steps=section.gradient_accumulation_steps,
        learning_rate=optimizer.learning_rate,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=section.max_grad_norm,
        bf16=False,  # autocast is ours, around the loss alone
        use_cpu=device().type == "cpu",
        seed=seed,
        save_strategy="steps",
        save_steps=section.checkpoint_every,
        save_total_limit=2,  # the older one is there while the newer one is being written
        logging_strategy="no",
        disable_tqdm=True,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=device().type == "cuda",
    )


def optimizer_class(section: Train) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Class and settings; weight decay is not in them: the Trainer gives it to some parameters only."""
    settings = section.optimizer.settings
    if isinstance(settings, SGDSettings):
        momentum = {"momentum": settings.momentum, "nesterov": settings.nesterov}
        return torch.optim.SGD, {"lr": settings.learning_rate, **momentum}
    kind = torch.optim.Adam if isinstance(settings, AdamSettings) else torch.optim.AdamW
    betas = (settings.beta_1, settings.beta_2)
    return kind, {"lr": settings.learning_rate, "betas": betas, "eps": settings.epsilon, "fused": True}


def _multiplier(section: Train, steps: int, rewound: PruningSchedule | None) -> Callable[[int], float]:
    warmup = round(section.warmup_ratio * steps)
    if rewound is None:
        return lambda step: learning_rate.linear(step, steps, warmup)
    return lambda step: learning_rate.rewinding(step, steps, warmup, rewound.start, rewound.end, rewound.frequency)


class CompressionTrainer(Trainer):
    """A Trainer with a loss of ours, examples in the order of a `Stream`, and a learning rate that is given by step."""

    def __init__(
        self,
        *args: Any,
        loss: Callable[[Any, Batch], LossTerms],
        multiplier: Callable[[int], float],
        autocast: bool,
        hooks: "_Hooks",
        **kwargs: Any,
    ) -> None:
        self._loss, self._multiplier, self._autocast, self._hooks = loss, multiplier, autocast, hooks
        super().__init__(*args, **kwargs)
        self.add_callback(hooks)
        # Our losses are normalised by the whole optimizer step already; the Trainer must not divide them again.
        self.model_accepts_loss_kwargs = True
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

    def compute_loss(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> Tensor:
        """The total of the loss's terms; the terms are kept for the training curve."""
        with torch.autocast(device().type, torch.bfloat16, enabled=self._autocast):
            terms = self._loss(self.accelerator.unwrap_model(model), inputs)
        self._hooks.add(terms)
        return terms.total


class _Hooks(TrainerCallback):
    """Pruning around the optimizer step, the training curve, and what a checkpoint holds besides the Trainer's own."""

    def __init__(self, sparsifier: Sparsifier | None, context: Context, log_every: int) -> None:
        self.history: list[dict[str, float]] = []
        self.last_step = 0
        self._sparsifier, self._context, self._log_every = sparsifier, context, log_every
        self._sums: dict[str, Tensor] = {}
        self._steps_summed = 0

    def add(self, terms: LossTerms) -> None:
        """Adds a forward pass to the sums behind the next point of the curve; no value leaves the device here."""
        for name, term in (("loss", terms.total), ("task_loss", terms.task), ("kd_loss", terms.kd)):
            if term is not None:
                self._sums[name] = self._sums.get(name, torch.zeros((), device=term.device)) + term.detach()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._sparsifier is not None:
            self._sparsifier.before_step(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._sparsifier is not None:
            self._sparsifier.before_optimizer_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._sparsifier is not None:
            self._sparsifier.after_optimizer_step()

    def on_step_end(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        self._steps_summed += 1
        step = state.global_step
        if step % self._log_every and step != state.max_steps:
            figures = {k: v for k, v in (self.history[-1] if self.history else {}).items() if k != "step"}
            self._context.progress.update(step, **figures)
            return
        row = {name: float(total) / self._steps_summed for name, total in self._sums.items()}
        row["learning_rate"] = float(lr_scheduler.get_last_lr()[0])
        if self._sparsifier is not None:
            row["sparsity"] = self._sparsifier.mask.sparsity()
        self._sums, self._steps_summed = {}, 0
        self.history.append({"step": float(step), **row})
        self._context.progress.update(step, **row)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._sparsifier is not None:
            save_file({k: v.contiguous() for k, v in self._sparsifier.state_dict().items()}, folder / _SPARSIFIER)
        sums = {name: float(total) for name, total in self._sums.items()}
        whole = {"step": state.global_step, "history": self.history, "sums": sums, "summed": self._steps_summed}
        (folder / _WHOLE).write_text(json.dumps(whole))

    def load(self, folder: Path) -> None:
        """Takes up where `on_save` wrote."""
        whole = json.loads((folder / _WHOLE).read_text())
        self.history, self.last_step, self._steps_summed = whole["history"], whole["step"], whole["summed"]
        self._sums = {name: torch.tensor(total) for name, total in whole["sums"].items()}
        if self._sparsifier is not None:
            self._sparsifier.load_state_dict(load_file(folder / _SPARSIFIER))


def _last_whole(checkpoints: Path, context: Context) -> Path | None:
    """The newest checkpoint that was written to its end; those that were cut off are thrown away."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True)
    for folder in found:
        if (folder / _WHOLE).is_file():
            context.progress.say(f"goes on from step {folder.name.split('-')[1]}")
            return folder
        context.progress.say(f"{folder.name} was cut off; going back to the one before it")
        shutil.rmtree(folder)
    return None
