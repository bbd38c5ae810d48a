"""The teacher's logits from disk: the same training as with a teacher that is asked at every step, and asked once."""

import csv
import json
import random

import pytest
import torch

from tests.conftest import GOOD, NOUNS, sentence
from toolkit.core.artifacts import Artifact, Context
from toolkit.core.files import content_hash
from toolkit.data.batches import model_inputs, pad
from toolkit.data.tasks import load_task
from toolkit.models.load import load_task_model, load_tokenizer, save_checkpoint
from toolkit.models.task_heads import pad_logits, task_logits
from toolkit.recipe import KINDS, Distillation, Task
from toolkit.training import teacher_logits
from toolkit.training.datasets import task_data
from toolkit.training.distillation import Teacher, task_loss
from toolkit.training.evaluation import iter_logits
from toolkit.training.loop import fit, seed_everything
from toolkit.training.teacher_logits import task_distillation


@pytest.fixture(scope="module")
def sections(tiny_task_files, tmp_path_factory):
    """Kind -> the section of a small task of that kind."""
    folder, rng = tmp_path_factory.mktemp("lessons"), random.Random(4)
    with (folder / "scores.tsv").open("w", newline="") as stream:
        rows = [(sentence(rng, GOOD), rng.random()) for _ in range(70)]
        csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_NONE).writerows([("sentence", "label"), *rows])
    scored, pairs = str(folder / "pairs.tsv"), {"kind": "embedding", "columns": ["one", "two"], "label": "label"}
    with (folder / "pairs.tsv").open("w", newline="") as stream:
        rows = [(sentence(rng, GOOD), sentence(rng, GOOD), rng.random()) for _ in range(40)]
        csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_NONE).writerows([("one", "two", "label"), *rows])
    with (folder / "sets.tsv").open("w", newline="") as stream:
        rows = [(sentence(rng, GOOD), ("one", "one|two", "")[n % 3]) for n in range(60)]
        csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_NONE).writerows([("sentence", "label"), *rows])
    with (folder / "candidates.tsv").open("w", newline="") as stream:
        rows = [(NOUNS[n // 4], sentence(rng, GOOD), int(n % 4 == 0)) for n in range(60)]
        csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_NONE).writerows([("query", "passage", "label"), *rows])
    sets, candidates = str(folder / "sets.tsv"), str(folder / "candidates.tsv")
    paragraphs = []
    for number in range(70):
        words = rng.sample(NOUNS, rng.randint(3, 30))  # some need several windows
        asked = {"text": words[1], "answer_start": f" {' '.join(words)} ".index(f" {words[1]} ")}
        question = {"id": str(number), "question": f"who is {words[1]} ?", "answers": [asked]}
        paragraphs.append({"context": " ".join(words), "qas": [question]})
    (folder / "squad.json").write_text(json.dumps({"version": "1.1", "data": [{"paragraphs": paragraphs}]}))
    squad, scores = str(folder / "squad.json"), str(folder / "scores.tsv")
    tags = [
        "".join(f"{w} {rng.choice(['O', 'B-X'])}\n" for w in rng.sample(NOUNS, rng.randint(3, 30))) for _ in range(70)
    ]
    (folder / "tags.conll").write_text("\n".join(tags))
    words = {"kind": "token_classification", "max_seq_length": 20, "windows": {"stride": 4}}
    toy = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    questions = {"preset": "squad", "train": squad, "dev": squad, "max_seq_length": 30}
    return {
        "classification": Task.model_validate(toy),
        "regression": Task.model_validate({"kind": "regression", "train": scores, "dev": scores, "max_seq_length": 24}),
        "embedding": Task.model_validate(pairs | {"train": scored, "dev": scored, "max_seq_length": 24}),
        "multi_label": Task.model_validate({"kind": "multi_label", "train": sets, "dev": sets, "max_seq_length": 24}),
        "reranking": Task.model_validate(
            {"kind": "reranking", "train": candidates, "dev": candidates, "max_seq_length": 24, "ranking": {"group": 2}}
        ),
        "token_classification": Task.model_validate(
            words | dict.fromkeys(("train", "dev"), str(folder / "tags.conll"))
        ),
        "question_answering": Task.model_validate(questions | {"windows": {"stride": 4, "max_question_length": 8}}),
    }


@pytest.fixture
def pupil(tiny_bert, sections, tmp_path):
    """Kind -> task, tokenizer, an untrained student, and a fitted checkpoint of a teacher that differs from it."""

    def make(kind):
        tokenizer = load_tokenizer(tiny_bert)
        task = load_task("toy", sections[kind], tokenizer)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            teacher = load_task_model(tiny_bert, task.kind, task.labels, fitted=False)
            for parameter in teacher.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
        folder = tmp_path / f"{kind} teacher"
        save_checkpoint(teacher, tokenizer, folder)
        return task, tokenizer, Artifact(kind="task", path=folder, sha256=content_hash(folder))

    return make


def lesson(**train) -> Distillation:
    settings = {"epoch": 2, "batch_size": 8, "optimizer": {"SGD": {"learning_rate": 0.05, "momentum": 0.9}}}
    loss = {"criterion": {"KnowledgeDistillationLoss": {"loss_weights": [0.3, 0.7]}}}
    return Distillation.model_validate({"train": settings | loss | train})


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(source, task, tokenizer, train, loss, answers, context):
    seed_everything(0)
    model = load_task_model(source, task.kind, task.labels, fitted=False)
    data = task_data(task.train, tokenizer.pad_token_id, train, 3, answers)
    fitted = fit(model, data, train, loss, context)
    return flat(model), fitted.history


@pytest.mark.parametrize("kind", KINDS)
def test_training_by_logits_from_disk_ends_where_training_with_the_teacher_does(tiny_bert, pupil, kind, tmp_path):
    task, tokenizer, teacher = pupil(kind)
    distillation = lesson()
    context = Context(tmp_path, tmp_path / "with", 0, cache=tmp_path / "cache")
    loss, answers = task_distillation(distillation, teacher, task, tokenizer, context)
    assert answers is not None
    assert loss._teacher is None, "nobody is asked during the training"
    found, history = trained(tiny_bert, task, tokenizer, distillation.train, loss, answers, context)

    asked = Teacher(load_task_model(teacher.path, task.kind, task.labels, fitted=True))
    context = Context(tmp_path, tmp_path / "without", 0)
    plain = task_loss(task.kind, asked, distillation.train.criterion)
    expected, curve = trained(tiny_bert, task, tokenizer, distillation.train, plain, None, context)
    # The teacher was asked in other batches than those of the training, so its last digits differ. And so do the
    # student's at the end: dropout, order and all else are the same.
    start = flat(load_task_model(tiny_bert, task.kind, task.labels, fitted=False).base_model)
    found, expected = found[: len(start)], expected[: len(start)]
    moved = (found - start).abs().max()
    assert moved > 1e-3
    assert (found - expected).abs().max() < 1e-5 * moved
    for ours, theirs in zip(history, curve, strict=True):
        assert ours["kd_loss"] == pytest.approx(theirs["kd_loss"], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_from_disk_is_what_the_teacher_says_to_the_batch(pupil, kind, tmp_path):
    task, tokenizer, teacher = pupil(kind)
    context = Context(tmp_path, tmp_path, 0, cache=tmp_path / "cache")
    _, answers = task_distillation(lesson(), teacher, task, tokenizer, context)
    model = load_task_model(teacher.path, task.kind, task.labels, fitted=True).eval()
    chosen = [int(i) for i in task.train.lengths.argsort()[:: len(task.train) // 6]]
    batch = pad([task.train[i] for i in chosen], tokenizer.pad_token_id)
    assert batch["attention_mask"].min() == 0, "padding must not matter"
    with torch.no_grad():
        expected = task_logits(task.kind, model, model_inputs(batch))
    found = pad_logits([answers(i) for i in chosen], task.train.per_token)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_second_training_asks_nobody_and_other_examples_teachers_or_precisions_ask_again(pupil, tmp_path):
    task, tokenizer, teacher = pupil("classification")
    context = Context(tmp_path, tmp_path, 0, cache=tmp_path / "cache")
    task_distillation(lesson(), teacher, task, tokenizer, context)
    gone = teacher.model_copy(update={"path": tmp_path / "nowhere"})
    task_distillation(lesson(epoch=7), gone, task, tokenizer, context)
    assert len(list(context.cache.iterdir())) == 1
    task_distillation(lesson(precision="bf16"), teacher, task, tokenizer, context)
    task.train.inputs["input_ids"][3][1] += 1
    task_distillation(lesson(), teacher, task, tokenizer, context)
    task_distillation(lesson(), teacher.model_copy(update={"sha256": "another"}), task, tokenizer, context)
    assert len(list(context.cache.iterdir())) == 4


def test_a_short_training_reads_what_another_one_had_answered(pupil, tmp_path):
    task, tokenizer, teacher = pupil("classification")
    context = Context(tmp_path, tmp_path, 0, cache=tmp_path / "cache")
    task_distillation(lesson(), teacher, task, tokenizer, context)
    gone = teacher.model_copy(update={"path": tmp_path / "nowhere"})
    loss, answers = task_distillation(lesson(epoch=None, steps=3), gone, task, tokenizer, context)
    assert answers is not None
    assert loss._teacher is None


def test_logits_of_a_teacher_in_one_precision_serve_students_in_any(pupil, tmp_path):
    task, tokenizer, teacher = pupil("classification")
    context = Context(tmp_path, tmp_path, 0, cache=tmp_path / "cache")
    task_distillation(lesson(precision="bf16"), teacher, task, tokenizer, context)
    task_distillation(lesson(precision="fp32", teacher_precision="bf16"), teacher, task, tokenizer, context)
    assert len(list(context.cache.iterdir())) == 1


class Stop(Exception):
    pass


def test_an_interrupted_asking_goes_on_where_it_was_and_ends_with_the_same_file(pupil, tmp_path, monkeypatch):
    task, tokenizer, teacher = pupil("question_answering")
    monkeypatch.setattr(teacher_logits, "_BATCH", 4)
    monkeypatch.setattr(teacher_logits, "_FLUSH_EVERY", 3)
    real, asked = iter_logits, []

    def answers(model, examples, pad_id, size, first=0):
        for number, answer in enumerate(real(model, examples, pad_id, size, first), first):
            if number == 11 and len(asked) == 11:
                raise Stop
            asked.append(number)
            yield answer

    monkeypatch.setattr(teacher_logits, "iter_logits", answers)
    whole, broken = (Context(tmp_path, tmp_path, 0, cache=tmp_path / name) for name in ("whole", "broken"))
    with pytest.raises(Stop):
        task_distillation(lesson(), teacher, task, tokenizer, broken)
    assert not [p for p in broken.cache.iterdir() if p.suffix != ".partial"]
    task_distillation(lesson(), teacher, task, tokenizer, broken)
    assert asked[11:13] == [9, 10], "batches 9 and 10 were not on disk for good"
    monkeypatch.setattr(teacher_logits, "iter_logits", real)
    task_distillation(lesson(), teacher, task, tokenizer, whole)
    (one,), (other,) = whole.cache.glob("*/logits.npy"), broken.cache.glob("*/logits.npy")
    assert one.read_bytes() == other.read_bytes()


def test_a_loss_over_hidden_features_and_a_short_training_ask_the_teacher_at_every_step(pupil, tmp_path):
    task, tokenizer, teacher = pupil("classification")
    context = Context(tmp_path, tmp_path, 0, cache=tmp_path / "cache")
    name = "bert.encoder.layer.1"
    features = {"IntermediateLayersKnowledgeDistillationLoss": {"layer_mappings": [[name, name]]}}
    for distillation in (lesson(criterion=features), lesson(epoch=None, steps=3)):
        loss, answers = task_distillation(distillation, teacher, task, tokenizer, context)
        assert answers is None
        assert loss._teacher is not None
    assert not context.cache.exists()
    assert task_distillation(None, None, task, tokenizer, context)[0]._teacher is None
