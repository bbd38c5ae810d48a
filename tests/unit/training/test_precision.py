"""bfloat16 where it was asked for, or where it wins: of a model, of its teacher, and through a whole training."""

import pytest
import torch

from toolkit.core import machine
from toolkit.core.artifacts import Context, NullProgress
from toolkit.core.errors import UserError
from toolkit.data.corpus import load_corpus
from toolkit.models.load import load_masked_lm, load_tokenizer, prunable_matrices
from toolkit.models.mlm_heads import mlm_head
from toolkit.recipe import Corpus, DistillationTrain, KDLossSettings, Pruning, Train
from toolkit.recipe.load import parse_recipe
from toolkit.sparsity.factory import make_sparsifier
from toolkit.training import distributed, precision, trainer
from toolkit.training.datasets import mlm_data
from toolkit.training.distillation import MlmLoss, Teacher
from toolkit.training.hardware import bf16, teacher_bf16
from toolkit.training.loop import fit, seed_everything
from toolkit.training.trainer import _loaders


@pytest.fixture
def hardware(monkeypatch):
    """Makes a machine with or without a GPU, AMX."""

    def make(cuda: bool, amx: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})

    return make


@pytest.mark.parametrize(("cuda", "amx", "expected"), [(False, False, False), (False, True, True), (True, False, True)])
def test_auto_is_bf16_where_the_hardware_multiplies_it(hardware, cuda, amx, expected):
    hardware(cuda, amx)
    assert bf16(Train(steps=1, precision="auto")) == expected
    assert bf16(Train(steps=1, precision="bf16"))
    assert not bf16(Train(steps=1, precision="fp32"))


def test_a_teacher_runs_as_its_student_unless_something_is_said_of_it(hardware):
    hardware(False, True)
    for own, said, expected in (("bf16", None, None), ("bf16", "fp32", False), ("fp32", "auto", True)):
        assert teacher_bf16(DistillationTrain(steps=1, precision=own, teacher_precision=said)) == expected


def capable(monkeypatch, *instructions: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True))


@pytest.mark.parametrize(
    ("instructions", "times", "chosen"),
    [
        (("avx512_bf16",), (2.0, 1.0), True),
        (("avx512_bf16",), (1.04, 1.0), False),  # no clear win
        (("amx_bf16",), (1.0, 1.2), False),
        (("avx512_f",), None, False),  # emulated: not worth measuring
    ],
)
def test_auto_takes_what_was_measured_to_be_clearly_faster(
    tiny_bert, text, tmp_path, monkeypatch, instructions, times, chosen
):
    """The training that follows is, bit for bit, the one of a recipe that names the chosen precision."""
    capable(monkeypatch, *instructions)
    real, measured = precision.measure, []

    def measure(*args):
        measured.append(real(*args))
        return times

    monkeypatch.setattr(precision, "measure", measure)
    plain, weights, _ = trained(tiny_bert, text, tmp_path / "plain", precision="bf16" if chosen else "fp32")
    assert not measured
    fitted, same, _ = trained(tiny_bert, text, tmp_path / "auto", precision="auto")
    assert len(measured) == (times is not None)
    assert all(seconds > 0 for pair in measured for seconds in pair)
    assert fitted.metrics().get("bf16", False) == chosen
    expected = {} if times is None else {"fp32": pytest.approx(times[0]), "bf16": pytest.approx(times[1])}
    assert fitted.metrics().get("measured_step_seconds", {}) == expected
    assert fitted.history == plain.history
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_a_resumed_training_keeps_the_choice_and_its_times_without_a_second_measurement(
    tiny_bert, text, tmp_path, monkeypatch
):
    capable(monkeypatch, "avx512_bf16")
    monkeypatch.setattr(precision, "measure", lambda *_: (2.0, 1.0))
    whole, weights, _ = trained(tiny_bert, text, tmp_path / "whole", precision="auto")
    with pytest.raises(KeyboardInterrupt):
        trained(tiny_bert, text, tmp_path / "cut", Killed(5), precision="auto", checkpoint_every=3)
    monkeypatch.setattr(precision, "measure", lambda *_: pytest.fail("measured again"))
    resumed, same, _ = trained(tiny_bert, text, tmp_path / "cut", precision="auto", checkpoint_every=3)
    assert resumed.metrics()["measured_step_seconds"] == {"fp32": 2.0, "bf16": 1.0}
    assert resumed.history == whole.history
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_a_training_killed_before_its_first_checkpoint_keeps_the_choice(tiny_bert, text, tmp_path, monkeypatch):
    capable(monkeypatch, "avx512_bf16")
    monkeypatch.setattr(precision, "measure", lambda *_: (2.0, 1.0))
    with pytest.raises(KeyboardInterrupt):
        trained(tiny_bert, text, tmp_path, Killed(2), precision="auto", checkpoint_every=100)
    monkeypatch.setattr(precision, "measure", lambda *_: pytest.fail("measured again"))
    again, *_ = trained(tiny_bert, text, tmp_path, precision="auto", checkpoint_every=100)
    assert again.metrics()["bf16"]
    assert again.metrics()["measured_step_seconds"] == {"fp32": 2.0, "bf16": 1.0}


