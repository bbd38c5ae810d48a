"""Pre-training corpus: text is streamed and tokenised once into memory-mapped files shared by all stages of a run."""

import hashlib
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.core.errors import UserError
from toolkit.core.files import file_hash, json_hash
from toolkit.data.corpus.parts import VALID_EVERY, CorpusPart, parts_of, require_documents, rows_of, texts_of
from toolkit.data.corpus.segment_pairs import sentences, write_pairs
from toolkit.data.corpus.sequences import AnySequences, MixedSequences, Sequences
from toolkit.data.corpus.writers import EncodedWriter, SentenceWriter, SequenceWriter, integers, open_sequences
from toolkit.data.documents import as_read
from toolkit.data.files import fetch_file
from toolkit.data.hub import hub_split
from toolkit.data.masking import require_word_marks
from toolkit.data.task_kinds import EXAMPLES
from toolkit.models.checkpoint import require_length
from toolkit.models.embedding.prompts import prompts_of_tokenizer
from toolkit.recipe import KINDS, Corpus, Source, Task
from toolkit.recipe.corpus import corpus_settings
from toolkit.recipe.references import is_hub, train_files
from toolkit.recipe.task import settings_for_keys

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPLITS = ("train", "valid")
_BATCH = 512  # paragraphs or rows per tokenizer call
_MOSTLY_UNKNOWN = 0.9  # fraction of [UNK]; a text with more of them is in a script that the vocabulary lacks
_LOG_EVERY = 20_000_000  # tokens


