"""A teacher is checked before its student is distilled: it reads the student's tokens, and knows the task."""

import csv
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import vocabulary
from tests.helpers.models import load_classifier
from toolkit.core.artifacts import NullProgress
from toolkit.core.errors import UserError
from toolkit.data.tasks import load_task
from toolkit.models.load import load_masked_lm, load_tokenizer, prunable_matrices, save_checkpoint
from toolkit.pipeline.run import Run
from toolkit.recipe import Recipe, Task
from toolkit.training import teacher_checks
from toolkit.training.teacher_checks import require_skilled, teacher_split

LABELS = ("entailment", "neutral", "contradiction")


@pytest.fixture
def task(tiny_bert, tmp_path):
    """A task of three classes with 300 evaluated pairs of texts."""
    path = tmp_path / "rows.tsv"
    with path.open("w", newline="") as stream:
        rows = [(f"the {n} is dull", f"it is {n}", LABELS[n % 3]) for n in range(300)]
        csv.writer(stream, delimiter="\t").writerows([("one", "two", "label"), *rows])
    section = {"train": str(path), "dev": str(path), "columns": ["one", "two"], "labels": LABELS, "tuning_examples": 0}
    return load_task("toy", Task.model_validate(section), load_tokenizer(tiny_bert))


@pytest.fixture
def answers(monkeypatch, tiny_bert, task, tmp_path):
    """Checks a teacher that predicts these class numbers and has these class names."""

    def check(predicted, names=("LABEL_0", "LABEL_1", "LABEL_2"), of=task):
        save_checkpoint(load_classifier(tiny_bert, names), load_tokenizer(tiny_bert), tmp_path / "teacher")
        logits = np.eye(3)[np.asarray(predicted)]
        monkeypatch.setattr(teacher_checks, "predict", lambda model, split, pad_id: logits)
        require_skilled(None, of, tmp_path / "teacher", load_tokenizer(tiny_bert))

    return check


def mostly(truth, right, seed=0):
    """Predictions of which a share is right and the rest is random."""
    random = np.random.default_rng(seed)
    return np.where(random.random(len(truth)) < right, truth, random.integers(0, 3, len(truth)))


def test_a_teacher_that_knows_the_task_teaches_even_if_it_is_weak(answers, task):
    for right in (1.0, 0.8, 0.3):
        answers(mostly(task.dev.truth, right))


def test_a_teacher_that_knows_the_rare_class_teaches_although_always_the_common_one_would_score_more(answers, task):
    rare = np.where(np.arange(300) % 20 == 0, 1, 0)
    predicted = np.where(np.arange(300) % 10 == 0, 1, 0)
    answers(predicted, of=replace(task, dev=replace(task.dev, labels=rare)))
    with pytest.raises(UserError, match=r"accuracy is 95\.0% on 300 dev examples; chance is 95\.0%"):
        answers(np.zeros(300, int), of=replace(task, dev=replace(task.dev, labels=rare)))


@pytest.mark.parametrize("order", [[2, 1, 0], [1, 2, 0], [0, 2, 1]])
def test_a_teacher_with_other_classes_order_is_refused_with_its_score_and_the_order(answers, task, order):
    outputs = np.argsort(order)[mostly(task.dev.truth, 0.8)]  # output i is the class order[i]
    with pytest.raises(UserError, match=r"this model's accuracy is \d+\.\d% on 300 dev examples; .*order") as caught:
        answers(outputs)
    assert f"labels: [{', '.join(LABELS[number] for number in order)}]" in caught.value.instead
    with pytest.raises(UserError, match="in another order") as caught:
        answers(outputs, LABELS)
    assert "`id2label` in its config.json" in caught.value.instead


def test_a_teacher_at_chance_is_refused_with_its_score(answers, task):
    with pytest.raises(UserError, match=r"this model's accuracy is 33\.3% on 300 dev examples; chance is 33\.3%"):
        answers(np.zeros(300, int))


def test_the_student_of_a_teacher_at_chance_is_not_trained(tiny_bert, tiny_task_files, tmp_path):
    sparse = load_masked_lm(tiny_bert)
    with torch.no_grad():
        for module in prunable_matrices(sparse).values():
            module.weight[::2] = 0.0
    save_checkpoint(sparse, load_tokenizer(tiny_bert), tmp_path / "sparse")
    torch.manual_seed(0)
    save_checkpoint(load_classifier(tiny_bert, ("0", "1")), load_tokenizer(tiny_bert), tmp_path / "teacher")
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {"source": str(tiny_bert)},
            "ready": {"student": str(tmp_path / "sparse")},
            "tasks": {"toy": task | {"ready": {"task_teacher": str(tmp_path / "teacher")}}},
            "transfer": {"distillation": {"train": {"steps": 2, "batch_size": 4}}},
        }
    )
    with pytest.raises(UserError, match=r"accuracy is \d+\.\d% on 120 dev examples; chance is"):
        Run(recipe, tmp_path / "run", lambda step: nullcontext(NullProgress()))()
    assert not (tmp_path / "run/tasks/toy/transfer").exists()


