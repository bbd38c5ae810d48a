"""The steps that `training_step.py` and `training_peer.py` time: the toolkit's own, and plain ones written out here."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MASKED = 0.15


class Bench:
    """The models, data and steps of one process; a step is made when it is first asked for."""

    def __init__(self, model: str, batch: int, length: int, task_length: int, threads: int, keep: bool = True) -> None:
        import torch

        from toolkit.models.sources import fetch_model
        from toolkit.training.hardware import device, keep_freed_memory

        if keep:
            keep_freed_memory()  # as training does
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.folder, self.device = Path(fetch_model(model)), device()
        self.batch, self.length, self.task_length = batch, length, task_length

    def masked_lm(self) -> Any:
        """A masked language model in training mode."""
        from toolkit.models.load import load_masked_lm

        return load_masked_lm(self.folder).to(self.device).train()

    def classifier(self) -> Any:
        """A classifier in training mode."""
        from toolkit.models.load import load_task_model

        return load_task_model(self.folder, "classification", ("a", "b"), fitted=False).to(self.device).train()

    def words(self, model: Any) -> dict[str, Any]:
        """Random words, 15 % of each sequence to be guessed; sequences of one length."""
        import torch

        from toolkit.data.masking import masked_count

        ids = torch.randint(1000, model.config.vocab_size, (self.batch, self.length))
        labels, guessed = torch.full_like(ids, -100), masked_count(self.length, MASKED)
        for row in range(self.batch):
            where = 1 + torch.randperm(self.length - 2)[:guessed]
            labels[row, where] = ids[row, where]
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        return {k: v.to(self.device) for k, v in batch.items()} | {
            "items": float(self.batch * guessed),
            "kd_items": float(ids.numel()),
            "examples": float(self.batch),
        }

    def examples(self, model: Any) -> dict[str, Any]:
        """Random examples of a task with two classes."""
        import torch

        ids = torch.randint(1000, model.config.vocab_size, (self.batch, self.task_length))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(2, (self.batch,))}
        counts = {"items": float(self.batch), "examples": float(self.batch)}
        return {k: v.to(self.device) for k, v in batch.items()} | counts

    def step(self, model: Any, loss: Callable[[], Any], sparsifier: Any = None) -> Callable[[], None]:
        """One optimizer step of a model."""
        import torch

        from toolkit.recipe import Train
        from toolkit.training import distributed
        from toolkit.training.trainer import optimizer_class

        kind, settings = optimizer_class(Train(steps=1))
        optimizer = kind(model.parameters(), **settings)

        def run() -> None:
            loss().backward()
            distributed.all_reduce_sum(p.grad for p in model.parameters() if p.grad is not None)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if sparsifier is not None:
                sparsifier.after_optimizer_step()
            optimizer.zero_grad()

        return run

    def plain_dense(self) -> Callable[[], None]:
        """transformers' own Trainer, optimizer and loss: logits at every position."""
        from transformers import Trainer, TrainingArguments

        model = self.masked_lm()
        batch = self.words(model)
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "labels")}
        arguments = TrainingArguments(
            output_dir=tempfile.gettempdir(), use_cpu=self.device.type == "cpu", report_to=[], disable_tqdm=True
        )
        trainer = Trainer(model=model, args=arguments)
        trainer.create_optimizer_and_scheduler(10**6)
        trainer.current_gradient_accumulation_steps = 1

        def run() -> None:
            trainer.training_step(model, inputs)
            trainer.accelerator.clip_grad_norm_(model.parameters(), 1.0)
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
            model.zero_grad()

        return run

    def dense(self) -> Callable[[], None]:
        """Masked-language-model training without teacher and pruning: the `teacher` stage."""
        from toolkit.models.mlm_heads import mlm_head
        from toolkit.training.distillation import MlmLoss

        model = self.masked_lm()
        batch, loss = self.words(model), MlmLoss(mlm_head)
        return self.step(model, lambda: loss(model, batch).total)

    def teacher(self) -> Callable[[], None]:
        """A teacher's forward pass, its head at the masked positions."""
        import torch

        from toolkit.models.mlm_heads import mlm_head
        from toolkit.training.distillation import MlmLoss

        model = self.masked_lm().eval()
        batch, loss = self.words(model), MlmLoss(mlm_head)

        @torch.no_grad()
        def run() -> None:
            loss.logits(model, batch)

        return run

    def student(self, backend: str, positions: Any, recompute: bool = False) -> Callable[[], None]:
        """The `student` stage: gradual pruning and distillation."""
        from toolkit.data import masking
        from toolkit.data.batches import KD_POSITIONS
        from toolkit.models.mlm_heads import mlm_head
        from toolkit.recipe import KDLossSettings, Sample
        from toolkit.training.distillation import MlmLoss, Teacher
        from toolkit.training.loop import recomputed

        model, teacher = self.masked_lm(), Teacher(self.masked_lm(), self.device)
        batch = self.words(model)
        if isinstance(positions, Sample):
            import numpy as np
            import torch

            draw = functools.partial(masking.sample_positions, rng=np.random.default_rng(0))
            count = round(positions.sample * self.length)
            chosen = [torch.from_numpy(draw(row.cpu().numpy(), count=count)) for row in batch["labels"]]
            batch[KD_POSITIONS] = torch.stack(chosen).to(self.device)
        loss = MlmLoss(mlm_head, teacher, KDLossSettings(), positions)
        run = self.step(model, lambda: loss(model, batch).total, self.sparsifier(model, backend))

        def run_recomputed() -> None:
            with recomputed(model):
                run()

        return run_recomputed if recompute else run

    def sparsifier(self, model: Any, backend: str) -> Any:
        """Half way through the pruning: every step is an update, so that one can be timed."""
        from toolkit.models.load import prunable_matrices
        from toolkit.recipe import Pruning
        from toolkit.sparsity.factory import make_sparsifier

        compression = {"target_sparsity": 0.9, "start_step": 0, "end_step": 20, "update_frequency_on_step": 1}
        pruning = Pruning.model_validate({"backend": backend, "approach": {"weight_compression": compression}})
        sparsifier = make_sparsifier(pruning, prunable_matrices(model), 0)
        sparsifier.before_step(10)
        return sparsifier

    def plain_student(self) -> Callable[[], None]:
        """The paper's loss over every position, from full logits of both models; masks multiplied in."""
        import torch
        from torch.nn import functional as F

        from toolkit.models.load import prunable_matrices

        model, teacher = self.masked_lm(), self.masked_lm().eval()
        batch = self.words(model)
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        matrices = [module.weight for module in prunable_matrices(model).values()]
        masks = [(weight.abs() > weight.abs().median()).float() for weight in matrices]

        def loss() -> Any:
            ours = model(**inputs).logits.flatten(0, 1)
            with torch.no_grad():
                theirs = teacher(**inputs).logits.flatten(0, 1)
            task = F.cross_entropy(ours, batch["labels"].flatten())
            student, target = F.log_softmax(ours / 2, dim=-1), F.softmax(theirs / 2, dim=-1)
            return 0.5 * task + 0.5 * 4 * F.kl_div(student, target, reduction="batchmean")

        class Masks:
            @staticmethod
            def after_optimizer_step() -> None:
                with torch.no_grad():
                    for weight, mask in zip(matrices, masks, strict=True):
                        weight.mul_(mask)

        return self.step(model, loss, Masks)

    def fine_tuning(self) -> Callable[[], None]:
        """A dense model on a task's labels: the `task_teacher` stage."""
        from toolkit.training.distillation import TaskLoss

        model = self.classifier()
        batch, loss = self.examples(model), TaskLoss("classification")
        return self.step(model, lambda: loss(model, batch).total)

    def transfer(self, cached: bool, quantized: bool = False, fast: bool = True) -> Callable[[], None]:
        """The `transfer` stage, or with fake quantization `quantize`: pattern locked, taught.

        `fast`: fake quantization by the toolkit's extension, as in the stage; else by NNCF's own functions.
        """
        import torch

        from toolkit.data.batches import TEACHER_LOGITS
        from toolkit.models.load import prunable_matrices
        from toolkit.models.task_heads import pad_logits
        from toolkit.recipe import KDLossSettings, Quantization
        from toolkit.sparsity.mask import SparsityMask
        from toolkit.sparsity.pruners import PatternLock
        from toolkit.training.distillation import TaskLoss, Teacher

        model = self.classifier()
        batch = self.examples(model)
        weights = {name: module.weight for name, module in prunable_matrices(model).items()}
        mask = SparsityMask({name: w.abs() > w.abs().quantile(0.9) for name, w in weights.items()})
        if quantized:
            from toolkit.data.batches import model_inputs
            from toolkit.quantization import nncf

            sample = {k: v[:1].cpu() for k, v in model_inputs(batch).items()}
            model = nncf.quantized(model.cpu(), [sample], Quantization()).to(self.device).train()
        lock = PatternLock(mask)
        lock.attach(prunable_matrices(model))
        teacher = None if cached else Teacher(self.classifier(), self.device)
        loss = TaskLoss("classification", teacher, KDLossSettings(loss_weights=(0.0, 1.0)))
        if not cached:
            return self.step(model, lambda: loss(model, batch).total, lock)
        answers = self.kept_logits()

        def of_batch() -> Any:
            some = [answers.of(int(i)) for i in torch.randint(len(answers.rows), (self.batch,))]
            return loss(model, batch | {TEACHER_LOGITS: pad_logits(some, per_token=False).to(self.device)}).total

        run = self.step(model, of_batch, lock)
        if not (quantized and fast):
            return run
        from toolkit.quantization.fake_quantize import fast_fake_quantization

        def run_fast() -> None:
            with fast_fake_quantization() as problem:
                assert not problem, problem
                run()

        return run_fast

    def kept_logits(self) -> Any:
        """Random logits of 100,000 examples where a stage keeps a teacher's: in a file, mapped."""
        import numpy as np

        from toolkit.training.teacher_logits import TeacherLogits

        with tempfile.TemporaryDirectory() as folder:  # the mapping outlives the file's name
            path = Path(folder) / "logits.npy"
            np.save(path, np.random.default_rng(0).normal(size=(10**5, 2)).astype(np.float32))
            return TeacherLogits(np.load(path, mmap_mode="r"), None)

    def mask_update(self, backend: str) -> Callable[[], None]:
        """All matrices pruned a little further."""
        sparsifier = self.sparsifier(self.masked_lm(), backend)
        steps = iter(range(11, 10**6))
        return lambda: sparsifier.before_step(next(steps))


