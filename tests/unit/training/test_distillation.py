"""The losses against their formulas, and gradients that do not depend on how a step is cut into forward passes."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from tests.helpers.models import load_classifier
from tests.helpers.tags import tagged_task
from toolkit.core.artifacts import Context
from toolkit.core.errors import UserError
from toolkit.data.batches import pad
from toolkit.data.corpus import load_corpus
from toolkit.data.question_answering import Question, windows_of
from toolkit.data.tasks import load_task
from toolkit.models.load import load_masked_lm, load_task_model, load_tokenizer
from toolkit.models.mlm_heads import mlm_head
from toolkit.recipe import AnswerWindows, Corpus, Criterion, KDLossSettings, Task, Train
from toolkit.training.datasets import mlm_data, task_data
from toolkit.training.distillation import MlmLoss, TaskLoss, Teacher, kl_divergence, mlm_loss, task_loss
from toolkit.training.loop import fit, seed_everything
from toolkit.training.trainer import CompressionTrainer


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


MASKED = Corpus(files=("any",), mlm_probability=0.3)


@pytest.fixture
def tiny(tiny_bert, tiny_task_files, tiny_text, tmp_path):
    """Masked language model, tokenizer, text and task of the tiny BERT."""
    tokenizer = load_tokenizer(tiny_bert)
    text = load_corpus(Corpus(files=(str(tiny_text),), max_seq_length=100, pack=False), {}, tokenizer, tmp_path)
    task = Task(train=str(tiny_task_files.train), dev=str(tiny_task_files.dev), max_seq_length=16)
    return tiny_bert, tokenizer, text, load_task("toy", task, tokenizer)


@pytest.mark.parametrize("positions", ["masked", "all"])
def test_mlm_loss_equals_the_plain_formula_over_full_logits(tiny, positions):
    folder, tokenizer, text, _ = tiny
    student, teacher = load_masked_lm(folder).eval(), load_masked_lm(folder)
    with torch.no_grad():
        teacher.cls.predictions.bias += torch.randn_like(teacher.cls.predictions.bias)
    data = mlm_data(text.train, tokenizer, MASKED, positions, Train(steps=1, batch_size=6), seed=3)
    batch = data.collate([data.stream[k] for k in range(6)])
    settings = KDLossSettings(temperature=2.0, loss_weights=(0.3, 0.7))
    terms = MlmLoss(mlm_head, Teacher(teacher), settings, positions)(student, batch)

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
    model, teacher = load_masked_lm(folder).eval(), Teacher(load_masked_lm(folder))
    loss = MlmLoss(mlm_head, teacher, KDLossSettings(), "all")
    found = []
    for passes in (1, 4):
        section = Train(steps=1, batch_size=8 // passes, gradient_accumulation_steps=passes)
        data = mlm_data(text.train, tokenizer, MASKED, "all", section, seed=5)
        data.stream.index = lambda k: k  # the same eight examples in both cuts
        found.append(gradients(model, loss, data, passes))
    assert text.train.lengths[:8].std() > 0, "sequences of one length would hide a wrong normalisation"
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-7)


@pytest.fixture(params=["classification", "question answering", "token classification"])
def fitted_to(request, tiny, tmp_path):
    """How to load a model for a kind of task, and 16 examples of it with the tokenizer's padding."""
    folder, tokenizer, _, task = tiny
    if request.param == "classification":
        return lambda: load_classifier(folder, task.labels), task.train, tokenizer.pad_token_id
    if request.param == "token classification":
        found = tagged_task(tmp_path, tokenizer)
        load = partial(load_task_model, folder, found.kind, found.labels, fitted=False)
        return load, found.train, tokenizer.pad_token_id
    texts = [f"a {word} baker , witty and warm" for word in ("lovely", "bright", "dull", "grim")] * 4
    asked = [Question(f"row {i}", "the baker ?", t, (t.split()[1],), (2,)) for i, t in enumerate(texts)]
    windows = windows_of(asked, tokenizer, 32, AnswerWindows(stride=8))
    return (
        lambda: load_task_model(folder, "question_answering", (), fitted=False),
        windows,
        tokenizer.pad_token_id,
    )


