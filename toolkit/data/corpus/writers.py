"""Writers of a tokenised corpus: they append the tokens of one split to its files, and keep little in memory."""

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from typing_extensions import Self

from toolkit.data.corpus.parts import CorpusPart
from toolkit.data.corpus.segment_pairs import PairSequences
from toolkit.data.corpus.sequences import SPECIALS, Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Writer:
    """Appends the tokens of one split to its files, text by text."""

    def __init__(
        self,
        path: Path,
        part: CorpusPart,
        tokenizer: "PreTrainedTokenizerFast",
        dtype: np.dtype,
        limit: int | None,
    ) -> None:
        self._path, self._dtype, self._limit = path, dtype, limit
        self._length, self._pack = part.section.max_seq_length, part.shape == "packed"
        self._first, self._last = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
        self._unknown = tokenizer.unk_token_id
        self._document = -1
        self.tokens = self.words = self.unknown = 0  # words: tokens other than [CLS] and [SEP]

    def __enter__(self) -> Self:
        self._ids: BinaryIO = self._path.with_suffix(".ids").open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._ids.close()

    def _append(self, ids: list[int]) -> None:
        self._ids.write(np.array(ids, dtype=self._dtype).tobytes())
        self.tokens += len(ids)
        self.words += len(ids) - ids.count(self._first[0]) - ids.count(self._last[0])
        self.unknown += ids.count(self._unknown)


class SequenceWriter(Writer):
    """Writes packed sequences, or one sequence per text; keeps at most one unfinished sequence in memory."""

    def __enter__(self) -> Self:
        self._ends: BinaryIO = self._path.with_suffix(".ends").open("wb")
        self._rest: list[int] = []  # the unfinished sequence
        self._written = 0
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        if self._rest:
            self._write(self._rest)
        self._ends.close()
        super().__exit__(*error)

    ready = True

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._limit is not None and self._written >= self._limit

    def add(self, ids: list[int], document: int) -> None:
        """Adds the tokens of one text; a [SEP] separates two documents in a packed sequence."""
        width = self._length - SPECIALS
        if not self._pack:
            self._write(ids[:width])
            return
        if self._rest and document != self._document:
            self._rest += self._last
        self._document = document
        self._rest += ids
        complete = len(self._rest) // width * width
        for start in range(0, complete, width):
            self._write(self._rest[start : start + width])
        self._rest = self._rest[complete:]

    def _write(self, ids: list[int]) -> None:
        if not ids or self.full:
            return
        self._append(self._first + ids + self._last)
        self._written += 1
        self._ends.write(np.int64(self.tokens).tobytes())


class EncodedWriter(Writer):
    """Writes sequences that the tokenizer has completed: special tokens, truncation, token types."""

    def __enter__(self) -> Self:
        self._ends: BinaryIO = self._path.with_suffix(".ends").open("wb")
        self._seconds: BinaryIO = self._path.with_suffix(".seconds").open("wb")
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self._ends.close()
        self._seconds.close()
        super().__exit__(*error)

    ready, full = True, False

    def add(self, ids: list[int], types: list[int] | None) -> None:
        """Adds a sequence and its token types; None: the tokenizer has none."""
        self._append(ids)
        self._ends.write(np.int64(self.tokens).tobytes())
        if types is not None:
            self._seconds.write(np.int64(len(ids) - sum(types)).tobytes())  # 0 … 0 1 … 1


class SentenceWriter(Writer):
    """Writes the sentences from which segment pairs are made; keeps nothing in memory."""

    def __enter__(self) -> Self:
        self._sentences: BinaryIO = self._path.with_suffix(".sentences").open("wb")
        self._documents: BinaryIO = self._path.with_suffix(".documents").open("wb")
        self._sentence_count = self._document_count = 0
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        if self._sentence_count:
            self._documents.write(np.int64(self._sentence_count).tobytes())
        self._sentences.close()
        self._documents.close()
        super().__exit__(*error)

    @property
    def ready(self) -> bool:
        """Whether there are at least two documents, so that B can be from another one than A."""
        return self._document_count >= 2

    @property
    def full(self) -> bool:
        """Whether there is enough text. A pair has fewer tokens than are read for it, since its ends are trimmed."""
        enough = self._limit is not None and self.tokens >= self._limit * self._length
        return enough and self.ready

    def add(self, ids: list[int], document: int) -> None:
        """Adds the tokens of one sentence."""
        if not ids or self.full:
            return
        if document != self._document:
            self._document_count += 1
            if self._sentence_count:
                self._documents.write(np.int64(self._sentence_count).tobytes())
        self._document = document
        self._append(ids)
        self._sentence_count += 1
        self._sentences.write(np.int64(self.tokens).tobytes())


def open_sequences(path: Path, tokenizer: "PreTrainedTokenizerFast", dtype: np.dtype) -> Sequences | PairSequences:
    """Memory-maps the files of one split.

    Args:
        path: The files, without their suffixes.
        tokenizer: The tokenizer of the sequences.
        dtype: Type of the token ids.
    """
    ids = np.memmap(path.with_suffix(".ids"), dtype=dtype, mode="r")
    if path.with_suffix(".pairs").exists():
        spans = integers(path.with_suffix(".pairs")).reshape(-1, 5)
        return PairSequences(ids, spans, tokenizer.cls_token_id, tokenizer.sep_token_id)
    ends, seconds = integers(path.with_suffix(".ends")), path.with_suffix(".seconds")
    if not seconds.exists():
        return Sequences(ids, ends)
    types = integers(seconds)
    marks = np.isin(ids, [tokenizer.cls_token_id, tokenizer.sep_token_id])
    specials = np.diff(np.cumsum(marks)[ends - 1], prepend=0)  # a pair has more than a single text
    return Sequences(ids, ends, types if len(types) else None, specials)


def integers(path: Path) -> np.ndarray:
    """Memory-maps a file of int64; an empty file, which cannot be mapped, gives an empty array."""
    return np.memmap(path, dtype=np.int64, mode="r") if path.stat().st_size else np.zeros(0, np.int64)
