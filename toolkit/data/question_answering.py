"""Question answering by cutting answers out of a text: windows over long contexts, and answers from their logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from toolkit.core.errors import UserError
from toolkit.data.metrics import answer_matches, answer_overlap, mean_over_examples
from toolkit.recipe import AnswerWindows, Kind, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from toolkit.data.task_rows import TaskRow

_BATCH = 500  # questions tokenised at a time: their character offsets are large


@dataclass(frozen=True)
class Question:
    """A question about a text.

    Attributes:
        where: File and line, or what names the row.
        answers: The right answers, as they stand in the context.
        starts: Character of the context at which each begins.
    """

    where: str
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Windows:
    """Questions, each with one window of its context or several. Item i is window i, as a model takes it.

    Attributes:
        questions: What is asked; what is counted and scored.
        inputs: Name of a model input -> one list of ids per window.
        starts: Token at which the first right answer begins, [windows] int64; 0 ([CLS]) where it is not in the window.
        ends: Its last token.
        question_of: Number of the question that each window belongs to, [windows].
        offsets: First character of the context, and the one behind the last, of each token, [length, 2]; -1 for tokens
            that are not the context's.
        settings: How answers are put together.
    """

    questions: list[Question]
    inputs: dict[str, list[list[int]]]
    starts: np.ndarray
    ends: np.ndarray
    question_of: np.ndarray
    offsets: list[np.ndarray]
    settings: AnswerWindows
    kind: ClassVar[Kind] = "question_answering"
    per_token: ClassVar[bool] = True
    texts_repeat: ClassVar[bool] = True
    examples_per_row: ClassVar[float] = 1.05
    metrics: ClassVar[dict[str, Callable[[Any, Any], float]]] = {
        "f1": mean_over_examples(answer_overlap),
        "exact_match": mean_over_examples(answer_matches),
    }

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        positions = {"start_positions": int(self.starts[index]), "end_positions": int(self.ends[index])}
        return {**{name: ids[index] for name, ids in self.inputs.items()}, **positions}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window, [windows] int64."""
        return np.fromiter(map(len, self.inputs["input_ids"]), dtype=np.int64, count=len(self))

    @property
    def truth(self) -> list[tuple[str, ...]]:
        """The right answers to each question."""
        return [question.answers for question in self.questions]

    @classmethod
    def targets(cls, rows: "Sequence[TaskRow]", labels: Sequence[str]) -> list[Question]:
        """The questions of rows.

        Raises:
            UserError: The answers of a row are malformed; the message names the row.
        """
        return [read_question(row.where, row.texts, row.label) for row in rows]

    @classmethod
    def encode(
        cls, rows: "Sequence[TaskRow]", labels: Sequence[str], section: Task, tokenizer: "PreTrainedTokenizerFast"
    ) -> "Windows":
        """Tokenises rows; contexts longer than the section's `max_seq_length` are cut into windows."""
        return windows_of(cls.targets(rows, labels), tokenizer, section.max_seq_length, section.windows)

    @staticmethod
    def token_counts(counts: Sequence[int], section: Task) -> list[int]:
        """Lengths of the windows that a question becomes.

        Args:
            counts: Tokens of question and context, without special tokens.
            section: The task's section.
        """
        question = min(counts[0], section.windows.max_question_length) + 3
        width = section.max_seq_length - question  # of a window's piece of the context
        lengths = [question + min(counts[1], width)]
        rest = counts[1] - width
        while rest > 0:
            lengths.append(question + min(width, rest + section.windows.stride))
            rest -= width - section.windows.stride
        return lengths

    def predicted(self, logits: Sequence[np.ndarray]) -> list[str]:
        """The best answer to each question: the largest start + end logit over all of its windows.

        Args:
            logits: [2, length] of each window.
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
    """Score, first and last token of the best answer among the n best starts and ends; None: none is allowed."""
    starts, ends = (_largest(np.where(allowed, row, -np.inf), settings.n_best) for row in scores)
    sums = scores[0][starts][:, None] + scores[1][ends][None, :]
    lengths = ends[None, :] - starts[:, None] + 1
    sums = np.where((lengths >= 1) & (lengths <= settings.max_answer_length), sums, -np.inf)
    if not sums.size or not np.isfinite(sums.max()):
        return None
    first, last = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[first, last]), int(starts[first]), int(ends[last])


def _largest(row: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` largest finite values, the largest first."""
    order = np.argsort(-row, kind="stable")[:count]
    return order[np.isfinite(row[order])]


def read_question(where: str, texts: tuple[str, ...], answers: Any) -> Question:
    """A row of the columns question, context and answers.

    Args:
        where: What an error names.
        texts: Question and context.
        answers: SQuAD's `{text: […], answer_start: […]}`.

    Raises:
        UserError: The answers have another form, there is none, or one is not in the context.
    """
    question, context = texts
    form = '{"text": ["an answer"], "answer_start": [17]}'
    try:
        found = [_answer(*pair) for pair in zip(_list(answers["text"]), _list(answers["answer_start"]), strict=True)]
    except (TypeError, KeyError, ValueError):
        raise UserError("the answers are not in SQuAD's form", where=where, instead=form) from None
    if not found:
        raise UserError("a question without an answer", where=where, instead=f"{form}, or leave the row out")
    for text, start in found:
        if start < 0 or not text or context[start : start + len(text)] != text:
            at = context.find(text) if text else -1
            instead = f"answer_start {at}" if at >= 0 else "an answer that stands in the context, letter by letter"
            raise UserError(
                f"the answer {text!r} is not at character {start} of the context", where=where, instead=instead
            )
    return Question(where, question, context, tuple(t for t, _ in found), tuple(s for _, s in found))


def _list(values: Any) -> list[Any]:
    """A text would be taken letter by letter."""
    if not isinstance(values, list):
        raise TypeError
    return values


def _answer(text: Any, start: Any) -> tuple[str, int]:
    """26.0 is a place too: tools write it for a column of whole numbers as soon as one of them is missing."""
    if not isinstance(text, str) or type(start) not in (int, float) or start % 1 != 0:
        raise TypeError
    return text, int(start)


def windows_of(
    questions: list[Question], tokenizer: "PreTrainedTokenizerFast", length: int, settings: AnswerWindows
) -> Windows:
    """Tokenises: [CLS] question [SEP] a piece of the context [SEP], neighbours overlapping by `stride` tokens."""
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
            for name in names:
                inputs[name].append(encoded[name][window])
            spans.append(_answer_tokens(batch[number], where))
            owners.append(first + number)
            offsets.append(where)
    starts, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    return Windows(questions, inputs, starts, ends, np.array(owners, dtype=np.int64), offsets, settings)


def _cut(question: str, tokenizer: "PreTrainedTokenizerFast", length: int) -> str:
    """The first `length` tokens of a question; white space before it would count as one."""
    question = question.strip()
    ends = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return question[: ends[length - 1][1]] if len(ends) > length else question


def _answer_tokens(question: Question, offsets: np.ndarray) -> tuple[int, int]:
    """First and last token of the first right answer; (0, 0) where the window does not hold all of it."""
    start, end = question.starts[0], question.starts[0] + len(question.answers[0])
    inside = np.flatnonzero((offsets[:, 0] >= 0) & (offsets[:, 1] > start) & (offsets[:, 0] < end))
    if not len(inside) or offsets[inside[0], 0] > start or offsets[inside[-1], 1] < end:
        return 0, 0
    return int(inside[0]), int(inside[-1])