def test_accumulated_gradients_equal_those_of_one_large_batch_in_the_trainer_itself(fitted_to, tmp_path):
    """By plain SGD, unclipped: a step is the gradient, and nothing forgives a wrong scale."""
    make, examples, pad_id = fitted_to
    moved = []
    for passes in (1, 4):
        seed_everything(0)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        section = Train.model_validate(
            {
                "steps": 1,
                "batch_size": 16 // passes,
                "gradient_accumulation_steps": passes,
                "optimizer": {"SGD": {"learning_rate": 0.1}},
                "max_grad_norm": 1e9,
                "warmup_ratio": 0.0,
            }
        )
        data = task_data(examples, pad_id, section, seed=1)
        data.stream.index = lambda k: k
        work = tmp_path / str(passes)
        fit(model, data, section, TaskLoss(examples.kind), Context(work, work, 0))
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
    assert moved[0].abs().max() > 1e-4
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-3, atol=1e-6)


def test_a_loss_of_weight_zero_is_not_computed_into_the_gradient(tiny):
    folder, tokenizer, _, task = tiny
    model = load_classifier(folder, task.labels).eval()
    teacher = Teacher(load_classifier(folder, task.labels))
    teacher.model.load_state_dict(model.state_dict())
    data = task_data(task.train, tokenizer.pad_token_id, Train(steps=1, batch_size=8), seed=1)
    terms = TaskLoss("classification", teacher, KDLossSettings(loss_weights=(0.0, 1.0)))(
        model, data.collate([data.stream[0]])
    )
    assert float(terms.total) == pytest.approx(0.0, abs=1e-6)
    assert float(terms.task) > 0.01


def layers(**settings) -> Criterion:
    return Criterion.model_validate({"IntermediateLayersKnowledgeDistillationLoss": settings})


@pytest.fixture
def pair(tiny):
    """A student and a teacher that differs from it, a batch of sentences of different lengths, and the loss's maker."""
    folder, tokenizer, _, task = tiny
    student, teacher = (load_classifier(folder, task.labels).eval() for _ in range(2))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    spread = [int(i) for i in task.train.lengths.argsort()[:: len(task.train) // 6][:6]]
    batch = pad([task.train[i] for i in spread], tokenizer.pad_token_id) | {"items": 6.0, "examples": 6.0}
    assert batch["attention_mask"].sum(1).float().std() > 0
    return student, teacher, batch


def test_soft_cross_entropy_has_the_gradient_of_kl_and_a_larger_value(pair):
    student, teacher, batch = pair
    found = []
    for kind in ("KL", "CE"):
        criterion = Criterion(
            KnowledgeDistillationLoss=KDLossSettings(temperature=3.0, loss_types=("CE", kind), loss_weights=(0.0, 1.0))
        )
        student.zero_grad()
        total = task_loss("classification", Teacher(teacher), criterion)(student, batch).total
        total.backward()
        found.append((float(total), student.classifier.weight.grad.clone()))
    assert found[1][0] > found[0][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)


def test_mse_is_the_mean_over_examples_and_classes_whatever_the_temperature(pair):
    student, teacher, batch = pair
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "items", "examples")}
    expected = float((student(**inputs).logits - teacher(**inputs).logits).square().mean())
    for temperature in (1.0, 4.0):
        settings = KDLossSettings(temperature=temperature, loss_types=("CE", "MSE"), loss_weights=(0.0, 1.0))
        loss = task_loss("classification", Teacher(teacher), Criterion(KnowledgeDistillationLoss=settings))
        assert float(loss(student, batch).total) == pytest.approx(expected, rel=1e-4)


def test_layers_loss_is_the_weighted_sum_over_attended_tokens(pair):
    student, teacher, batch = pair
    first, second = "bert.encoder.layer.0.output", "bert.encoder.layer.1.output"
    criterion = layers(
        layer_mappings=[[first, first], [first, 0, second, 0]], loss_types=["MSE", "L1"], loss_weights=[0.25, 2]
    )
    terms = task_loss("classification", Teacher(teacher), criterion)(student, batch)

    def hidden(model, layer):
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "items", "examples")}
        return model(**inputs, output_hidden_states=True).hidden_states[layer]

    def mean(difference):
        mask = batch["attention_mask"]
        return (((difference.mean(-1) * mask).sum(1)) / mask.sum(1)).mean()

    expected = 0.25 * mean((hidden(student, 1) - hidden(teacher, 1)) ** 2)
    expected += 2 * mean((hidden(student, 1) - hidden(teacher, 2)).abs())
    assert float(terms.total) == pytest.approx(float(expected), rel=1e-4)
    terms.total.backward()
    assert student.bert.encoder.layer[0].output.dense.weight.grad.abs().max() > 0
    assert student.classifier.weight.grad is None


