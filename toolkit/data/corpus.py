"""Pre-training corpus: text is streamed and tokenised once into memory-mapped files shared by all stages of a run."""

import hashlib
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from typing_extensions import Self

from toolkit.core.errors import UserError
from toolkit.core.files import file_hash, json_hash
from toolkit.data.documents import as_read, documents
from toolkit.data.files import fetch_file
from toolkit.data.hub import hub_split
from toolkit.data.masking import require_word_marks
from toolkit.data.segment_pairs import PairSequences, sentences, write_pairs
from toolkit.data.tasks import train_texts
from toolkit.models.checkpoint import require_length
from toolkit.recipe import Corpus, Task
from toolkit.recipe.references import is_hub, train_files
from toolkit.recipe.task import settings_for_keys

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPLITS = ("train", "valid")
VALID_EVERY = 20  # every 20th document belongs to the validation split
_BATCH = 512  # paragraphs per tokenizer call
_MOSTLY_UNKNOWN = 0.9  # fraction of [UNK]; a text with more of them is in a script that the vocabulary lacks
_LOG_EVERY = 20_000_000  # tokens


@dataclass(frozen=True)
class Sequences:
    """Memory-mapped token sequences of different lengths. Item i: [length] int64, with [CLS] and [SEP].

    Attributes:
        ids: Token ids of all sequences, concatenated.
        ends: End of each sequence in `ids`, exclusive, [n].
    """

    ids: np.ndarray
    ends: np.ndarray
    specials = 2

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(len(self))[index]
        start = self.ends[index - 1] if index else 0
        return self.ids[start : self.ends[index]].astype(np.int64)

    def example(self, index: int) -> dict[str, np.ndarray]:
        """Returns the model inputs of a sequence, before masking."""
        return {"input_ids": self[index]}

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each sequence, [n] int64."""
        return np.diff(self.ends, prepend=0)

    @property
    def tokens(self) -> int:
        """Number of tokens of all sequences."""
        return int(self.ids.size)


@dataclass(frozen=True)
class CorpusData:
    """A tokenised corpus; no document is in both the train and the validation split."""

    train: Sequences | PairSequences
    valid: Sequences | PairSequences

    def summary(self) -> dict[str, int]:
        """Returns the numbers of sequences and tokens of both splits, for the manifest."""
        splits = {"train": self.train, "valid": self.valid}
        counts = {f"{name}_sequences": len(split) for name, split in splits.items()}
        return counts | {f"{name}_tokens": split.tokens for name, split in splits.items()}


def load_corpus(
    section: Corpus,
    corpus_tasks: Mapping[str, Task],
    tokenizer: "PreTrainedTokenizerFast",
    cache: Path,
    *,
    seed: int = 0,
    log: Callable[[str], None] = lambda _: None,
) -> CorpusData:
    """Tokenises the corpus into a folder of `cache`, or opens the folder made from the same texts and settings.

    Memory use is small and does not depend on the size of the text. The tasks' train texts come first, then the files;
    reading stops at `section.limit` sequences. Interrupted reading starts from the beginning, streamed text included.

    Args:
        section: The texts, and how they are cut into sequences.
        corpus_tasks: The tasks that `section.tasks` names.
        tokenizer: The tokenizer of the model that is pre-trained.
        cache: Folder shared by all stages of a run.
        seed: Seed of the segment pairs.
        log: Receives progress messages.

    Raises:
        UserError: A file is missing, not text or empty, or changes while it is read; there is too little text, the
            vocabulary does not cover it, or `max_seq_length` exceeds the model's maximum.
    """
    require_length(section.max_seq_length, tokenizer.model_max_length, "corpus")
    if section.whole_word_masking:
        require_word_marks(tokenizer)
    contents = _contents(section, corpus_tasks)
    folder = cache / f"corpus-{_key(section, corpus_tasks, contents, tokenizer, seed)[:16]}"
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)  # half the size if ids fit
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(section, corpus_tasks, tokenizer, partial, dtype, seed, log)
        for spec, digest in _contents(section, corpus_tasks).items():
            if digest != contents[spec]:
                raise UserError("changed while it was read", where=spec, instead="repeat the command")
        partial.rename(folder)  # atomic: a folder of this name is always complete
    return CorpusData(*(_open(folder / split, section, tokenizer, dtype) for split in _SPLITS))


def _contents(section: Corpus, corpus_tasks: Mapping[str, Task]) -> dict[str, str]:
    """Returns the content hash of each file; a split on the hub that is streamed has its name instead."""
    found = {spec: hub_split(spec).content if is_hub(spec) else file_hash(fetch_file(spec)) for spec in section.files}
    return {task.train: file_hash(fetch_file(task.train)) for task in corpus_tasks.values()} | found


def _key(
    section: Corpus,
    corpus_tasks: Mapping[str, Task],
    contents: Mapping[str, str],
    tokenizer: "PreTrainedTokenizerFast",
    seed: int,
) -> str:
    """Cache key of everything that the sequences depend on; how they are masked is not part of it."""
    files = [contents[spec] if is_hub(spec) else as_read(spec, contents[spec]) for spec in section.files]
    tasks_read = {
        name: [settings_for_keys(task, texts_only=True), *(file_hash(fetch_file(f)) for f in train_files(task))]
        for name, task in corpus_tasks.items()
    }
    settings = section.model_dump(mode="json", exclude={"files", "mlm_probability", "whole_word_masking"})
    words = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    paired = {"seed": seed} if section.pairs else {}
    return json_hash({"settings": settings, "files": files, "tasks": tasks_read, "tokenizer": words} | paired)


def _write(
    section: Corpus,
    corpus_tasks: Mapping[str, Task],
    tokenizer: "PreTrainedTokenizerFast",
    folder: Path,
    dtype: np.dtype,
    seed: int,
    log: Callable[[str], None],
) -> None:
    """Reads, tokenises and writes both splits."""
    kind = _SentenceWriter if section.pairs else _SequenceWriter
    limits = (section.limit, section.limit and max(1, section.limit // VALID_EVERY))
    with (
        kind(folder / "train", section, tokenizer, dtype, limits[0]) as train,
        kind(folder / "valid", section, tokenizer, dtype, limits[1]) as valid,
    ):
        stream, logged = iter(_texts(section, corpus_tasks)), 0
        while (batch := list(itertools.islice(stream, _BATCH))) and not (train.full and valid.ready):
            pieces = [(document, text) for document, paragraph in batch for text in train.pieces(paragraph)]
            # The Rust tokenizer without its wrapper: no offsets, no padding, a third of the time.
            encoded = tokenizer.backend_tokenizer.encode_batch_fast([t for _, t in pieces], add_special_tokens=False)
            for (document, _), encoding in zip(pieces, encoded, strict=True):
                writer = valid if document % VALID_EVERY == 0 else train
                writer.add(encoding.ids, document)
            if train.tokens - logged >= _LOG_EVERY:
                logged = train.tokens
                log(f"tokenising the corpus: {logged / 1e6:.0f} M tokens")
    for split, written in zip(_SPLITS, (train, valid), strict=True):
        if written.unknown > _MOSTLY_UNKNOWN * written.words:
            raise UserError(
                f"{written.unknown / written.words:.0%} of the tokens of the {split} split are {tokenizer.unk_token}: "
                "the vocabulary does not cover this text",
                where="corpus",
                instead="text in a language of the model, or a model with a vocabulary for this text",
            )
    if section.pairs:
        for split, limit, own_seed in zip(_SPLITS, limits, (seed, seed + 1), strict=True):
            sentence_ends, document_ends = (
                _integers(folder / f"{split}.{what}") for what in ("sentences", "documents")
            )
            own = section.model_copy(update={"limit": limit})
            write_pairs(folder / f"{split}.pairs", sentence_ends, document_ends, own, own_seed)
    last = "pairs" if section.pairs else "ends"
    if not all((folder / f"{split}.{last}").stat().st_size for split in _SPLITS):
        least, half = ("four", "two") if section.pairs else ("two", "one")
        raise UserError(
            f"too little text: at least {least} documents are needed, {half} for training and {half} for validation",
            where="corpus",
            instead="more text, with blank lines between the documents of a file",
        )


def _texts(section: Corpus, corpus_tasks: Mapping[str, Task]) -> Iterator[tuple[int, str]]:
    """Yields (document number, paragraph). A text of a task is a document."""
    document = 0
    for name in section.tasks:
        for text in train_texts(corpus_tasks[name]):
            yield document, text
            document += 1
    for file in section.files:
        for paragraphs in documents(file, section.column):
            yield from ((document, paragraph) for paragraph in paragraphs)
            document += 1


class _Writer:
    """Appends the tokens of one split to its files, text by text."""

    def __init__(
        self,
        path: Path,
        section: Corpus,
        tokenizer: "PreTrainedTokenizerFast",
        dtype: np.dtype,
        limit: int | None,
    ) -> None:
        self._path, self._section, self._dtype, self._limit = path, section, dtype, limit
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


class _SequenceWriter(_Writer):
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

    @staticmethod
    def pieces(paragraph: str) -> list[str]:
        """Returns the texts to tokenise: the paragraph."""
        return [paragraph]

    def add(self, ids: list[int], document: int) -> None:
        """Adds the tokens of one text; a [SEP] separates two documents in a packed sequence."""
        width = self._section.max_seq_length - Sequences.specials
        if not self._section.pack:
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


class _SentenceWriter(_Writer):
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
        enough = self._limit is not None and self.tokens >= self._limit * self._section.max_seq_length
        return enough and self.ready

    @staticmethod
    def pieces(paragraph: str) -> list[str]:
        """Returns the texts to tokenise: the sentences of the paragraph."""
        return sentences(paragraph)

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


def _open(
    path: Path, section: Corpus, tokenizer: "PreTrainedTokenizerFast", dtype: np.dtype
) -> Sequences | PairSequences:
    ids = np.memmap(path.with_suffix(".ids"), dtype=dtype, mode="r")
    if section.pairs is None:
        return Sequences(ids, _integers(path.with_suffix(".ends")))
    spans = _integers(path.with_suffix(".pairs")).reshape(-1, 5)
    return PairSequences(ids, spans, tokenizer.cls_token_id, tokenizer.sep_token_id)


def _integers(path: Path) -> np.ndarray:
    """Memory-maps a file of int64; an empty file, which cannot be mapped, gives an empty array."""
    return np.memmap(path, dtype=np.int64, mode="r") if path.stat().st_size else np.zeros(0, np.int64)