def kinds() -> dict[str, Callable[[Bench], Callable[[], None]]]:
    """Name of a row -> what makes its step."""
    from toolkit.recipe import Sample

    return {
        "plain dense Trainer step, head everywhere": Bench.plain_dense,
        "dense MLM, head at masked": Bench.dense,
        "teacher forward, head at masked": Bench.teacher,
        "student, masked, inc": lambda b: b.student("inc", "masked"),
        "student, masked, nncf": lambda b: b.student("nncf", "masked"),
        "student, sample 0.3, inc": lambda b: b.student("inc", Sample(sample=0.3)),
        "student, all, inc": lambda b: b.student("inc", "all"),
        "student, all, inc, recompute": lambda b: b.student("inc", "all", recompute=True),
        "plain reference, all": Bench.plain_student,
        "plain reference, all, freed memory kept": Bench.plain_student,
        "dense fine-tuning": Bench.fine_tuning,
        "transfer, teacher asked": lambda b: b.transfer(cached=False),
        "transfer, kept logits": lambda b: b.transfer(cached=True),
        "QAT, kept logits": lambda b: b.transfer(cached=True, quantized=True),
        "QAT, kept logits, NNCF's functions": lambda b: b.transfer(cached=True, quantized=True, fast=False),
        "mask update, inc": lambda b: b.mask_update("inc"),
        "mask update, nncf": lambda b: b.mask_update("nncf"),
    }
