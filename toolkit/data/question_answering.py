"""Extractive question answering: windows over long contexts, and answers from span logits."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from toolkit.core.errors import UserError
from toolkit.data.kinds.examples import Tokenised
from toolkit.data.metrics import answer_matches, answer_overlap, mean_over_examples
from toolkit.recipe import AnswerWindows, Kind, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from toolkit.data.task_rows import TaskRow

_NEAR = 3  # tokens at each end of an answer that are tried where offsets do not fit
_VISIBLE = "LMNPS"  # Unicode categories of letters, marks, numbers, punctuation and symbols
_BATCH = 500  # questions tokenised at a time: their character offsets are large


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Attributes:
        where: Location of the row: file and line, or the nearest equivalent.
        question: Text of the question.
        context: Text that contains the answers.
        answers: The correct answers, as they occur in the context.
        starts: Index of the first character of each answer in the context.
    """

    where: str
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Windows(Tokenised):
    """Questions, each with one or several windows over its context. Item i is window i, as model input.

    Attributes:
        questions: The questions; metrics count these, not the windows.
        inputs: Name of a model input -> one list of ids per window.
        starts: First token of the first correct answer, [windows] int64; 0 ([CLS]) where it is not in the window.
        ends: Last token of the same answer, [windows] int64.
        question_of: Index of the question that each window belongs to, [windows].
        offsets: Start and end (exclusive) of each token in the context, in characters, [length, 2] per window; -1 for
            tokens outside the context.
        settings: Settings of the windows and of the answer spans.
    """

    questions: list[Question]
    inputs: dict[str, list[list[int]]]
    starts: np.ndarray
    ends: np.ndarray
    question_of: np.ndarray
    offsets: list[np.ndarray]
    settings: AnswerWindows
    kind: ClassVar[Kind] = "question_answering"
    texts_repeat: ClassVar[bool] = True
    examples_per_row: ClassVar[float] = 1.05
    metrics: ClassVar[dict[str, Callable[[Any, Any], float]]] = {
        "f1": mean_over_examples(answer_overlap),
        "exact_match": mean_over_examples(answer_matches),
    }

    def __getitem__(self, index: int) -> dict[str, Any]:
        positions = {"start_positions": int(self.starts[index]), "end_positions": int(self.ends[index])}
        return {**{name: ids[index] for name, ids in self.inputs.items()}, **positions}

    @property
    def truth(self) -> list[tuple[str, ...]]:
        """The correct answers to each question."""
        return [question.answers for question in self.questions]

    @classmethod
    def targets(cls, rows: "Sequence[TaskRow]", labels: Sequence[str]) -> list[Question]:
        """Returns the questions of rows.

        Raises:
            UserError: The answers of a row are malformed; the message names the row.
        """
        return [read_question(row.where, row.texts, row.label) for row in rows]

    @classmethod
    def encode(
        cls, rows: "Sequence[TaskRow]", labels: Sequence[str], section: Task, tokenizer: "PreTrainedTokenizerFast"
    ) -> "Windows":
        """Tokenises rows; contexts longer than the section's `max_seq_length` are split into windows."""
        return windows_of(cls.targets(rows, labels), tokenizer, section.max_seq_length, section.windows)

    @classmethod
    def inputs_of(
        cls, rows: "Sequence[TaskRow]", section: Task, tokenizer: "PreTrainedTokenizerFast"
    ) -> tuple[dict[str, list[list[int]]], Sequence[int]]:
        """Tokenises at least one row as `encode` does.

        Returns:
            Name of a model input -> one list of ids per window; number of the row of each window.
        """
        found = cls.encode(rows, (), section, tokenizer)
        return found.inputs, found.question_of.tolist()

    @staticmethod
    def tuning_metric(first: str) -> str:
        """Returns the metric that decides in tuning, given the first one of the recipe."""
        return first

    def encoded_by(self, tokenizer: "PreTrainedTokenizerFast") -> "Windows":
        """Returns the same questions, tokenised by another tokenizer into windows of the same length."""
        if not len(self):
            return self
        # Where nothing is cut, any larger length gives the same windows; they must be longer than their overlap.
        least = self.settings.max_question_length + self.settings.stride + 4
        return windows_of(self.questions, tokenizer, max(int(self.lengths.max()), least), self.settings)

    @staticmethod
    def token_counts(counts: Sequence[int], section: Task) -> list[int]:
        """Returns the lengths of the windows that a row is encoded as.

        Args:
            counts: Number of tokens of question and context, without special tokens.
            section: The task's section.
        """
        question = min(counts[0], section.windows.max_question_length) + 3
        width = section.max_seq_length - question  # context tokens per window
        lengths = [question + min(counts[1], width)]
        rest = counts[1] - width
        while rest > 0:
            lengths.append(question + min(width, rest + section.windows.stride))
            rest -= width - section.windows.stride
        return lengths

    def without_answer(self) -> int:
        """Returns the number of questions whose answer no window contains."""
        found = set(self.question_of[(self.starts > 0) | (self.ends > 0)].tolist())
        return len(self.questions) - len(found)

    def predicted(self, logits: Sequence[np.ndarray]) -> list[str]:
        """Returns the best answer to each question: the largest start + end logit over all of its windows.

        Args:
            logits: One array [2, length] per window.
        """
        best: list[tuple[float, str]] = [(-np.inf, "")] * len(self.questions)
        for scores, offsets, number in zip(logits, self.offsets, self.question_of, strict=True):
            found = _best_span(scores, offsets[:, 0] >= 0, self.settings)
            if found is not None and found[0] > best[number][0]:
                value, first, last = found
                text = self.questions[number].context[offsets[first, 0] : offsets[last, 1]]
                best[number] = (value, text)
        return [text for _, text in best]


