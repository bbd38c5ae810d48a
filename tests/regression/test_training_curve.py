"""The student's training against a loop that is written out here from the paper: the same loss at every step."""

import math

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional as F

from toolkit.core.artifacts import Context
from toolkit.data.corpus import load_corpus
from toolkit.models.load import load_masked_lm, load_tokenizer, prunable_matrices
from toolkit.models.mlm_heads import mlm_head
from toolkit.recipe import Corpus, KDLossSettings, Pruning, Train
from toolkit.sparsity.factory import make_sparsifier
from toolkit.training import vocabulary_loss
from toolkit.training.datasets import mlm_data
from toolkit.training.distillation import MlmLoss, Teacher
from toolkit.training.loop import fit, seed_everything

STEPS, WARMUP, START, END, FREQUENCY, TARGET = 24, 2, 4, 16, 4, 0.8
RATE, DECAY, TEMPERATURE, WEIGHTS = 2e-3, 0.01, 2.0, (0.4, 0.6)


@pytest.fixture
def start(tiny_bert, tiny_text, tmp_path):
    """Makes (a student, its teacher, tokenizer, text); no dropout, so that order of random numbers plays no part."""
    tokenizer = load_tokenizer(tiny_bert)
    section = Corpus(files=(str(tiny_text),), max_seq_length=40, pack=False)
    text = load_corpus(section, {}, tokenizer, tmp_path / "cache").train

    def make():
        student, teacher = (load_masked_lm(tiny_bert) for _ in range(2))
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        with torch.random.fork_rng():
            torch.manual_seed(7)
            for parameter in teacher.parameters():
                parameter.data += 0.03 * torch.randn_like(parameter)
        return student, teacher.eval().requires_grad_(False), tokenizer, text

    return make


def rate(step: int) -> float:
    """Warm-up; linear decay; in the pruning phase back to its value at the phase's start at every pruning."""
    if step < WARMUP:
        return RATE * step / WARMUP
    whole = STEPS - (END - START)  # the pruning phase does not count
    if step < START:
        spent = step
    elif step < END:
        spent = START + (step - START) % FREQUENCY
    else:
        spent = step - (END - START)
    return RATE * (whole - spent) / (whole - WARMUP)