def tokenizer_in(folder, words, **settings):
    from transformers import BertTokenizer

    BertTokenizer(vocab={word: index for index, word in enumerate(words)}, **settings).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def test_a_teacher_that_reads_other_tokens_is_refused_with_an_example(tiny_bert, task, tmp_path):
    student = load_tokenizer(tiny_bert)
    words = vocabulary()
    assert teacher_split(task.train, tokenizer_in(tmp_path / "same", words), student) is task.train
    for folder in (
        tokenizer_in(tmp_path / "other", words[:5] + words[:4:-1]),
        tokenizer_in(tmp_path / "few", words[:90]),
    ):
        with pytest.raises(UserError, match=r"the teacher's tokenizer is not the student's: 'the . is dull it is ."):
            teacher_split(task.train, folder, student)


def test_a_teacher_gets_the_segments_of_a_pair_that_its_student_does_not_read(tiny_bert, task):
    student = load_tokenizer(tiny_bert)
    student.model_input_names = ["input_ids", "attention_mask"]
    own = task.train.encoded_by(student)
    assert "token_type_ids" not in own.inputs
    read = teacher_split(own, tiny_bert, student)
    assert read.inputs == task.train.inputs


@pytest.fixture
def other(tiny_bert, tmp_path):
    """Kind -> a task of 120 rows: sets of three classes, or 24 queries with five candidates each."""

    def made(kind):
        path = tmp_path / f"{kind}.tsv"
        sets = [(f"it is {n}", ("a", "b|c", "", "a|c")[n % 4]) for n in range(120)]
        candidates = [(f"the {n // 5}", f"it is {n}", int(n % 5 == n // 5 % 5)) for n in range(120)]
        columns, rows = {
            "multi_label": (("sentence", "label"), sets),
            "reranking": (("query", "passage", "label"), candidates),
        }[kind]
        with path.open("w", newline="") as stream:
            csv.writer(stream, delimiter="\t").writerows([columns, *rows])
        section = {"kind": kind, "train": str(path), "dev": str(path), "tuning_examples": 0}
        return load_task("toy", Task.model_validate(section), load_tokenizer(tiny_bert))

    return made


def test_a_multi_label_teacher_must_score_above_chance_with_its_classes_in_order(other, tiny_bert):
    task = other("multi_label")
    right = 4 * task.dev.truth - 2
    assert teacher_checks.doubt(task, task.dev, right, tiny_bert) is None
    assert "seem to be in another order" in teacher_checks.doubt(task, task.dev, right[:, [1, 2, 0]], tiny_bert).what
    random = np.random.default_rng(0).normal(size=right.shape)
    assert "f1_micro" in teacher_checks.doubt(task, task.dev, random, tiny_bert).what


def test_exchanged_types_of_entities_are_told_from_the_words_inside_of_them(tiny_bert, tmp_path):
    path = tmp_path / "train.conll"
    words = [("it", "O")] * 8 + [("ann", "B-PER"), ("rome", "B-LOC")]
    path.write_text("\n".join("".join(f"{word}\t{tag}\n" for word, tag in words) for _ in range(40)))
    section = {"kind": "token_classification", "train": str(path), "dev": str(path), "tuning_examples": 0}
    task = load_task("toy", Task.model_validate(section), load_tokenizer(tiny_bert))
    assert task.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    exchanged = [np.array([0, 3, 4, 1, 2])[tags] for tags in task.dev.truth]
    right, found = teacher_checks._comparable(task, task.dev.truth, exchanged)
    better = teacher_checks._better_order(right, found, task.labels)
    assert (better[1], better[3]) == ("B-PER", "B-LOC")


def test_a_reranking_teacher_must_rank_better_than_its_own_scores_in_another_order(other, tiny_bert):
    task = other("reranking")
    random = np.random.default_rng(0).normal(size=(120, 1))
    assert teacher_checks.doubt(task, task.dev, task.dev.labels[:, None] + 0.5 * random, tiny_bert) is None
    assert "ndcg@10 is" in teacher_checks.doubt(task, task.dev, random, tiny_bert).what
