"""The losses against their formulas, and gradients that do not depend on how a step is cut into forward passes."""

import math

import pytest
import torch
from torch import nn

from toolkit import corpus, models, tasks, training
from toolkit.artifacts import Context
from toolkit.distillation import MlmLoss, TaskLoss, Teacher, kl_divergence
from toolkit.recipe import Corpus, KDLossSettings, Task, Train


def test_kl_is_the_sum_over_classes_times_t_squared_averaged_over_examples():
    student, teacher, t = [[1.0, -2.0, 0.5], [0.0, 0.0, 3.0]], [[0.2, 0.1, -1.0], [2.0, -1.0, 0.0]], 3.0

    def softmax(row):
        powers = [math.exp(x / t) for x in row]
        return [p / sum(powers) for p in powers]

    expected = 0.0
    for s, r in zip(student, teacher, strict=True):
        expected += sum(p * math.log(p / q) for p, q in zip(softmax(r), softmax(s), strict=True))
    found = kl_divergence(torch.tensor(student), torch.tensor(teacher), t)
    assert float(found) == pytest.approx(t * t * expected / 2, rel=1e-5)


def test_kl_of_equal_logits_is_zero_and_so_is_its_gradient():
    logits = torch.randn(4, 5, requires_grad=True)
    loss = kl_divergence(logits, logits.detach().clone(), 2.0)
    loss.backward()
    assert float(loss) == pytest.approx(0.0, abs=1e-6)
    assert logits.grad.abs().max() < 1e-6


def test_the_teacher_is_frozen_in_eval_mode_and_no_child_of_anything():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    teacher = Teacher(model)
    assert not isinstance(teacher, nn.Module)
    assert not model.training
    assert not teacher(lambda m: m(torch.ones(1, 3))).requires_grad


@pytest.fixture
def tiny(tiny_bert, tiny_task_files, tiny_text, tmp_path):
    """Masked language model, tokenizer, text and task of the tiny BERT."""
    tokenizer = models.load_tokenizer(tiny_bert)
    text = corpus.load_corpus(Corpus(files=(str(tiny_text),), max_seq_length=100, pack=False), {}, tokenizer, tmp_path)
    task = Task(train=str(tiny_task_files.train), dev=str(tiny_task_files.dev), max_seq_length=16)
    return tiny_bert, tokenizer, text, tasks.load_task("toy", task, tokenizer)


@pytest.mark.parametrize("positions", ["masked", "all"])
def test_mlm_loss_equals_the_plain_formula_over_full_logits(tiny, positions):
    folder, tokenizer, text, _ = tiny
    student, teacher = models.load_masked_lm(folder).eval(), models.load_masked_lm(folder)
    with torch.no_grad():
        teacher.cls.predictions.bias += torch.randn_like(teacher.cls.predictions.bias)
    data = training.mlm_data(text.train, tokenizer, 0.3, positions, Train(steps=1, batch_size=6), seed=3)
    batch = data.collate([data.stream[k] for k in range(6)])
    settings = KDLossSettings(temperature=2.0, loss_weights=(0.3, 0.7))
    terms = MlmLoss(models.mlm_head, Teacher(teacher), settings, positions)(student, batch)

    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    ours, theirs = student(**inputs).logits, teacher(**inputs).logits
    masked, attended = batch["labels"] != -100, batch["attention_mask"].bool()
    where = masked if positions == "masked" else attended
    ce = nn.functional.cross_entropy(ours[masked], batch["labels"][masked])
    kl = (theirs / 2).softmax(-1) * ((theirs / 2).log_softmax(-1) - (ours / 2).log_softmax(-1))
    expected = 0.3 * ce + 0.7 * 4 * kl.sum(-1)[where].mean()
    assert float(terms.total) == pytest.approx(float(expected), rel=1e-4)


def gradients(model, loss, data, forward_passes):
    """Gradients of one optimizer step, its examples cut into this many forward passes."""
    model.zero_grad()
    size = len(data.stream) // forward_passes
    for part in range(forward_passes):
        loss(model, data.collate([data.stream[k] for k in range(part * size, (part + 1) * size)])).total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_accumulated_gradients_equal_those_of_one_large_batch_for_mlm(tiny):
    folder, tokenizer, text, _ = tiny
    model, teacher = models.load_masked_lm(folder).eval(), Teacher(models.load_masked_lm(folder))
    loss = MlmLoss(models.mlm_head, teacher, KDLossSettings(), "all")
    found = []
    for passes in (1, 4):
        section = Train(steps=1, batch_size=8 // passes, gradient_accumulation_steps=passes)
        data = training.mlm_data(text.train, tokenizer, 0.3, "all", section, seed=5)
        data.stream.index = lambda k: k  # the same eight examples in both cuts
        found.append(gradients(model, loss, data, passes))
    assert text.train.lengths[:8].std() > 0, "sequences of one length would hide a wrong normalisation"
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-7)


def test_accumulated_gradients_equal_those_of_one_large_batch_in_the_trainer_itself(tiny, tmp_path):
    """Plain SGD would show the gradient; with AdamW the weights after a few clipped steps do, up to rounding."""
    folder, tokenizer, _, task = tiny
    weights = []
    for passes in (1, 4):
        training.seed_everything(0)
        model = models.load_classifier(folder, task.labels)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        section = Train.model_validate(
            {
                "steps": 3,
                "batch_size": 16 // passes,
                "gradient_accumulation_steps": passes,
                "optimizer": {"AdamW": {"learning_rate": 1e-3, "epsilon": 1.0}},
                "warmup_ratio": 0.0,
            }
        )
        data = training.task_data(task.train, tokenizer.pad_token_id, section, seed=1)
        data.stream.index = lambda k: k
        work = tmp_path / str(passes)
        training.fit(model, data, section, TaskLoss(), Context(work, work, 0))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in models.load_classifier(folder, task.labels).bert.parameters()])
    moved = (weights[0][: len(start)] - start).abs().max()
    assert moved > 1e-5
    assert (weights[0] - weights[1]).abs().max() < 1e-2 * moved


def test_a_loss_of_weight_zero_is_not_computed_into_the_gradient(tiny):
    folder, tokenizer, _, task = tiny
    model = models.load_classifier(folder, task.labels).eval()
    teacher = Teacher(models.load_classifier(folder, task.labels))
    teacher.model.load_state_dict(model.state_dict())
    data = training.task_data(task.train, tokenizer.pad_token_id, Train(steps=1, batch_size=8), seed=1)
    terms = TaskLoss(teacher, KDLossSettings(loss_weights=(0.0, 1.0)))(model, data.collate([data.stream[0]]))
    assert float(terms.total) == pytest.approx(0.0, abs=1e-6)
    assert float(terms.task) > 0.01