def test_layers_loss_adds_the_loss_with_the_labels_when_asked(pair):
    student, teacher, batch = pair
    name = "bert.encoder.layer.1"
    plain = task_loss("classification", Teacher(teacher), layers(layer_mappings=[[name, name]], loss_types=["KL"]))(
        student, batch
    )
    added = task_loss(
        "classification",
        Teacher(teacher),
        layers(layer_mappings=[[name, name]], loss_types=["KL"], add_origin_loss=True),
    )(student, batch)
    labels = task_loss("classification")(student, batch)
    assert float(plain.total) > 0
    assert float(added.total) == pytest.approx(float(plain.total) + float(labels.total), rel=1e-4)


def test_layers_loss_teaches_a_masked_language_model_too(tiny):
    folder, tokenizer, text, _ = tiny
    student, teacher = load_masked_lm(folder).eval(), load_masked_lm(folder)
    data = mlm_data(text.train, tokenizer, MASKED, "masked", Train(steps=1, batch_size=4), seed=3)
    batch = data.collate([data.stream[k] for k in range(4)])
    name = "bert.encoder.layer.1"
    loss = mlm_loss(mlm_head, Teacher(teacher), layers(layer_mappings=[[name, name]]), "masked")
    assert float(loss(student, batch).total) == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        teacher.bert.encoder.layer[1].output.LayerNorm.bias += 1.0
    assert float(loss(student, batch).total) == pytest.approx(1.0, rel=1e-3)


LOGITS, LAYERS = "KnowledgeDistillationLoss", "IntermediateLayersKnowledgeDistillationLoss"


def counted(model) -> list[int]:
    """The number of the model's forward passes so far, in a list that grows."""
    calls: list[int] = []
    model.base_model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_square_head_is_the_squared_difference_relative_to_the_teacher_of_each_example_at_attended_tokens(pair):
    student, teacher, batch = pair
    criterion = layers(loss_types=["SquareHead"], loss_weights=[3])
    found = float(task_loss("classification", Teacher(teacher), criterion)(student, batch).total)

    inputs = {k: v for k, v in batch.items() if k not in ("labels", "items", "examples")}
    own, others = (m(**inputs, output_hidden_states=True).hidden_states[1:] for m in (student, teacher))
    expected = 0.0
    for example, attended in enumerate(batch["attention_mask"].sum(1).tolist()):
        for s, t in zip(own, others, strict=True):
            s, t = s[example, :attended], t[example, :attended]
            expected += 3 / len(own) * float(((t - s) ** 2).sum() / (t**2).sum()) / 6
    assert found == pytest.approx(expected, rel=1e-4)


def test_logits_and_layers_are_added_in_one_forward_pass_of_student_and_teacher(pair, tiny):
    student, teacher, batch = pair
    own, others = counted(student), counted(teacher)
    parts = {LOGITS: {"loss_weights": [0.3, 0.7]}, LAYERS: {"loss_types": ["SquareHead"], "loss_weights": [2]}}
    both = task_loss("classification", Teacher(teacher), Criterion.model_validate(parts))(student, batch)
    assert (len(own), len(others)) == (1, 1)
    logits, hidden = (
        task_loss("classification", Teacher(teacher), Criterion.model_validate({name: parts[name]}))(student, batch)
        for name in parts
    )
    assert float(both.total) == pytest.approx(float(logits.total) + float(hidden.total), rel=1e-5)
    curve = {name: float(term) for name, term in both.named()}
    expected = {"task_loss": logits.task, "kd_loss": logits.kd, "layers_loss": hidden.kd}
    assert curve == pytest.approx({"loss": float(both.total)} | {k: float(v) for k, v in expected.items()}, rel=1e-5)

    folder, tokenizer, text, _ = tiny
    words, knows = load_masked_lm(folder).eval(), load_masked_lm(folder)
    own, others = counted(words), counted(knows)
    data = mlm_data(text.train, tokenizer, MASKED, "masked", Train(steps=1, batch_size=4), seed=3)
    loss = mlm_loss(mlm_head, Teacher(knows), Criterion.model_validate(parts), "masked")
    terms = loss(words, data.collate([data.stream[k] for k in range(4)]))
    assert (len(own), len(others)) == (1, 1)
    assert float(terms.layers) == pytest.approx(0.0, abs=1e-6)
    assert float(terms.task) > 0.1


