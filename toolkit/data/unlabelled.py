"""Training rows without labels, which a task's teacher labels: those of files, and pairs of the task's own texts.

Loads no torch: `check` uses it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from toolkit.data.files import cached_file
from toolkit.data.task_rows import TaskRow, TaskRows, read_file
from toolkit.recipe import Quantize, Task, Transfer, Unlabelled
from toolkit.recipe.references import unlabelled_files

MOST_PAIRED = 40_000  # different texts; each is compared with each

# Texts, and how many -> the numbers of the texts most similar to each, [n, how many], the most similar one first.
Similar = Callable[[Sequence[str], int], np.ndarray]


def unlabelled_rows(section: Task, unlabelled: Unlabelled, read: TaskRows, similar: Similar | None) -> list[TaskRow]:
    """Returns rows without labels: different ones, none of which has the texts of a row of any split, in either order.

    Args:
        section: The task's section.
        unlabelled: What to add.
        read: The task's splits.
        similar: Finds the texts of new pairs; None: files alone.

    Raises:
        UserError: A file is missing or damaged, lacks a column, or has an empty text.
    """
    found = [row for spec in unlabelled.files for row in _file_rows(spec, section)]
    if unlabelled.pairs:
        assert similar is not None, "new pairs are made where there is a model that embeds texts"
        found += pairs(read.train, unlabelled.pairs, similar)
    taken = {row.texts for split in (read.train, read.tune, *read.dev.values()) for row in split}
    taken |= {texts[::-1] for texts in taken}
    return list({row.texts: row for row in found if row.texts not in taken}.values())


def pairs(rows: Sequence[TaskRow], count: int, similar: Similar) -> Iterator[TaskRow]:
    """Yields pairs of each text with the most similar other texts, except those that it stands beside already.

    A text that only occurs first, or only second, in rows stays there, unless both texts of a pair do so.

    Args:
        rows: Rows with two texts. Of more than 40,000 different texts, 40,000 are drawn.
        count: Number of other texts for each text; two that choose each other are one pair.
        similar: Finds the most similar texts.
    """
    texts = _some([text for row in rows for text in row.texts])
    known = {row.texts for row in rows} | {row.texts[::-1] for row in rows}
    first, second = ({row.texts[place] for row in rows} for place in range(2))
    rng = np.random.default_rng(0)
    for text, numbers in zip(texts, similar(texts, min(count + 1, len(texts))), strict=True):
        others = [texts[number] for number in numbers if texts[number] != text][:count]
        for other in [other for other in others if (text, other) not in known]:
            known |= {(text, other), (other, text)}
            stay, swapped = text in first and other in second, other in first and text in second
            swap = swapped if stay != swapped else bool(rng.integers(2))
            yield TaskRow("a new pair", (other, text) if swap else (text, other), None, None)


def check_unlabelled(section: Task, stage: Transfer | Quantize | None) -> str:
    """Reads every row of the locally available files of a stage's examples without labels; returns their number.

    Raises:
        UserError: See `unlabelled_rows`.
    """
    files = [spec for spec in unlabelled_files(stage) if cached_file(spec) is not None]
    counted = sum(len(_file_rows(spec, section)) for spec in files)
    return f"{counted:,} rows without labels" if files else ""


def without_labels(section: Task) -> Task:
    """Returns a task's section for files with its texts alone: no labels, and no filters by further columns."""
    return section.model_copy(update={"label": None, "label_columns": (), "hold_out": None, "rows": {}})


def _file_rows(spec: str, section: Task) -> list[TaskRow]:
    return [replace(row, label=None) for row in read_file(spec, without_labels(section), [])]


def _some(texts: Sequence[str]) -> list[str]:
    """Returns the different texts in their order; at most as many as are paired, drawn at random."""
    different = list(dict.fromkeys(texts))
    chosen = np.random.default_rng(0).permutation(len(different))[:MOST_PAIRED]
    return [different[place] for place in sorted(chosen.tolist())]
