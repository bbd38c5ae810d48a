"""Windows over contexts, answers from logits, and what bad rows are answered with."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from toolkit.core.errors import UserError
from toolkit.data.question_answering import Question, _answer_tokens, read_question, windows_of
from toolkit.data.tasks import load_task
from toolkit.models.load import load_tokenizer
from toolkit.recipe import AnswerWindows, Task

SETTINGS = AnswerWindows(stride=4, max_question_length=5, max_answer_length=3, n_best=2)


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return load_tokenizer(tiny_bert)


def question(context: str, answer: str, asked: str = "who ?") -> Question:
    return Question("here", asked, context, (answer,), (context.index(answer),))


def made_logits(windows, wanted: dict[int, tuple[float, int, int]]) -> list[np.ndarray]:
    """Zeros, but for a start and an end of the given height in some windows."""
    logits = [np.zeros((2, length)) for length in windows.lengths]
    for window, (height, first, last) in wanted.items():
        logits[window][0, first] = logits[window][1, last] = height
    return logits


def test_long_context_becomes_windows_that_overlap_and_leave_nothing_out(tokenizer):
    context = " ".join("abcdefghijklmnopqrst")
    windows = windows_of([question(context, "a")], tokenizer, 14, SETTINGS)
    assert max(windows.lengths) == 14
    pieces = [[context[a:b] for a, b in offsets if a >= 0] for offsets in windows.offsets]
    assert pieces[0] == list("abcdefghi")
    assert pieces[1][:4] == pieces[0][-4:]
    assert sorted(set("".join("".join(p) for p in pieces))) == list("abcdefghijklmnopqrst")
    assert windows.question_of.tolist() == [0] * len(windows)


def test_answer_is_marked_where_a_window_holds_all_of_it_and_at_cls_elsewhere(tokenizer):
    context = " ".join("abcdefghijklmnopqrst")
    windows = windows_of([question(context, "l m n")], tokenizer, 14, SETTINGS)
    found = []
    for window in range(len(windows)):
        item, offsets = windows[window], windows.offsets[window]
        first, last = item["start_positions"], item["end_positions"]
        found.append(context[offsets[first, 0] : offsets[last, 1]] if first else "")
    assert found == ["", "l m n", "l m n", ""]
    assert (windows[0]["start_positions"], windows[0]["end_positions"]) == (0, 0)


def test_answer_inside_a_token_is_the_token(tokenizer):
    windows = windows_of([question("lovely day", "love")], tokenizer, 20, SETTINGS)
    first = int(windows.starts[0])
    assert windows.offsets[0][first].tolist() == [0, 6]
    assert windows.ends[0] == first


@pytest.fixture(scope="module")
def late_tokenizer():
    """Like RobBERT's: the offsets of the first token of a word begin one character late."""
    letters = "abcdefghijklmnopqrstuvwxyz?"
    words = ["<s>", "<pad>", "</s>", "<unk>", *letters, "Ġ", *(f"Ġ{letter}" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocabulary, [("Ġ", letter) for letter in letters], unk_token="<unk>"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=True, trim_offsets=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), byte_level])
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, sep_token="</s>", model_max_length=128, **special)