def _best_span(scores: np.ndarray, allowed: np.ndarray, settings: AnswerWindows) -> tuple[float, int, int] | None:
    """Score, first and last token of the best span of the n best starts and ends; None: no span is allowed."""
    starts, ends = (_largest(np.where(allowed, row, -np.inf), settings.n_best) for row in scores)
    sums = scores[0][starts][:, None] + scores[1][ends][None, :]
    lengths = ends[None, :] - starts[:, None] + 1
    sums = np.where((lengths >= 1) & (lengths <= settings.max_answer_length), sums, -np.inf)
    if not sums.size or not np.isfinite(sums.max()):
        return None
    first, last = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[first, last]), int(starts[first]), int(ends[last])


def _largest(row: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` largest finite values, in descending order of value."""
    order = np.argsort(-row, kind="stable")[:count]
    return order[np.isfinite(row[order])]


def read_question(where: str, texts: tuple[str, ...], answers: Any) -> Question:
    """Parses a row of question, context and answers.

    Args:
        where: Location of the row, for errors.
        texts: Question and context.
        answers: SQuAD's `{text: […], answer_start: […]}`.

    Raises:
        UserError: The answers have another form, there are none, or one is not in the context.
    """
    question, context = texts
    form = '{"text": ["an answer"], "answer_start": [17]}'
    try:
        found = [_answer(*pair) for pair in zip(_list(answers["text"]), _list(answers["answer_start"]), strict=True)]
    except (TypeError, KeyError, ValueError):
        raise UserError("the answers are not in SQuAD's form", where=where, instead=form) from None
    if not found:
        instead = f"{form}, or leave the row out with drop_unanswerable: true"
        raise UserError("the question has no answer", where=where, instead=instead)
    for text, start in found:
        if start < 0 or not text or context[start : start + len(text)] != text:
            at = context.find(text) if text else -1
            instead = f"answer_start {at}" if at >= 0 else "an answer that occurs verbatim in the context"
            raise UserError(
                f"the answer {text!r} is not at character {start} of the context", where=where, instead=instead
            )
    return Question(where, question, context, tuple(t for t, _ in found), tuple(s for _, s in found))


def is_unanswerable(answers: Any) -> bool:
    """Whether the answers of a row are SQuAD 2.0's for a question without an answer."""
    return isinstance(answers, dict) and answers.get("text") == [] and answers.get("answer_start") == []


def _list(values: Any) -> list[Any]:
    """Accepts lists only: iterating over a text would yield its characters."""
    if not isinstance(values, list):
        raise TypeError
    return values


def _answer(text: Any, start: Any) -> tuple[str, int]:
    """Accepts 26.0 as a position too: tools write it for a column of integers with missing values."""
    if not isinstance(text, str) or type(start) not in (int, float) or start % 1 != 0:
        raise TypeError
    return text, int(start)


def windows_of(
    questions: list[Question], tokenizer: "PreTrainedTokenizerFast", length: int, settings: AnswerWindows
) -> Windows:
    """Tokenises questions into windows `[CLS] question [SEP] part of the context [SEP]`.

    The parts of neighbouring windows overlap by `settings.stride` tokens.
    """
    names = tokenizer.model_input_names
    inputs: dict[str, list[list[int]]] = {name: [] for name in names}
    spans: list[tuple[int, int]] = []
    owners: list[int] = []
    offsets: list[np.ndarray] = []
    for first in range(0, len(questions), _BATCH):
        batch = questions[first : first + _BATCH]
        encoded = tokenizer(
            [_cut(q.question, tokenizer, settings.max_question_length) for q in batch],
            [q.context for q in batch],
            truncation="only_second",
            max_length=length,
            stride=settings.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for window, number in enumerate(encoded["overflow_to_sample_mapping"]):
            of_context = np.array([part == 1 for part in encoded.sequence_ids(window)])
            where = np.where(of_context[:, None], np.array(encoded["offset_mapping"][window], dtype=np.int32), -1)
            extend_to_words(where, batch[number].context)
            for name in names:
                inputs[name].append(encoded[name][window])
            decoded = partial(_decoded, tokenizer, encoded["input_ids"][window])
            spans.append(_answer_tokens(batch[number], where, decoded))
            owners.append(first + number)
            offsets.append(where)
    starts, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    return Windows(questions, inputs, starts, ends, np.array(owners, dtype=np.int64), offsets, settings)


def _cut(question: str, tokenizer: "PreTrainedTokenizerFast", length: int) -> str:
    """Truncates a question to `length` tokens; leading white space would count as one."""
    question = question.strip()
    ends = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return question[: ends[length - 1][1]] if len(ends) > length else question


def _decoded(tokenizer: "PreTrainedTokenizerFast", ids: list[int], first: int, last: int) -> str:
    return str(tokenizer.decode(ids[first : last + 1]))


def extend_to_words(offsets: np.ndarray, context: str) -> None:
    """Moves starts of tokens back over visible characters that no token covers, in place.

    The offsets of some tokenizers begin one character late at the first token of a word.
    """
    inside = np.flatnonzero(offsets[:, 0] >= 0)
    characters = np.frombuffer(context.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    starts, ends = offsets[inside[1:], 0], offsets[inside[:-1], 1]
    uncovered = (starts > ends) & (characters[starts - 1] > ord(" "))  # a blank precedes most tokens
    for number in np.flatnonzero(uncovered):
        before, token = inside[number], inside[number + 1]
        gap = context[offsets[before, 1] : offsets[token, 0]]
        begun = len(gap)
        while begun and unicodedata.category(gap[begun - 1])[0] in _VISIBLE:
            begun -= 1
        offsets[token, 0] -= len(gap) - begun


def _answer_tokens(question: Question, offsets: np.ndarray, decoded: Callable[[int, int], str]) -> tuple[int, int]:
    """First and last token of the first correct answer; (0, 0) where the window does not contain all of it.

    Args:
        question: The question.
        offsets: Start and end of each token in the context, [length, 2]; -1 outside the context.
        decoded: Returns the text of the tokens from a first to a last one, for tokenizers whose offsets are wrong.
    """
    answer = question.answers[0]
    start = question.starts[0] + len(answer) - len(answer.lstrip())
    end = question.starts[0] + len(answer.rstrip())
    of_context = offsets[:, 0] >= 0
    inside = np.flatnonzero(of_context & (offsets[:, 1] > start) & (offsets[:, 0] < end))
    if len(inside) and offsets[inside[0], 0] <= start and offsets[inside[-1], 1] >= end:
        return int(inside[0]), int(inside[-1])
    near = np.flatnonzero(of_context & (offsets[:, 1] >= start - 1) & (offsets[:, 0] <= end + 1))
    if not len(near):
        return 0, 0
    wanted = _letters(answer)
    for first in near[:_NEAR]:
        for last in near[-_NEAR:]:
            if wanted and first <= last and _letters(decoded(int(first), int(last))) == wanted:
                return int(first), int(last)
    return 0, 0


def _letters(text: str) -> str:
    """Returns a text without case, accents and white space, as the vocabularies of all tokenizers spell it."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in plain if not unicodedata.combining(c) and not c.isspace())
