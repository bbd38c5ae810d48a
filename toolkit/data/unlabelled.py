"""Training rows without labels, which a task's teacher labels: those of files, and pairs of the task's own texts.

Loads no torch: `check` uses it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from toolkit.data.files import cached_file
from toolkit.data.kinds.bm25 import BM25
from toolkit.data.task_rows import TaskRow, TaskRows, read_file
from toolkit.recipe import Quantize, Task, Transfer, Unlabelled
from toolkit.recipe.references import unlabelled_files

MOST_PAIRED = 20_000  # texts of a column that are paired: BM25 compares each with each
_BESIDE = 8  # of the most similar texts, how many may stand beside a text already


def unlabelled_rows(section: Task, unlabelled: Unlabelled, read: TaskRows) -> list[TaskRow]:
    """Returns rows without labels: different ones, none of which has the texts of a row of any split.

    Args:
        section: The task's section.
        unlabelled: What to add.
        read: The task's splits.

    Raises:
        UserError: A file is missing or damaged, lacks a column, or has an empty text.
    """
    found = [row for spec in unlabelled.files for row in _file_rows(spec, section)]
    if unlabelled.pairs:
        found += pairs(read.train, unlabelled.pairs)
    taken = {row.texts for split in (read.train, read.tune, *read.dev.values()) for row in split}
    return list({row.texts: row for row in found if row.texts not in taken}.values())


def pairs(rows: Sequence[TaskRow], count: int) -> Iterator[TaskRow]:
    """Yields pairs of each first text with second texts of other rows, those that are most similar to it.

    Args:
        rows: Rows with two texts. Of more than 20,000 different first or second texts, 20,000 are drawn.
        count: Number of pairs for each first text; fewer if not as many second texts share a word with it.
    """
    firsts, seconds = (_some([row.texts[column] for row in rows]) for column in range(2))
    known, index = {row.texts for row in rows}, BM25(seconds)
    for text in firsts:
        best = [(text, seconds[place]) for place in index.best(text, count + _BESIDE)]
        for texts in [texts for texts in best if texts not in known and texts[0] != texts[1]][:count]:
            yield TaskRow("a new pair", texts, None, None)


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