@pytest.mark.parametrize("answer", ["nis", "ren", "d", "ren d", "pel"])
def test_answers_are_found_and_given_whole_where_offsets_begin_late(late_tokenizer, answer):
    context = "nis ren d gas pel"
    late = late_tokenizer(context, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    assert (5, 5) in late
    windows = windows_of([question(context, answer)], late_tokenizer, 40, AnswerWindows(stride=4))
    assert windows.without_answer() == 0
    first, last = int(windows.starts[0]), int(windows.ends[0])
    assert windows.predicted(made_logits(windows, {0: (5.0, first, last)})) == [answer]


def test_where_offsets_do_not_fit_the_text_of_the_tokens_decides():
    offsets = np.array([[-1, -1], [0, 1], [1, 3], [5, 6], [8, 9], [-1, -1]])  # of `ab cd e`, and wrong from c on
    texts = ["", "ab", "Cé", "d", "e", ""]
    asked = Question("here", "?", "ab cèd e", ("cèd",), (3,))
    assert _answer_tokens(asked, offsets, lambda i, j: "".join(texts[i : j + 1]).replace("é", "e")) == (2, 3)
    assert _answer_tokens(asked, offsets, lambda i, j: "other") == (0, 0)


@pytest.mark.parametrize("blank", [" ", "\n", "\u00a0"])
def test_a_blank_at_the_end_of_an_answer_does_not_hide_it(tokenizer, blank):
    windows = windows_of([question(f"a{blank}b{blank}c", f"b{blank}")], tokenizer, 20, SETTINGS)
    assert windows.without_answer() == 0


@pytest.mark.parametrize("lost", [1, 5])
def test_answers_in_no_window_are_counted_and_refused_above_a_share(tokenizer, tmp_path, lost):
    context = " ".join("abcdefghijklmnopqrst")
    answers = [context] * lost + ["b"] * (20 - lost)
    rows = [
        {"question": "who ?", "context": context, "answers": {"text": [a], "answer_start": [context.index(a)]}}
        for a in answers
    ]
    for name, part in (("train", rows), ("dev", rows[-2:])):
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    section = Task(
        preset="squad",
        train=str(tmp_path / "train.json"),
        dev=str(tmp_path / "dev.json"),
        max_seq_length=14,
        windows=SETTINGS,
        tuning_examples=0,
    )
    if lost == 1:
        assert load_task("qa", section, tokenizer).left_out == (
            "1 of 20 training questions have their answer in no window",
        )
        return
    with pytest.raises(UserError, match="5 of 20 training questions have their answer in no window") as error:
        load_task("qa", section, tokenizer)
    assert error.value.where == "tasks.qa"


def test_long_question_is_cut_and_the_context_is_not(tokenizer):
    windows = windows_of([question("a b", "b", "k l m n o p q r s t")], tokenizer, 30, SETTINGS)
    words = tokenizer.convert_ids_to_tokens(windows[0]["input_ids"])
    assert words == ["[CLS]", "k", "l", "m", "n", "o", "[SEP]", "a", "b", "[SEP]"]


def test_best_answer_is_the_highest_sum_over_all_windows_of_a_question(tokenizer):
    context = " ".join("abcdefghijklmnopqrst")
    windows = windows_of([question(context, "a"), question("x y", "x")], tokenizer, 14, SETTINGS)
    first = int(np.flatnonzero(windows.offsets[0][:, 0] >= 0)[0])
    logits = made_logits(windows, {0: (2.0, first, first + 1), 1: (3.0, first + 1, first + 2)})
    assert windows.predicted(logits) == ["g h", "x"]


def test_answers_that_are_too_long_backwards_or_not_in_the_context_are_never_given(tokenizer):
    windows = windows_of([question("a b c d e f", "a")], tokenizer, 30, SETTINGS)
    first = int(np.flatnonzero(windows.offsets[0][:, 0] >= 0)[0])

    def best(start: int, end: int) -> str:
        return windows.predicted(made_logits(windows, {0: (5.0, start, end)}))[0]

    assert best(first, first + 2) == "a b c"
    assert len(best(first, first + 3).split()) <= 3  # four tokens are one too many
    assert len(best(first + 2, first + 1).split()) <= 3
    assert best(0, 0) in "a b c d e f"  # [CLS] and the question are no answers


def test_gold_positions_as_logits_give_back_the_gold_answers(shared_data, tokenizer):
    data = shared_data / "squad"
    section = Task(preset="squad", train=str(data / "split_heldout.json"), dev=str(data / "split_heldout.json"))
    # The tiny tokenizer spells words letter by letter: windows and answers are as long as they get.
    section = section.model_copy(
        update={"max_seq_length": 128, "windows": AnswerWindows(stride=32, max_answer_length=64)}
    )
    task = load_task("squad", section, tokenizer)
    short = [n for n, q in enumerate(task.dev.questions) if len(q.answers[0]) < 20]
    wanted = {w: (5.0, int(s), int(task.dev.ends[w])) for w, s in enumerate(task.dev.starts) if s}
    predicted = task.dev.predicted(made_logits(task.dev, wanted))
    right = [task.dev.questions[n].answers[0] == predicted[n] for n in short]
    assert task.dev_n == 2192
    assert len(short) > 1000
    assert np.mean(right) > 0.99


@pytest.mark.parametrize(
    ("answers", "message", "instead"),
    [
        ("a text", "not in SQuAD's form", "answer_start"),
        ({"text": ["x"]}, "not in SQuAD's form", "answer_start"),
        ({"text": ["x"], "answer_start": []}, "not in SQuAD's form", "answer_start"),
        ({"text": [], "answer_start": []}, "the question has no answer", "leave the row out"),
        ({"text": ["fox"], "answer_start": [0]}, "not at character 0", "answer_start 4"),
        ({"text": ["Fox"], "answer_start": [4]}, "not at character 4", "verbatim"),
        (
            {"text": ["fo"], "answer_start": [-3]},
            "not at character -3",
            "answer_start 4",
        ),  # as Python counts, it is there
    ],
)
def test_bad_answers_are_refused_with_their_place(answers, message, instead):
    with pytest.raises(UserError, match=message) as error:
        read_question("dev.json, question 7", ("who?", "the fox"), answers)
    assert error.value.where == "dev.json, question 7"
    assert instead in error.value.instead


def test_squad_json_lines_and_parquet_hold_the_same_questions(tmp_path, tokenizer):
    import pyarrow as pa
    import pyarrow.parquet as pq

    answers = {"text": ["b"], "answer_start": [2]}
    row = {"id": "1", "title": "t", "context": "a b", "question": "what ?", "answers": answers}
    nested = {"text": "b", "answer_start": 2}
    paragraph = {"context": "a b", "qas": [{"id": "1", "question": "what ?", "answers": [nested]}]}
    squad = {"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph]}]}
    (tmp_path / "a.json").write_text(json.dumps(squad))
    (tmp_path / "indented.json").write_text(json.dumps(squad, indent=1))
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    found = set()
    for name in ("a.json", "indented.json", "a.jsonl", "a.parquet"):
        path = str(tmp_path / name)
        task = load_task(
            "t",
            Task(preset="squad", train=path, dev=path, max_seq_length=128 - 1, windows=AnswerWindows(stride=16)),
            tokenizer,
        )
        (only,) = task.dev.questions
        found.add((only.question, only.context, only.answers, only.starts))
    assert found == {("what ?", "a b", ("b",), (2,))}


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ('{"data": [{"paragraphs": [{"context": "a"}]}]}', "a.json", "not in SQuAD's form"),
        ('{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "q7"}]}]}]}', "q7", "not in SQuAD's form"),
        ('{"data": []}', "a.json", "the file is empty"),
    ],
)
def test_damaged_squad_file_is_refused_with_the_place(tmp_path, tokenizer, text, where, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_task(
            "t",
            Task(preset="squad", train=str(path), dev=str(path), max_seq_length=127, windows=AnswerWindows(stride=16)),
            tokenizer,
        )
    assert where in error.value.where
