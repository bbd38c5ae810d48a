"""Token classification: tags of words on word pieces, windows over long sentences, and tags from logits. No torch.

The first piece of a word has its tag, and decides it. Further pieces (##s) have none, nor have special tokens. Where a
tokenizer cuts one word of the data into several of its own (IL - 2), the first piece of each of them has a tag as well,
of the same entity: transformers' pipeline reads them as words, and should find the same entities.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from toolkit.core.errors import UserError
from toolkit.data.kinds import entities
from toolkit.data.kinds.examples import Tokenised
from toolkit.data.kinds.tagged_rows import Tagged
from toolkit.data.question_answering import extend_to_words
from toolkit.recipe import Kind, Task
from toolkit.recipe.kinds.token_classification import split_tag, types_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from toolkit.data.task_rows import TaskRow

UNTAGGED = -100  # tag of a token without one; the losses leave it out
_BATCH = 500  # sentences tokenised at a time: their character offsets are large
_NO_TOKEN = -1


@dataclass(frozen=True)
class Tokens(Tokenised):
    """Sentences of tagged words, each in one or several windows. Item i is window i, as model input.

    Tags are numbers in the order of the task's labels: O, then B and I of each type.

    Attributes:
        sentences: Text of each sentence, and first and last (exclusive) character of each of its words.
        truth: Tags of the words, [words] int64 per sentence; metrics count these, not the windows.
        inputs: Name of a model input -> one list of ids per window.
        sentence_of: Index of the sentence that each window belongs to, [windows].
        tags: Tag of each token, `UNTAGGED` for most, one list per window.
        places: Window and token that decide the tag of each word, [words of all sentences, 2]; -1: no token has it. A
            word that shares its place with the word before is a part of the same token.
        stride: Number of tokens that neighbouring windows have in common.
    """

    sentences: list[tuple[str, tuple[tuple[int, int], ...]]]
    truth: list[np.ndarray]
    inputs: dict[str, list[list[int]]]
    sentence_of: np.ndarray
    tags: list[list[int]]
    places: np.ndarray
    stride: int
    kind: ClassVar[Kind] = "token_classification"
    examples_per_row: ClassVar[float] = 1.02
    metrics: ClassVar[dict[str, Callable[[Any, Any], float]]] = {
        "f1": entities.f1,
        "precision": entities.precision,
        "recall": entities.recall,
    }

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**{name: ids[index] for name, ids in self.inputs.items()}, "tags": self.tags[index]}

    @property
    def tagged(self) -> np.ndarray:
        """Number of tokens with a tag in each window, [windows] int64."""
        counted = (sum(tag != UNTAGGED for tag in tags) for tags in self.tags)
        return np.fromiter(counted, dtype=np.int64, count=len(self))

    @classmethod
    def targets(cls, rows: "Sequence[TaskRow]", labels: Sequence[str]) -> list[np.ndarray]:
        """Returns the tags of the words of rows, [words] int64 each.

        Raises:
            UserError: A tag has a type that is not one of the task's; the message names row or line.
        """
        numbers = {label: number for number, label in enumerate(labels)}
        return [np.array(_numbered(row.label, numbers), dtype=np.int64) for row in rows]

    @classmethod
    def encode(
        cls, rows: "Sequence[TaskRow]", labels: Sequence[str], section: Task, tokenizer: "PreTrainedTokenizerFast"
    ) -> "Tokens":
        """Tokenises rows; texts longer than the section's `max_seq_length` are split into windows."""
        sentences = [(row.texts[0], row.label.spans) for row in rows]
        return _encoded(sentences, cls.targets(rows, labels), tokenizer, section.max_seq_length, section.windows.stride)

    @classmethod
    def inputs_of(
        cls, rows: "Sequence[TaskRow]", section: Task, tokenizer: "PreTrainedTokenizerFast"
    ) -> tuple[dict[str, list[list[int]]], Sequence[int]]:
        """Tokenises at least one row as `encode` does, without reading its tags.

        Returns:
            Name of a model input -> one list of ids per window; number of the row of each window.
        """
        sentences = [(row.texts[0], row.label.spans) for row in rows]
        none = [np.zeros(len(spans), dtype=np.int64) for _, spans in sentences]
        found = _encoded(sentences, none, tokenizer, section.max_seq_length, section.windows.stride)
        return found.inputs, found.sentence_of.tolist()

    def encoded_by(self, tokenizer: "PreTrainedTokenizerFast") -> "Tokens":
        """Returns the same sentences, tokenised by another tokenizer into windows of the same length."""
        if not len(self):
            return self
        # Where nothing is cut, any larger length gives the same windows; they must be longer than their overlap.
        length = max(int(self.lengths.max()), self.stride + 3)
        return _encoded(self.sentences, self.truth, tokenizer, length, self.stride)

    @staticmethod
    def token_counts(counts: Sequence[int], section: Task) -> list[int]:
        """Returns the lengths of the windows that a row is encoded as.

        Args:
            counts: Number of tokens of the row's text, without special tokens.
            section: The task's section.
        """
        width, stride = section.max_seq_length - 2, section.windows.stride
        lengths, rest = [min(counts[0], width) + 2], counts[0] - width
        while rest > 0:
            lengths.append(min(width, rest + stride) + 2)
            rest -= width - stride
        return lengths

    @staticmethod
    def tuning_metric(first: str) -> str:
        """Returns the metric that decides in tuning, given the first one of the recipe."""
        return first

    def predicted(self, logits: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the tags of the words, [words] per sentence: each is that of the largest logit of its token.

        A word without a token of its own has O, or the tag inside of the entity whose token it shares.

        Args:
            logits: One array [C, length] per window.
        """
        ends = np.cumsum([len(tags) for tags in self.truth])
        if not len(self.places):
            return [np.zeros(0, dtype=np.int64) for _ in self.truth]
        best = np.concatenate([scores.argmax(axis=0) for scores in logits])
        starts = np.cumsum([0, *(scores.shape[1] for scores in logits[:-1])])
        window, token = self.places.T
        tags = np.where(window == _NO_TOKEN, 0, best[starts[window] + token])
        tags = np.where(_shared(self.places), _inside(tags), tags)
        return np.split(tags, ends[:-1])


def entity_counts(labels: Sequence[str], tags: Sequence[np.ndarray]) -> dict[str, int]:
    """Returns how many entities of each type some sentences have, for a task with these labels."""
    found = entities.counts(tags, tags)
    return {name: found.get(number, (0, 0, 0))[2] for number, name in enumerate(types_of(labels))}


def _numbered(row: Tagged, numbers: dict[str, int]) -> list[int]:
    for word, tag in enumerate(row.tags):
        if tag not in numbers:
            kind = (split_tag(tag) or ("", tag))[1]
            known = ", ".join(types_of(tuple(numbers)))
            what = f"the type {kind!r} is not one of the task's"
            raise UserError(what, where=row.place(word), instead=f"one of {known} (`rows` can exclude rows)")
    return [numbers[tag] for tag in row.tags]


def _inside(tags: np.ndarray) -> np.ndarray:
    """Returns I for B, and other tags as they are."""
    return tags + tags % 2


def _shared(places: np.ndarray) -> np.ndarray:
    """Whether each word shares its token with the word before, [words]."""
    before = np.roll(places, 1, axis=0)
    before[:1] = _NO_TOKEN
    same: np.ndarray = (places == before).all(axis=1) & (places[:, 0] != _NO_TOKEN)
    return same


def _encoded(
    sentences: list[tuple[str, tuple[tuple[int, int], ...]]],
    truth: list[np.ndarray],
    tokenizer: "PreTrainedTokenizerFast",
    length: int,
    stride: int,
) -> Tokens:
    """Tokenises sentences into windows `[CLS] part of the text [SEP]` that overlap by `stride` tokens."""
    names = tokenizer.model_input_names
    inputs: dict[str, list[list[int]]] = {name: [] for name in names}
    tags: list[list[int]] = []
    owners: list[int] = []
    places: list[np.ndarray] = []
    for first in range(0, len(sentences), _BATCH):
        batch = sentences[first : first + _BATCH]
        encoded = tokenizer(
            [text for text, _ in batch],
            truncation=True,
            max_length=length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        of_window = encoded["overflow_to_sample_mapping"]
        pieces = _pieces(encoded, of_window, batch)
        found = _places(pieces, sum(len(spans) for _, spans in batch))
        begins = _word_starts(tokenizer, [encoded.tokens(window) for window in range(len(of_window))])
        lengths = [len(ids) for ids in encoded["input_ids"]]
        tags += _token_tags(pieces, found, np.concatenate(truth[first : first + _BATCH]), begins, lengths)
        found[:, 0] += np.where(found[:, 0] == _NO_TOKEN, 0, len(owners))
        places.append(found)
        owners += [first + number for number in of_window]
        for name in names:
            inputs[name] += encoded[name]
    every = np.concatenate(places) if places else np.zeros((0, 2), dtype=np.int64)
    return Tokens(sentences, truth, inputs, np.array(owners, dtype=np.int64), tags, every, stride)


@dataclass(frozen=True)
class _Pieces:
    """Every pair of a token and a word that it overlaps, in the order of the tokens.

    Attributes:
        word: Number of the word among those of all sentences, [pairs].
        window: Number of the window, [pairs].
        token: Number of the token in the window, [pairs].
        start: First character of the token, [pairs].
        room: Number of tokens of text between the token and the nearer end of the window, [pairs].
    """

    word: np.ndarray
    window: np.ndarray
    token: np.ndarray
    start: np.ndarray
    room: np.ndarray


def _pieces(
    encoded: Any, of_window: Sequence[int], sentences: Sequence[tuple[str, tuple[tuple[int, int], ...]]]
) -> _Pieces:
    """Returns the tokens of the words of some sentences.

    Args:
        encoded: The tokenizer's output for the sentences, in windows.
        of_window: Number of the sentence of each window.
        sentences: Their texts and the characters of their words.
    """
    words = np.cumsum([0, *(len(spans) for _, spans in sentences)])
    found = []
    for window, number in enumerate(of_window):
        text, spans = sentences[number]
        is_text = np.array([part == 0 for part in encoded.sequence_ids(window)])
        offsets = np.where(is_text[:, None], np.array(encoded["offset_mapping"][window], dtype=np.int64), -1)
        extend_to_words(offsets, text)
        starts, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
        inside = np.flatnonzero(is_text & (offsets[:, 1] > offsets[:, 0]))
        first = np.searchsorted(ends, offsets[inside, 0], side="right")  # the first word that ends after its start
        count = np.maximum(0, np.searchsorted(starts, offsets[inside, 1], side="left") - first)
        token = np.repeat(inside, count)
        word = np.repeat(first - np.cumsum(count) + count, count) + np.arange(len(token))
        of_text = np.flatnonzero(is_text)
        room = np.minimum(token - of_text[:1], of_text[-1:] - token)
        found.append([word + words[number], np.full_like(token, window), token, offsets[token, 0], room])
    return _Pieces(*np.concatenate(found, axis=1))


def _places(pieces: _Pieces, words: int) -> np.ndarray:
    """Returns window and token that decide each word, [words, 2]; -1 for a word without a token.

    It is the first token of the word, in the window that has the most tokens on both sides of it.
    """
    found = np.full((words, 2), _NO_TOKEN, dtype=np.int64)
    word, window, start = pieces.word, pieces.window, pieces.start
    earliest = np.full(words, np.iinfo(np.int64).max)
    np.minimum.at(earliest, word, start)
    first = start == earliest[word]
    # Bytes of one character are several tokens with the same offsets; the first of them begins the word.
    first[1:] &= (word[1:] != word[:-1]) | (window[1:] != window[:-1]) | (start[1:] != start[:-1])
    order = np.flatnonzero(first)
    order = order[np.lexsort((window[order], -pieces.room[order], word[order]))]
    known, chosen = np.unique(word[order], return_index=True)
    found[known] = np.stack([window, pieces.token], axis=1)[order[chosen]]
    return found


def _word_starts(tokenizer: "PreTrainedTokenizerFast", windows: Sequence[Sequence[str]]) -> np.ndarray:
    """Whether the tokens of windows begin a word of the tokenizer, one after the other.

    Those of tokenizers that mark the pieces that do not (##). In others, blanks alone separate words.
    """
    prefix: str | None = getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None)
    return np.array([prefix and not token.startswith(prefix) for tokens in windows for token in tokens], dtype=bool)


def _token_tags(
    pieces: _Pieces, places: np.ndarray, truth: np.ndarray, begins: np.ndarray, lengths: Sequence[int]
) -> list[list[int]]:
    """Returns the tag of each token of each window, `UNTAGGED` where there is none.

    Args:
        pieces: The tokens of the words.
        places: Window and token that decide each word, [words, 2].
        truth: Tag of each word, [words].
        begins: Whether each token begins a word of the tokenizer, [tokens of all windows].
        lengths: Number of tokens of each window.
    """
    ends = np.cumsum(lengths)
    at = (ends - lengths)[pieces.window] + pieces.token  # index of each pair's token among those of all windows
    found = np.full(int(ends[-1]), UNTAGGED, dtype=np.int64)
    # Pairs in reverse: of several words in one token, the first gives the tag.
    here = (places[pieces.word, 0] == pieces.window)[::-1]
    word, at = pieces.word[::-1][here], at[::-1][here]
    decides = places[word, 1] == pieces.token[::-1][here]
    more = ~decides & begins[at]
    found[at[more]] = _inside(truth[word[more]])
    found[at[decides]] = truth[word[decides]]
    return [part.tolist() for part in np.split(found, ends[:-1])]