def written_out(student, teacher, batches, positions) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Loss of every step, and the masks at the end."""
    matrices = {name: module.weight for name, module in prunable_matrices(student).items()}
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in matrices.items()}
    kept_small = [p for n, p in student.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    others = [p for n, p in student.named_parameters() if not (n.endswith("bias") or "LayerNorm" in n)]
    groups = [{"params": others, "weight_decay": DECAY}, {"params": kept_small, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-6)
    curve = []
    student.train()
    for step, parts in enumerate(batches):
        if START <= step <= END and (step - START) % FREQUENCY == 0:
            sparsity = TARGET * (1 - (1 - (step - START) / (END - START)) ** 3)
            for name, weight in matrices.items():
                gone = math.floor(sparsity * weight.numel())
                order = weight.detach().abs().flatten().argsort(stable=True)
                masks[name] = torch.ones(weight.numel(), dtype=torch.bool)
                masks[name][order[:gone]] = False
                masks[name] = masks[name].view_as(weight)
                weight.data[~masks[name]] = 0.0
        # All of the step's forward passes as one: plain means over its masked, or attended, tokens.
        ours, theirs, labels, attended = [], [], [], []
        for batch in parts:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            ours.append(student(**inputs).logits.flatten(0, 1))
            theirs.append(teacher(**inputs).logits.flatten(0, 1))
            labels.append(batch["labels"].flatten())
            attended.append(batch["attention_mask"].flatten().bool())
        logits, target, right, real = (torch.cat(x) for x in (ours, theirs, labels, attended))
        where = right != -100 if positions == "masked" else real
        task = F.cross_entropy(logits, right)
        student_log, teacher_log = (F.log_softmax(x[where] / TEMPERATURE, dim=-1) for x in (logits, target))
        kd = TEMPERATURE**2 * (teacher_log.exp() * (teacher_log - student_log)).sum(-1).mean()
        total = WEIGHTS[0] * task + WEIGHTS[1] * kd
        total.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        optimizer.zero_grad()
        for name, weight in matrices.items():
            weight.data[~masks[name]] = 0.0
        curve.append({"loss": float(total.detach()), "task_loss": float(task.detach()), "kd_loss": float(kd.detach())})
    return curve, masks


@pytest.mark.parametrize(
    ("positions", "accumulation", "compiled"),
    [("masked", 1, False), ("masked", 2, False), ("all", 1, False), ("all", 2, False), ("masked", 1, True)],
)
def test_the_students_losses_are_those_of_the_loop(start, tmp_path, monkeypatch, positions, accumulation, compiled):
    monkeypatch.setattr(vocabulary_loss, "rows_per_chunk", lambda width, kind: 19)  # several chunks in a tiny batch
    student, teacher, tokenizer, text = start()
    train = Train.model_validate(
        {
            "steps": STEPS,
            "batch_size": 8 // accumulation,
            "gradient_accumulation_steps": accumulation,
            "optimizer": {"AdamW": {"learning_rate": RATE, "weight_decay": DECAY, "epsilon": 1e-6}},
            "warmup_ratio": WARMUP / STEPS,
            "log_every": 1,
            "compile": compiled,
        }
    )
    compression = {"target_sparsity": TARGET, "start_step": START, "end_step": END}
    approach = {"weight_compression": compression | {"update_frequency_on_step": FREQUENCY}}
    pruning = Pruning.model_validate({"backend": "magnitude", "approach": approach})
    sparsifier = make_sparsifier(pruning, prunable_matrices(student), 0)
    settings = KDLossSettings(temperature=TEMPERATURE, loss_weights=WEIGHTS)
    section = Corpus(files=("any",), mlm_probability=0.2)
    data = mlm_data(text, tokenizer, section, positions, train, seed=3)
    loss = MlmLoss(mlm_head, Teacher(teacher), settings, positions)
    context = Context(tmp_path, tmp_path / "work", 0)
    graphs = counters["stats"]["unique_graphs"]
    fitted = fit(student, data, train, loss, context, sparsifier=sparsifier)
    assert (counters["stats"]["unique_graphs"] > graphs) == compiled

    other, teacher, *_ = start()
    size = train.batch_size
    passes = [
        data.collate([data.stream[k] for k in range(n * size, n * size + size)]) for n in range(STEPS * accumulation)
    ]
    batches = [passes[step * accumulation : (step + 1) * accumulation] for step in range(STEPS)]
    curve, masks = written_out(other, teacher, batches, positions)
    assert len(fitted.history) == STEPS
    for step, (found, expected) in enumerate(zip(fitted.history, curve, strict=True)):
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=2e-5), f"{name} at step {step}"
    assert curve[-1]["loss"] < 0.95 * curve[1]["loss"], "it learns"
    for name, mask in masks.items():
        assert torch.equal(sparsifier.mask.tensors[name], mask), name


def test_recomputed_layers_give_the_same_weights_bit_by_bit_with_dropout(tiny_bert, tiny_text, tmp_path):
    tokenizer = load_tokenizer(tiny_bert)
    section = Corpus(files=(str(tiny_text),), max_seq_length=40)
    text = load_corpus(section, {}, tokenizer, tmp_path / "cache").train
    ends = []
    for recompute in (False, True):
        seed_everything(3)
        student, teacher = (load_masked_lm(tiny_bert) for _ in range(2))
        runs = []
        for layer in student.base_model.encoder.layer:
            layer.attention.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        train = Train(steps=3, batch_size=4, recompute=recompute)
        data = mlm_data(text, tokenizer, section, "masked", train, seed=3)
        loss = MlmLoss(mlm_head, Teacher(teacher), KDLossSettings())
        folder = tmp_path / str(recompute)
        fitted = fit(student, data, train, loss, Context(folder, folder / "work", 0))
        assert len(runs) == 3 * len(student.base_model.encoder.layer) * (1 + recompute)
        assert not student.is_gradient_checkpointing
        ends.append((fitted.history, student.state_dict()))
    (curve, weights), (other_curve, other_weights) = ends
    assert curve == other_curve
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
