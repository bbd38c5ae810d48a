"""Subclass of `transformers.Trainer`, its arguments, its optimizer, and the tools that it reports to."""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from toolkit.core import machine
from toolkit.core.artifacts import Tracking
from toolkit.data.batches import Batch
from toolkit.recipe import AdamSettings, SGDSettings, Train
from toolkit.training import distributed
from toolkit.training.distillation import LossTerms
from toolkit.training.hardware import device
from toolkit.training.hooks import Hooks

_MODEL = "model.safetensors"
_LOG_FOLDER = "TENSORBOARD_LOGGING_DIR"  # read by the Trainer's callback when it is created
_MOST_LOADERS = 8  # processes; each prefetches two batches


class CompressionTrainer(Trainer):
    """`transformers.Trainer` with a custom loss, a deterministic sampler and a step-based learning-rate schedule."""

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
        """Creates a LambdaLR from the multiplier, a function of the step alone, so that resuming is exact."""
        chosen = optimizer or self.optimizer
        assert chosen is not None
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, self._multiplier)
        return self.lr_scheduler

    # transformers saves some checkpoints under legacy tensor names (LayerNorm.gamma) that it does not recognise on
    # resume, so those weights would silently keep their initial values; NNCF's parameters cannot be mapped at all. We
    # therefore save and load the weights ourselves.
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
        """Runs a forward and backward pass; the last one of an optimizer step sums gradients over all processes."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            distributed.all_reduce_sum(p.grad for p in self._plain_model().parameters() if p.grad is not None)
        return loss

    def compute_loss(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> Tensor:
        """Returns the total loss; its terms are recorded for the training curve."""
        assert self.compute_loss_func is not None
        with torch.autocast(device().type, torch.bfloat16, enabled=self._autocast):
            terms: LossTerms = self.compute_loss_func(self.accelerator.unwrap_model(model), inputs)
        self._hooks.add(terms)
        return terms.total


def training_arguments(
    section: Train, steps: int, folder: Path, seed: int, tracking: Tracking | None = None
) -> TrainingArguments:
    """Returns the Trainer's arguments for a section of a recipe.

    Args:
        section: Section of the recipe.
        steps: Number of optimizer steps.
        folder: Folder of the checkpoints.
        seed: Seed of the training.
        tracking: Tool that records the training curve; None: none.
    """
    optimizer = section.optimizer.settings
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=section.batch_size // distributed.world_size(),
        gradient_accumulation_steps=section.gradient_accumulation_steps,
        learning_rate=optimizer.learning_rate,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=section.max_grad_norm,
        bf16=False,  # `compute_loss` applies autocast
        dataloader_num_workers=_loaders(),
        use_cpu=device().type == "cpu",
        seed=seed,
        save_strategy="no" if distributed.rank() else "steps",
        save_steps=section.checkpoint_every,
        save_total_limit=2,  # the previous one remains while a new one is written
        logging_strategy="no",
        disable_tqdm=True,
        report_to=reports_to(tracking),
        run_name=tracking.run if tracking else None,
        remove_unused_columns=False,
        dataloader_pin_memory=device().type == "cuda",
        accelerator_config={"non_blocking": device().type == "cuda"},
        logging_nan_inf_filter=False,  # it would wait for the GPU in each step
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one GPU per process; the Trainer would split each batch over all visible ones
    return arguments


def _loaders() -> int:
    """Number of data-loader processes; 0 on a CPU, where a batch takes no time compared with a step.

    A batch of 512 x 128 tokens takes about 0.15 s of a core, for which a fast GPU would wait. The cores are divided
    among the training processes; each keeps one core to launch work on its GPU.
    """
    if device().type != "cuda":
        return 0
    cores = machine.cores() // distributed.local_world_size()
    return max(1, min(_MOST_LOADERS, cores - 1))


def optimizer_class(section: Train) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Returns class and settings of the optimizer, without weight decay, which the Trainer sets per parameter group."""
    settings = section.optimizer.settings
    if isinstance(settings, SGDSettings):
        momentum = {"momentum": settings.momentum, "nesterov": settings.nesterov}
        return torch.optim.SGD, {"lr": settings.learning_rate, **momentum}
    kind = torch.optim.Adam if isinstance(settings, AdamSettings) else torch.optim.AdamW
    betas = (settings.beta_1, settings.beta_2)
    return kind, {"lr": settings.learning_rate, "betas": betas, "eps": settings.epsilon, "fused": True}


def reports_to(tracking: Tracking | None) -> list[str]:
    """Returns `report_to` of the Trainer's arguments: the tool, in the process that writes files."""
    return [tracking.tool] if tracking is not None and distributed.rank() == 0 else []


@contextmanager
def tracked(tracking: Tracking | None) -> Iterator[None]:
    """Context manager in which a Trainer is created and trains: one run of the tool, which ends with it."""
    tools, before = reports_to(tracking), os.environ.get(_LOG_FOLDER)
    if tracking is not None:
        os.environ[_LOG_FOLDER] = str(tracking.folder)
    # The callback of W&B leaves its run open, and the next stage would continue it.
    finish = importlib.import_module("wandb").finish if "wandb" in tools else lambda **_: None
    try:
        yield
    except BaseException:
        with suppress(Exception):  # why training failed is what counts
            finish(exit_code=1)
        raise
    else:
        finish()
    finally:
        os.environ.pop(_LOG_FOLDER, None)
        if before is not None:
            os.environ[_LOG_FOLDER] = before
