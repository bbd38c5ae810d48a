"""Pre-training text: streamed, tokenised once into memory-mapped files, and masked as BERT does it."""

import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from toolkit import sources, tasks
from toolkit.errors import UserError
from toolkit.recipe import Corpus, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_VALID_EVERY = 20  # one document in so many is for validation
_LONGEST_DOCUMENT = 100  # paragraphs; a file without blank lines is cut into documents of this length
_BATCH = 512  # texts tokenised at a time


@dataclass(frozen=True)
class Sequences:
    """Sequences of different lengths, memory-mapped. Item i: [length] int64, with [CLS] and [SEP].

    Attributes:
        ids: All sequences, one after the other.
        ends: Where in `ids` each sequence ends, [n].
    """

    ids: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(len(self))[index]
        start = self.ends[index - 1] if index else 0
        return self.ids[start : self.ends[index]].astype(np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, [n] int64."""
        return np.diff(self.ends, prepend=0)


@dataclass(frozen=True)
class CorpusData:
    """A tokenised corpus. Train and validation have no document in common."""

    train: Sequences
    valid: Sequences

    def summary(self) -> dict[str, int]:
        """Sequences and tokens of both splits, for the manifest."""
        splits = {"train": self.train, "valid": self.valid}
        counts = {f"{name}_sequences": len(split) for name, split in splits.items()}
        return counts | {f"{name}_tokens": split.ids.size for name, split in splits.items()}


def load_corpus(
    section: Corpus, corpus_tasks: Mapping[str, Task], tokenizer: "PreTrainedTokenizerFast", work: Path
) -> CorpusData:
    """Tokenises the corpus into `work/corpus`, or opens what lies there. Needs little memory, however long the text.

    The tasks' train texts come first, then the files; reading stops at `section.limit` sequences.

    Args:
        section: Which texts, and how they are cut.
        corpus_tasks: The tasks that `section.tasks` names.
        tokenizer: Must be the one that `work/corpus` was made with, if that is there.
        work: Scratch folder of the stage.

    Raises:
        UserError: A file is missing or not text, there is too little text, or `max_seq_length` is more than the model
            takes.
    """
    if section.max_seq_length > tokenizer.model_max_length:
        raise UserError(
            f"max_seq_length {section.max_seq_length} is more than the model's {tokenizer.model_max_length} positions",
            where="corpus",
            instead=f"max_seq_length: {tokenizer.model_max_length}",
        )
    folder = work / "corpus"
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)  # half the size where words allow it
    if not folder.is_dir():
        partial = work / "corpus.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _tokenise(_texts(section, corpus_tasks), section, tokenizer, partial, dtype)
        partial.rename(folder)  # so a folder of this name is always whole
    return CorpusData(_open(folder / "train", dtype), _open(folder / "valid", dtype))


def masked_count(length: int, probability: float) -> int:
    """How many tokens of a sequence of `length` ([CLS] and [SEP] included) are to be guessed: a share, at least one."""
    return max(1, round(probability * (length - 2)))


def mask_tokens(
    ids: np.ndarray, rng: np.random.Generator, tokenizer: "PreTrainedTokenizerFast", probability: float
) -> dict[str, np.ndarray]:
    """Hides tokens to be guessed: BERT's rule (Devlin et al. 2019, section 3.1).

    `masked_count` tokens are picked, never a special one. Of these 80 % become [MASK], 10 % a random word, 10 % stay.

    Returns:
        `input_ids` and `labels`, both [length] int64; labels are -100 where nothing is to be guessed.
    """
    words = np.flatnonzero(~np.isin(ids, tokenizer.all_special_ids))
    picked = rng.choice(words, size=min(len(words), masked_count(len(ids), probability)), replace=False)
    inputs, labels = ids.astype(np.int64), np.full(len(ids), -100, dtype=np.int64)
    labels[picked] = inputs[picked]
    fate = rng.random(len(picked))
    inputs[picked[fate < 0.8]] = tokenizer.mask_token_id
    swapped = picked[fate >= 0.9]
    inputs[swapped] = rng.integers(tokenizer.vocab_size, size=len(swapped))
    return {"input_ids": inputs, "labels": labels}


def pad_masked(items: Sequence[Mapping[str, np.ndarray]], pad_id: int) -> dict[str, Tensor]:
    """One batch of masked sequences: input_ids, labels and attention_mask, each [n, longest] int64."""
    lengths = np.array([len(item["input_ids"]) for item in items])
    batch = {"attention_mask": (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)}
    for name, value in (("input_ids", pad_id), ("labels", -100)):
        batch[name] = np.full((len(items), lengths.max()), value, dtype=np.int64)
        for row, item in zip(batch[name], items, strict=True):
            row[: len(item[name])] = item[name]
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def _texts(section: Corpus, corpus_tasks: Mapping[str, Task]) -> Iterator[tuple[int, str]]:
    """(document number, paragraph). Each text of a task is a document; in files, blank lines part them."""
    document = 0
    for name in section.tasks:
        for text in tasks.train_texts(corpus_tasks[name]):
            yield document, text
            document += 1
    for file in section.files:
        paragraphs = 0
        for line in sources.lines(sources.local_file(file)):
            text = line.strip()
            if paragraphs and (not text or paragraphs == _LONGEST_DOCUMENT):
                document, paragraphs = document + 1, 0
            if text:
                yield document, text
                paragraphs += 1
        document += 1


def _tokenise(
    texts: Iterable[tuple[int, str]],
    section: Corpus,
    tokenizer: "PreTrainedTokenizerFast",
    folder: Path,
    dtype: np.dtype,
) -> None:
    with (
        _Writer(folder / "train", section, tokenizer, dtype, section.limit) as train,
        _Writer(
            folder / "valid", section, tokenizer, dtype, section.limit and max(1, section.limit // _VALID_EVERY)
        ) as valid,
    ):
        texts = iter(texts)
        while (batch := list(itertools.islice(texts, _BATCH))) and not train.full:
            # The tokenizer proper: no offsets, no padding, a third of the time of calling the wrapper.
            encoded = tokenizer.backend_tokenizer.encode_batch_fast([t for _, t in batch], add_special_tokens=False)
            for (document, _), encoding in zip(batch, encoded, strict=True):
                writer = valid if document % _VALID_EVERY == 0 else train
                writer.add(encoding.ids, document)
    if not (train.written and valid.written):
        raise UserError(
            "too little text: it takes two documents, one to train on and one to validate",
            where="corpus",
            instead="more text, with blank lines between the documents of a file",
        )


class _Writer:
    """Appends the sequences of one split to its files; keeps at most one unfinished sequence in memory."""

    def __init__(
        self,
        path: Path,
        section: Corpus,
        tokenizer: "PreTrainedTokenizerFast",
        dtype: np.dtype,
        limit: int | None,
    ) -> None:
        self._first, self._last = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
        self._width = section.max_seq_length - 2
        self._pack, self._dtype, self._limit = section.pack, dtype, limit
        self._rest: list[int] = []  # the unfinished sequence
        self._document = -1
        self._path, self._end, self.written = path, 0, 0

    def __enter__(self) -> "_Writer":
        self._ids: BinaryIO = self._path.with_suffix(".ids").open("wb")
        self._ends: BinaryIO = self._path.with_suffix(".ends").open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        if self._rest:
            self._write(self._rest)
        self._ids.close()
        self._ends.close()

    @property
    def full(self) -> bool:
        return self._limit is not None and self.written >= self._limit

    def add(self, ids: list[int], document: int) -> None:
        """Takes the tokens of one text; a [SEP] parts two documents in one packed sequence."""
        if not self._pack:
            self._write(ids[: self._width])
            return
        if self._rest and document != self._document:
            self._rest += self._last
        self._document = document
        self._rest += ids
        whole = len(self._rest) // self._width * self._width
        for start in range(0, whole, self._width):
            self._write(self._rest[start : start + self._width])
        self._rest = self._rest[whole:]

    def _write(self, ids: list[int]) -> None:
        if not ids or self.full:
            return
        sequence = np.array(self._first + ids + self._last, dtype=self._dtype)
        self._end += len(sequence)
        self.written += 1
        self._ids.write(sequence.tobytes())
        self._ends.write(np.int64(self._end).tobytes())


def _open(path: Path, dtype: np.dtype) -> Sequences:
    return Sequences(
        np.memmap(path.with_suffix(".ids"), dtype=dtype, mode="r"),
        np.memmap(path.with_suffix(".ends"), dtype=np.int64, mode="r"),
    )