def test_accumulated_gradients_of_both_losses_equal_those_of_one_large_batch(tiny):
    folder, tokenizer, text, _ = tiny
    model, teacher = load_masked_lm(folder).eval(), load_masked_lm(folder)
    with torch.no_grad():
        teacher.bert.encoder.layer[0].output.dense.weight += 0.1
    parts = {LOGITS: {}, LAYERS: {"loss_types": ["SquareHead"]}}
    loss = mlm_loss(mlm_head, Teacher(teacher), Criterion.model_validate(parts), "all")
    found = []
    for passes in (1, 4):
        section = Train(steps=1, batch_size=8 // passes, gradient_accumulation_steps=passes)
        data = mlm_data(text.train, tokenizer, MASKED, "all", section, seed=5)
        data.stream.index = lambda k: k
        found.append(gradients(model, loss, data, passes))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-7)


def test_the_layers_of_a_quantized_student_are_compared_too(pair):
    from toolkit.quantization import nncf
    from toolkit.recipe import Quantization

    student, teacher, batch = pair
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "items", "examples")}
    quantized = nncf.quantize(student, [inputs], Quantization())
    parts = {LOGITS: {}, LAYERS: {"loss_types": ["SquareHead"]}}
    terms = task_loss("classification", Teacher(teacher), Criterion.model_validate(parts))(quantized, batch)
    terms.total.backward()
    assert float(terms.layers) > 0
    assert quantized.bert.encoder.layer[0].output.dense.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ([["bert.encoder.layer.7", "bert.encoder.layer.1"]], "the student has no layer 'bert.encoder.layer.7'"),
        ([["bert.encoder.layer.1", "bert.encoder.layr.1"]], "the teacher has no layer"),
        ([["bert.encoder.layer.1", 3, "bert.encoder.layer.1", 0]], "has 1 output"),
        ([["bert.encoder.layer.1", "bert.encoder.layer.1.intermediate"]], "the output of bert"),
    ],
)
def test_layers_that_cannot_be_compared_are_refused(pair, mapping, words):
    student, teacher, batch = pair
    with pytest.raises(UserError, match=words):
        task_loss("classification", Teacher(teacher), layers(layer_mappings=mapping))(student, batch)


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        ({}, torch.optim.AdamW),
        ({"Adam": {"learning_rate": 1e-3}}, torch.optim.Adam),
        ({"SGD": {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}}, torch.optim.SGD),
    ],
)
def test_the_optimizer_that_is_named_trains(tiny, tmp_path, optimizer, kind, monkeypatch):
    folder, tokenizer, _, task = tiny
    model = load_classifier(folder, task.labels)
    section = Train.model_validate({"steps": 2, "batch_size": 8, "optimizer": optimizer, "warmup_ratio": 0.0})
    made = []
    create = CompressionTrainer.create_optimizer
    monkeypatch.setattr(
        CompressionTrainer, "create_optimizer", lambda self, *a: made.append(create(self, *a)) or made[-1]
    )
    before = model.classifier.weight.detach().clone()
    data = task_data(task.train, tokenizer.pad_token_id, section, seed=1)
    fit(model, data, section, TaskLoss("classification"), Context(tmp_path, tmp_path, 0))
    assert type(getattr(made[0], "optimizer", made[0])) is kind
    assert made[0].defaults["lr"] == section.optimizer.settings.learning_rate
    assert not torch.equal(before, model.classifier.weight)