@dataclass(frozen=True)
class CorpusData:
    """A tokenised corpus; no document is in both the train and the validation split."""

    train: AnySequences
    valid: AnySequences

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
    Each source of a mix has a folder of its own.

    Args:
        section: The texts, and how they are cut into sequences.
        corpus_tasks: The tasks that the section names.
        tokenizer: The tokenizer of the model that is pre-trained.
        cache: Folder shared by all stages of a run.
        seed: Seed of the segment pairs.
        log: Receives progress messages.

    Raises:
        UserError: A file is missing, not text or empty, or changes while it is read; there is too little text, the
            vocabulary does not cover it, or `max_seq_length` exceeds the model's maximum.
    """
    parts = parts_of(section, corpus_tasks)
    for part in parts:
        require_length(part.section.max_seq_length, tokenizer.model_max_length, part.where)
    if section.whole_word_masking:
        require_word_marks(tokenizer)
    loaded = [_load(part, tokenizer, cache, seed, log) for part in parts]
    if not section.sources:
        return loaded[0]
    weights = np.array([source.weight for source in section.sources])
    common = (tuple(part.name for part in parts), weights / weights.sum(), section.longest)
    splits = ([found.train for found in loaded], [found.valid for found in loaded])
    return CorpusData(*(MixedSequences(tuple(s for s in of if isinstance(s, Sequences)), *common) for of in splits))


def _load(
    part: CorpusPart,
    tokenizer: "PreTrainedTokenizerFast",
    cache: Path,
    seed: int,
    log: Callable[[str], None],
) -> CorpusData:
    """Tokenises one part of a corpus, or opens its folder."""
    contents = _contents(part)
    folder = cache / f"corpus-{_key(part, contents, tokenizer, seed)[:16]}"
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)  # half the size if ids fit
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(part, tokenizer, partial, dtype, seed, log)
        for spec, digest in _contents(part).items():
            if digest != contents[spec]:
                raise UserError("changed while it was read", where=spec, instead="repeat the command")
        partial.rename(folder)  # atomic: a folder of this name is always complete
    return CorpusData(*(open_sequences(folder / split, tokenizer, dtype) for split in _SPLITS))


def _contents(part: CorpusPart) -> dict[str, str]:
    """Returns the content hash of each file; a split on the hub that is streamed has its name instead."""
    files = part.section.files
    found = {spec: hub_split(spec).content if is_hub(spec) else file_hash(fetch_file(spec)) for spec in files}
    return {task.train: file_hash(fetch_file(task.train)) for task in part.tasks.values()} | found


def _key(part: CorpusPart, contents: Mapping[str, str], tokenizer: "PreTrainedTokenizerFast", seed: int) -> str:
    """Cache key of everything that the sequences depend on; how they are masked is not part of it."""
    files = [contents[spec] if is_hub(spec) else as_read(spec, contents[spec]) for spec in part.section.files]
    tasks_read = {
        name: [settings_for_keys(task, texts_only=True), *(file_hash(fetch_file(f)) for f in train_files(task))]
        for name, task in part.tasks.items()
    }
    more: dict[str, Any] = {"seed": seed} if part.shape == "segment_pairs" else {}
    if isinstance(part.section, Source):
        assert part.first is not None
        settings = part.section.model_dump(mode="json", exclude={"files", "weight"})
        places = [*(f"tasks.{name}" for name in part.tasks), *part.section.files]
        more["first"] = [part.first[place] % VALID_EVERY for place in places]
    else:
        settings = corpus_settings(part.section, {"mlm_probability", "whole_word_masking"})
    if part.shape == "pairs":
        cut = [task for task in part.tasks.values() if KINDS[task.kind].cuts_windows]
        more["encoding"] = [tokenizer.model_input_names, *(task.windows.model_dump(mode="json") for task in cut)]
        embedded = [task for task in part.tasks.values() if KINDS[task.kind].dense_teaches]
        if any(prompts := [prompts_of_tokenizer(tokenizer, task) for task in embedded]):
            more["prompts"] = [found.of_all for found in prompts]
    words = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    return json_hash({"settings": settings, "files": files, "tasks": tasks_read, "tokenizer": words} | more)


def _write(
    part: CorpusPart,
    tokenizer: "PreTrainedTokenizerFast",
    folder: Path,
    dtype: np.dtype,
    seed: int,
    log: Callable[[str], None],
) -> None:
    """Reads, tokenises and writes both splits."""
    kind: Any = {"segment_pairs": SentenceWriter, "pairs": EncodedWriter}.get(part.shape, SequenceWriter)
    limit = part.section.limit if isinstance(part.section, Corpus) else None
    limits = (limit, limit and max(1, limit // VALID_EVERY))
    with (
        kind(folder / "train", part, tokenizer, dtype, limits[0]) as train,
        kind(folder / "valid", part, tokenizer, dtype, limits[1]) as valid,
    ):
        batches: Iterator[list[Any]] = (_rows if part.shape == "pairs" else _texts)(part, tokenizer)
        logged = 0
        while not (train.full and valid.ready) and (batch := next(batches, None)) is not None:
            for is_valid, *sequence in batch:
                (valid if is_valid else train).add(*sequence)
            if train.tokens - logged >= _LOG_EVERY:
                logged = train.tokens
                log(f"tokenising the corpus: {logged / 1e6:.0f} M tokens")
    for split, written in zip(_SPLITS, (train, valid), strict=True):
        if written.unknown > _MOSTLY_UNKNOWN * written.words:
            raise UserError(
                f"{written.unknown / written.words:.0%} of the tokens of the {split} split are {tokenizer.unk_token}: "
                "the vocabulary does not cover this text",
                where=part.where,
                instead="text in a language of the model, or a model with a vocabulary for this text",
            )
    if part.shape == "segment_pairs":
        assert isinstance(part.section, Corpus)
        for split, most, own_seed in zip(_SPLITS, limits, (seed, seed + 1), strict=True):
            sentence_ends, document_ends = (integers(folder / f"{split}.{what}") for what in ("sentences", "documents"))
            own = part.section.model_copy(update={"limit": most})
            write_pairs(folder / f"{split}.pairs", sentence_ends, document_ends, own, own_seed)
    last = "pairs" if part.shape == "segment_pairs" else "ends"
    if not all((folder / f"{split}.{last}").stat().st_size for split in _SPLITS):
        require_documents(part, 0, 0)


def _texts(part: CorpusPart, tokenizer: "PreTrainedTokenizerFast") -> Iterator[list[tuple[bool, list[int], int]]]:
    """Yields batches of texts: whether each is for validation, its tokens, and the number of its document."""
    pieces_of = sentences if part.shape in ("sentences", "segment_pairs") else lambda paragraph: [paragraph]
    stream = texts_of(part)
    while batch := list(itertools.islice(stream, _BATCH)):
        pieces = [(document, valid, text) for document, valid, found in batch for text in pieces_of(found)]
        # The Rust tokenizer without its wrapper: no offsets, no padding, a third of the time.
        encoded = tokenizer.backend_tokenizer.encode_batch_fast([t for *_, t in pieces], add_special_tokens=False)
        yield [(valid, found.ids, document) for (document, valid, _), found in zip(pieces, encoded, strict=True)]


def _rows(
    part: CorpusPart, tokenizer: "PreTrainedTokenizerFast"
) -> Iterator[list[tuple[bool, list[int], list[int] | None]]]:
    """Yields batches of encoded rows of tasks: whether each is for validation, its tokens and its token types."""
    for name, task in part.tasks.items():
        own = task.model_copy(update={"max_seq_length": part.section.max_seq_length})
        stream = rows_of(part, name)
        while batch := list(itertools.islice(stream, _BATCH)):
            inputs, row_of = EXAMPLES[task.kind].inputs_of([row for _, row in batch], own, tokenizer)
            ids = inputs["input_ids"]
            types: Any = inputs.get("token_type_ids", [None] * len(ids))
            yield [(batch[row][0], i, t) for row, i, t in zip(row_of, ids, types, strict=True)]
