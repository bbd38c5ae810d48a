"""Number of examples and typical batch length of a stage, estimated without tokenising the complete data set.

Rows of local files are counted and a sample of their texts is tokenised. For hub splits that are not cached, published
row counts are used, and every example is assumed to have the maximum length.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.data.corpus.parts import VALID_EVERY
from toolkit.data.documents import documents
from toolkit.data.files import cached_file
from toolkit.data.kinds.reranking import as_pairs
from toolkit.data.published import published_rows
from toolkit.data.tables import text
from toolkit.data.task_kinds import EXAMPLES
from toolkit.data.task_rows import file_rows, read_train
from toolkit.data.unlabelled import MOST_PAIRED, without_labels
from toolkit.recipe import KINDS, Corpus, Source, Task, Unlabelled
from toolkit.recipe.references import corpus_files, train_files

_SAMPLE = 512  # tokenised texts
_DOCUMENTS = 128  # tokenised documents, of many texts each
_WORD = re.compile(r"\w+|[^\w\s]")
_TOKENS_PER_WORD = 1.2  # per English word or punctuation mark, if the tokenizer is not available
_TRAIN_FRACTION = 1 - 1 / VALID_EVERY  # of a corpus; the rest is for validation


@dataclass(frozen=True)
class DataVolume:
    """Amount of training and evaluation data of a stage.

    Attributes:
        examples: Number of training examples (sequences, windows of questions); None: unknown before the data is read.
        exact: Whether `examples` was counted rather than estimated from a sample.
        lengths: Numbers of tokens of a sample of the examples; empty: unknown, at most `longest`.
        longest: Maximum number of tokens that the recipe allows.
        dev: Number of examples in all evaluation splits together.
        tune: Number of examples set aside for tuning.
        groups: Number of training groups of candidates that are trained together, if `examples` counts their pairs; 0
            for other tasks.
    """

    examples: int | None
    exact: bool
    lengths: tuple[int, ...]
    longest: int
    dev: int = 0
    tune: int = 0
    groups: int = 0

    def batch_length(self, batch: int) -> int:
        """Returns the mean padded length of batches of this size in tokens, rounded up to a multiple of 8."""
        from toolkit.data.sampler import LengthGroupedDataset

        if not self.lengths:
            return self.longest
        import numpy as np

        most = 64 * batch  # a sample that is repeated up to here is grouped by length as more examples are
        lengths = np.resize(self.lengths, max(len(self.lengths), min(self.examples or most, most)))
        steps = max(16, -(-len(lengths) // batch))
        stream = LengthGroupedDataset(lengths, lambda *_: {}, batch_size=batch, steps=steps, accumulation=1, seed=0)
        padded = float(np.mean([stream.step_lengths(step).max() for step in range(steps)]))
        return min(self.longest, -(-int(padded + 0.999) // 8) * 8)


def task_volume(section: Task, tokenizer: Any = None) -> DataVolume:
    """Returns the data volume of a task.

    Args:
        section: The task's section of the recipe.
        tokenizer: The model's tokenizer; None: tokens are estimated from words.

    Raises:
        UserError: A local file is missing or damaged.
    """
    texts = _train_rows(section)
    held = round(1 / section.hold_out.fraction) if section.hold_out else 0
    rows: float | None = len(texts) if texts is not None else _published_train_rows(section)
    # Rows of a query and its passages are pairs of them.
    pairs = len(section.columns) - 1 if KINDS[section.kind].per_query and section.label is None else 1
    rows = rows and rows * (pairs if texts is None else 1)
    dev_rows: float = rows / held if rows and held else 0
    rows = rows and rows - dev_rows
    for spec in (section.dev, *section.more_dev.values()):
        found = _rows(spec, section.evaluated) if spec else ()
        dev_rows += len(found) if found is not None else (published_rows(spec or "") or 0) * pairs
    tune = min(section.tuning_examples, int(rows or 0) // 10)
    kind = EXAMPLES[section.kind]
    if texts is None:
        windows = kind.examples_per_row
        lengths: tuple[int, ...] = ()
    else:
        sample = _sampled(texts)
        lengths = tuple(n for row in sample for n in _row_lengths(row, section, tokenizer))
        windows = len(lengths) / max(1, len(sample))
    examples, groups = None if rows is None else round((rows - tune) * windows), 0
    if texts and rows and section.ranking.group > 1:  # as `Candidates.groups` makes them
        groups = round(_groups(section) * (rows - tune) / len(texts))
        examples = groups * section.ranking.group
    return DataVolume(
        examples=examples,
        # Reranking: queries are set aside whole.
        exact=texts is not None and not held and kind.examples_per_row == 1 and not KINDS[section.kind].per_query,
        lengths=lengths,
        longest=section.max_seq_length,
        dev=round(dev_rows * windows),
        tune=round(tune * windows),
        groups=groups,
    )


def with_unlabelled(volume: DataVolume, section: Task, unlabelled: Unlabelled, tokenizer: Any = None) -> DataVolume:
    """Returns a task's data volume with examples without labels; of new pairs as many as there can be at most.

    Args:
        volume: The volume of the task's own splits.
        section: The task's section of the recipe.
        unlabelled: The examples without labels.
        tokenizer: The model's tokenizer; None: tokens are estimated from words.

    Raises:
        UserError: A local file is missing or damaged.
    """
    own = _train_rows(section)
    files = [_rows(spec, without_labels(section)) for spec in unlabelled.files]
    if volume.examples is None or own is None or None in files:
        return replace(volume, examples=None, exact=False, lengths=())
    more = [texts for rows in files for texts in rows or ()]
    count = len(more) + unlabelled.pairs * min(len({text for texts in own for text in texts}), MOST_PAIRED)
    # A sample of all, in which each example of the files counts as much as one of the task's.
    share = max(1, round(len(volume.lengths) * len(more) / max(1, volume.examples + count - len(more)))) if more else 0
    lengths = [n for texts in _sampled(more)[:share] for n in _row_lengths(texts, section, tokenizer)]
    return replace(volume, examples=volume.examples + count, exact=False, lengths=(*volume.lengths, *lengths))


def corpus_volume(
    section: Corpus, corpus_tasks: dict[str, Task], tokenizer: Any = None, *, count: bool = True
) -> DataVolume:
    """Returns the data volume of a corpus.

    Args:
        section: The corpus section of the recipe.
        corpus_tasks: The tasks whose texts it contains, by name.
        tokenizer: The model's tokenizer; None: tokens are estimated from words.
        count: Whether to estimate the number of sequences of a packed corpus, which reads all of its text.

    Raises:
        UserError: A local file is missing or damaged.
    """
    if section.sources:
        return _mix_volume(section, corpus_tasks, tokenizer, count=count)
    longest, limit = section.max_seq_length, section.limit
    files = [cached_file(spec) for spec in corpus_files(section, corpus_tasks)]
    if None in files:  # on the hub: the amount of text is unknown
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
        elif (place := chance.randrange(total)) < size:  # reservoir sampling: every document is equally likely
            sample[place] = document
    texts = [text for document in sample for text in document]
    fraction = sum(map(len, texts)) / max(1, characters)
    lengths: tuple[int, ...] = (longest,)
    if section.pairs:
        sequences = round(_pairs(sample, section, tokenizer) / (fraction or 1) * _TRAIN_FRACTION)
    elif section.pack:
        sequences = round(sum(_token_counts(texts, tokenizer)) / (fraction or 1) / (longest - 2) * _TRAIN_FRACTION)
    else:
        sequences = round(total * _TRAIN_FRACTION)
        lengths = tuple(min(longest, n + 2) for n in _token_counts(texts, tokenizer))
    return DataVolume(min(sequences, limit or sequences), False, lengths, longest)


def _mix_volume(section: Corpus, corpus_tasks: dict[str, Task], tokenizer: Any, *, count: bool) -> DataVolume:
    """Returns the data volume of a mix, as groups of sequences with the tokens of one of the longest sequences."""
    longest = section.longest
    if not count:
        return DataVolume(None, False, (longest,), longest)
    tokens = 0.0
    for source in section.sources:
        if source.shape == "pairs":
            volumes = [task_volume(_only_train(corpus_tasks[name], source), tokenizer) for name in source.tasks]
        else:
            packed = source.shape == "packed"  # the tokens of sentences are those of their texts
            same = Corpus(**source.model_dump(include={"files", "column", "tasks", "max_seq_length"}), pack=packed)
            volumes = [corpus_volume(same, corpus_tasks, tokenizer)]
        for volume in volumes:
            if volume.examples is None:
                return DataVolume(None, False, (longest,), longest)
            lengths = volume.lengths or (volume.longest,)
            tokens += volume.examples * sum(lengths) / len(lengths)
    return DataVolume(round(tokens / longest), False, (longest,), longest)


def _only_train(task: Task, source: Source) -> Task:
    return task.model_copy(update={"max_seq_length": source.max_seq_length, "dev": None, "more_dev": {}})


def _pairs(documents: list[list[str]], section: Corpus, tokenizer: Any) -> int:
    """Returns the number of segment pairs in documents: more than their tokens fill, as each ends in a short pair."""
    import numpy as np

    from toolkit.data.corpus.segment_pairs import pairs_of, sentences

    pieces = [[s for paragraph in document for s in sentences(paragraph)] for document in documents]
    lengths = np.array(_token_counts([s for document in pieces for s in document], tokenizer), dtype=np.int64)
    return sum(1 for _ in pairs_of(np.cumsum(lengths), np.cumsum(list(map(len, pieces))), section, seed=0))


def _documents(section: Corpus, corpus_tasks: dict[str, Task]) -> Iterator[list[str]]:
    """Iterates over the documents of a corpus; without segment pairs, every text is a document."""
    for name in section.tasks:
        for row in _train_rows(corpus_tasks[name]) or ():
            yield from ([text] for text in row)
    for spec in section.files:
        for document in documents(spec, section.column):
            if section.pairs:
                yield document
            else:
                yield from ([text] for text in document)


def _train_rows(section: Task) -> list[tuple[str, ...]] | None:
    """Returns the texts of the training rows that a task keeps, or None if a file is not cached."""
    found = [_rows(spec, section) for spec in train_files(section)]
    return None if None in found else [row for rows in found for row in rows or ()]


def _published_train_rows(section: Task) -> int | None:
    found = [published_rows(spec) for spec in train_files(section)]
    return None if None in found else sum(rows or 0 for rows in found)


def _rows(spec: str, section: Task) -> list[tuple[str, ...]] | None:
    """Returns the texts of the rows that a task keeps, or None if the file is not cached."""
    file = cached_file(spec)
    if file is None:
        return None
    kept, columns = [], as_pairs(section).columns
    for _, row in file_rows(file, [*section.columns, *section.rows], section):
        texts = tuple(text(row.get(column)) for column in columns)
        if all(texts) and not any(text(row.get(c)) not in values for c, values in section.rows.items()):
            kept.append(texts)
    return kept


def _groups(section: Task) -> int:
    """Returns the number of candidates of a reranking task that are more relevant than the least one of their query."""
    labels: dict[str, list[float]] = {}
    for row in read_train(section.model_copy(update={"tuning_examples": 0, "hold_out": None, "dev": section.train})):
        labels.setdefault(row.texts[0], []).append(row.label)
    return sum(label > min(found) for found in labels.values() for label in found)


def _sampled(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return random.Random(0).sample(rows, min(_SAMPLE, len(rows)))


def _row_lengths(texts: tuple[str, ...], section: Task, tokenizer: Any) -> list[int]:
    """Returns the number of tokens of each example that a row yields (several for windows of a context)."""
    return EXAMPLES[section.kind].token_counts(_token_counts(texts, tokenizer), section)


def _token_counts(texts: Sequence[str], tokenizer: Any) -> list[int]:
    if tokenizer is None:
        return [round(_TOKENS_PER_WORD * len(_WORD.findall(text))) for text in texts]
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]