def test_processes_choose_by_the_mean_of_their_times(monkeypatch, tmp_path):
    capable(monkeypatch, "avx512_bf16")
    monkeypatch.setattr(precision, "measure", lambda *_: (1.0, 1.0))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda tensors: tensors[0].add_(torch.tensor([2.0, 1.0])))
    record = tmp_path / "work" / "precision.json"
    chosen, times = precision.choose_bf16(Train(steps=1, precision="auto"), None, None, lambda: None, record)
    assert (chosen, times) == (True, {"fp32": 1.5, "bf16": 1.0})


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize(("own", "expected"), [(None, None), (True, torch.bfloat16), (False, torch.float32)])
def test_a_teachers_products_have_its_own_type_whatever_is_around_it(around, own, expected):
    teacher = Teacher(torch.nn.Linear(4, 4), torch.device("cpu"), own)
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        found = teacher(lambda model: model(torch.randn(2, 4)))
    assert found.dtype == (expected or (torch.bfloat16 if around else torch.float32))


def test_fake_quantization_is_not_trained_in_whatever_the_machine_prefers():
    text = "name: a\nmodel: {source: b}\nready: {student: c}\ntasks: {t: {train: t.tsv, dev: d.tsv, columns: [a]}}\n"
    text += "quantize: {quantization: {train: {steps: 1, precision: auto}}}\n"
    with pytest.raises(UserError, match=r"quantization\.train\.precision: cannot be auto"):
        parse_recipe(text, "text")


def trained(tiny_bert, text, folder, progress=None, **settings):
    """A tiny student pruned and taught for a few steps: its curve, weights and mask."""
    seed_everything(3)
    tokenizer = load_tokenizer(tiny_bert)
    student, teacher = (load_masked_lm(tiny_bert) for _ in range(2))
    train = DistillationTrain.model_validate({"steps": 6, "batch_size": 4, "log_every": 1} | settings)
    section = Corpus(files=("any",), max_seq_length=40)
    compression = {"target_sparsity": 0.8, "start_step": 0, "end_step": 4, "update_frequency_on_step": 2}
    pruning = Pruning.model_validate({"backend": "magnitude", "approach": {"weight_compression": compression}})
    sparsifier = make_sparsifier(pruning, prunable_matrices(student), 0)
    loss = MlmLoss(mlm_head, Teacher(teacher, None, teacher_bf16(train)), KDLossSettings())
    data = mlm_data(text, tokenizer, section, "masked", train, seed=3)
    context = Context(folder, folder / "work", 0, progress=progress or NullProgress())
    fitted = fit(student, data, train, loss, context, sparsifier=sparsifier)
    return fitted, student.state_dict(), sparsifier.mask


