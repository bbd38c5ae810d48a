"""How much data a stage reads, found without preparing it: examples, and how long their batches are.

Local files are counted; of their texts a sample is tokenised. Of a split on the hub that was not fetched yet, the
public ones' rows are known, and every example is taken for as long as the recipe lets it be.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.data.examples import EXAMPLES
from toolkit.data.files import cached_file, fetch_file, raw_lines
from toolkit.data.published import published_rows
from toolkit.data.tables import read_rows, text
from toolkit.recipe import Corpus, Task
from toolkit.recipe.references import corpus_files

_SAMPLE = 512  # texts that are tokenised
_DOCUMENTS = 128  # of many texts each
_WORD = re.compile(r"\w+|[^\w\s]")
_PIECES = 1.2  # tokens of a word or punctuation mark in English; where there is no tokenizer to ask
# As data/corpus.py has them: the share of a corpus that is not for validation, and a document's paragraphs at most.
_TRAIN = 19 / 20
_LONGEST_DOCUMENT = 100


@dataclass(frozen=True)
class DataVolume:
    """What a stage trains on and what it is measured on.

    Attributes:
        examples: Of the train split (sequences, windows of questions); None: not known before it is read.
        exact: Whether `examples` was counted, not worked out of a sample.
        lengths: Tokens of a sample of them; none: not known, at most `longest`.
        longest: Most tokens that the recipe allows.
        dev: Examples of all measured splits.
        tune: Examples set aside for tuning.
    """

    examples: int | None
    exact: bool
    lengths: tuple[int, ...]
    longest: int
    dev: int = 0
    tune: int = 0

    def batch_length(self, batch: int) -> int:
        """Tokens that the batches of a run are padded to, on average; rounded up to a multiple of 8."""
        from toolkit.data.sampler import LengthGroupedDataset

        if not self.lengths:
            return self.longest
        import numpy as np

        steps = max(16, -(-len(self.lengths) // batch))
        stream = LengthGroupedDataset(
            np.array(self.lengths), lambda *_: {}, batch_size=batch, steps=steps, accumulation=1, seed=0
        )
        padded = float(np.mean([stream.step_lengths(step).max() for step in range(steps)]))
        return min(self.longest, -(-int(padded + 0.999) // 8) * 8)


def task_volume(section: Task, tokenizer: Any = None) -> DataVolume:
    """The examples of a task.

    Args:
        section: Its section of the recipe.
        tokenizer: The model's; None: tokens are worked out of words.

    Raises:
        UserError: A local file is missing or damaged.
    """
    texts = _rows(section.train, section)
    held = round(1 / section.hold_out.fraction) if section.hold_out else 0
    rows: float | None = len(texts) if texts is not None else published_rows(section.train)
    dev_rows: float = rows / held if rows and held else 0
    rows = rows and rows - dev_rows
    for spec in (section.dev, *section.more_dev.values()):
        found = _rows(spec, section) if spec else ()
        dev_rows += len(found) if found is not None else published_rows(spec or "") or 0
    tune = min(section.tuning_examples, int(rows or 0) // 10)
    kind = EXAMPLES[section.kind]
    if texts is None:
        windows = kind.examples_per_row
        lengths: tuple[int, ...] = ()
    else:
        sample = _sampled(texts)
        lengths = tuple(n for row in sample for n in _row_lengths(row, section, tokenizer))
        windows = len(lengths) / max(1, len(sample))
    return DataVolume(
        examples=None if rows is None else round((rows - tune) * windows),
        exact=texts is not None and not held and kind.examples_per_row == 1,
        lengths=lengths,
        longest=section.max_seq_length,
        dev=round(dev_rows * windows),
        tune=round(tune * windows),
    )


def corpus_volume(
    section: Corpus, corpus_tasks: dict[str, Task], tokenizer: Any = None, *, count: bool = True
) -> DataVolume:
    """The sequences of a corpus.

    Args:
        section: The recipe's section.
        corpus_tasks: The tasks that it names.
        tokenizer: As in `of_task`.
        count: Find out how many sequences there are, which reads all of the text; else only where it must be read.

    Raises:
        UserError: A local file is missing or damaged.
    """
    longest, limit = section.max_seq_length, section.limit
    files = [cached_file(spec) for spec in corpus_files(section, corpus_tasks)]
    if None in files:  # on the hub: the text is as long as nobody knows
        return DataVolume(limit, limit is not None, (longest,) if section.pack else (), longest)
    if section.pack and not count:
        return DataVolume(None, False, (longest,), longest)
    total, characters = 0, 0
    sample: list[list[str]] = []
    size, chance = _DOCUMENTS if section.pairs else _SAMPLE, random.Random(0)
    for document in _documents(section, corpus_tasks):
        total, characters = total + 1, characters + sum(map(len, document))
        if len(sample) < size:
            sample.append(document)
        elif (place := chance.randrange(total)) < size:  # each has the same chance to stay
            sample[place] = document
    texts = [text for document in sample for text in document]
    share = sum(map(len, texts)) / max(1, characters)
    lengths: tuple[int, ...] = (longest,)
    if section.pairs:
        sequences = round(_pairs(sample, section, tokenizer) / (share or 1) * _TRAIN)
    elif section.pack:
        sequences = round(sum(_token_counts(texts, tokenizer)) / (share or 1) / (longest - 2) * _TRAIN)
    else:
        sequences = round(total * _TRAIN)
        lengths = tuple(min(longest, n + 2) for n in _token_counts(texts, tokenizer))
    return DataVolume(min(sequences, limit or sequences), False, lengths, longest)


def _pairs(documents: list[list[str]], section: Corpus, tokenizer: Any) -> int:
    """Pairs of segments that these documents make: more than their tokens would fill, as each ends in a short one."""
    import numpy as np

    from toolkit.data.segment_pairs import pairs_of, sentences

    pieces = [[s for paragraph in document for s in sentences(paragraph)] for document in documents]
    lengths = np.array(_token_counts([s for document in pieces for s in document], tokenizer), dtype=np.int64)
    return sum(1 for _ in pairs_of(np.cumsum(lengths), np.cumsum(list(map(len, pieces))), section, seed=0))


def _documents(section: Corpus, corpus_tasks: dict[str, Task]) -> Iterator[list[str]]:
    """The texts; where pairs are made of them, those of a document together."""
    for name in section.tasks:
        for row in _rows(corpus_tasks[name].train, corpus_tasks[name]) or ():
            yield from ([text] for text in row)
    longest = _LONGEST_DOCUMENT if section.pairs else 1
    for spec in section.files:
        document: list[str] = []
        for line in raw_lines(fetch_file(spec)):
            text = line.strip()
            if document and (not text or len(document) == longest):
                yield document
                document = []
            if text:
                document.append(text)
        if document:
            yield document


def _rows(spec: str, section: Task) -> list[tuple[str, ...]] | None:
    """The texts of the rows that a task keeps; None: the file is on the hub."""
    file = cached_file(spec)
    if file is None:
        return None
    kept = []
    for _, row in read_rows(file):
        texts = tuple(text(row.get(column)) for column in section.columns)
        if all(texts) and not any(text(row.get(c)) not in values for c, values in section.rows.items()):
            kept.append(texts)
    return kept


def _sampled(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return random.Random(0).sample(rows, min(_SAMPLE, len(rows)))


def _row_lengths(texts: tuple[str, ...], section: Task, tokenizer: Any) -> list[int]:
    """Tokens of what a row becomes: one example, or the windows of its context."""
    return EXAMPLES[section.kind].token_counts(_token_counts(texts, tokenizer), section)


def _token_counts(texts: Sequence[str], tokenizer: Any) -> list[int]:
    if tokenizer is None:
        return [round(_PIECES * len(_WORD.findall(text))) for text in texts]
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]