@pytest.fixture
def text(tiny_bert, tiny_text, tmp_path):
    section = Corpus(files=(str(tiny_text),), max_seq_length=40)
    return load_corpus(section, {}, load_tokenizer(tiny_bert), tmp_path / "cache").train


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"teacher_precision": "bf16"}], ids=["all", "teacher"])
def test_a_training_in_bf16_follows_the_one_in_32_bits_with_zeros_and_weights_as_exact(
    tiny_bert, text, tmp_path, settings
):
    plain, weights, exact = trained(tiny_bert, text, tmp_path / "fp32")
    reduced, low, mask = trained(tiny_bert, text, tmp_path / "bf16", **settings)
    assert reduced.metrics().get("bf16", False) == ("precision" in settings)
    for row, other in zip(plain.history, reduced.history, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=0.02)
    assert [row["loss"] for row in plain.history] != [row["loss"] for row in reduced.history]
    assert {weight.dtype for weight in low.values()} == {torch.float32}
    assert not mask.violations({name: low[name] for name in mask.tensors})
    # Of two weights of almost the same magnitude, rounding may decide which becomes zero.
    same = {name: kept == exact.tensors[name] for name, kept in mask.tensors.items()}
    assert all(agrees.float().mean() > 0.995 for agrees in same.values())
    for name, agrees in same.items():
        low[name], weights[name] = low[name][agrees], weights[name][agrees]
    assert all(torch.allclose(low[name], weights[name], atol=5e-3) for name in weights)


def test_a_run_goes_on_in_the_precision_in_which_it_began(tiny_bert, text, tmp_path, monkeypatch):
    """`auto` may mean another one where it is resumed."""
    whole, weights, _ = trained(tiny_bert, text, tmp_path / "whole", precision="bf16")
    real, calls = MlmLoss.__call__, []

    def killed(self, model, batch):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, model, batch)

    monkeypatch.setattr(MlmLoss, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tiny_bert, text, tmp_path / "cut", precision="bf16", checkpoint_every=3)
    monkeypatch.setattr(MlmLoss, "__call__", real)
    resumed, same, _ = trained(tiny_bert, text, tmp_path / "cut", precision="fp32", checkpoint_every=3)
    assert resumed.metrics()["bf16"]
    assert resumed.history == whole.history
    assert all(torch.equal(weights[name], same[name]) for name in weights)


class Killed(NullProgress):
    """Ends the training at a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def update(self, step: int, **figures: float) -> None:
        if step == self._step:
            raise KeyboardInterrupt


class Said(NullProgress):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


def test_batches_made_by_other_processes_give_the_same_weights_bit_by_bit_after_a_kill_too(
    tiny_bert, text, tmp_path, monkeypatch
):
    fitted, weights, _ = trained(tiny_bert, text, tmp_path / "here")
    monkeypatch.setattr(trainer, "_loaders", lambda: 2)
    with pytest.raises(KeyboardInterrupt):
        trained(tiny_bert, text, tmp_path / "there", Killed(5), checkpoint_every=3)
    other, same, _ = trained(tiny_bert, text, tmp_path / "there", (said := Said()), checkpoint_every=3)
    assert said.texts == ["resuming from step 3"]
    assert fitted.history == other.history
    assert all(torch.equal(weights[name], same[name]) for name in weights)


@pytest.mark.parametrize(
    ("gpu", "cores", "beside", "expected"),
    [(False, 32, 1, 0), (True, 32, 1, 8), (True, 32, 8, 3), (True, 6, 1, 5), (True, 8, 8, 1), (True, 1, 1, 1)],
)
def test_loaders_take_the_cores_that_a_process_has_beside_its_gpu(hardware, monkeypatch, gpu, cores, beside, expected):
    hardware(gpu, False)
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(distributed, "local_world_size", lambda: beside)
    assert _loaders() == expected
