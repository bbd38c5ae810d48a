"""Parts of a corpus: its sources, or all of it if it is not a mix; their texts, and which split each belongs to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toolkit.core.errors import UserError
from toolkit.data.documents import documents
from toolkit.data.task_kinds import EXAMPLES
from toolkit.data.task_rows import TaskRow, read_train
from toolkit.recipe import Corpus, Shape, Source, Task

VALID_EVERY = 20  # every 20th document belongs to the validation split


@dataclass(frozen=True)
class CorpusPart:
    """A source of a mixed corpus, or a corpus that is not a mix.

    Attributes:
        where: Key in the recipe.
        section: The source or the corpus: files, column, tasks and `max_seq_length` are read.
        tasks: The tasks that the section names.
        shape: Shape of the sequences; segment_pairs: those of next-sentence prediction.
        first: Number of the first document of each file and task. Documents of a mix have the same numbers in all of
            its sources, so that none is in the train split of one and in the validation split of another. None: the
            documents of the part are numbered through, tasks first, and each text of a task is a document.
    """

    where: str
    section: Corpus | Source
    tasks: Mapping[str, Task]
    shape: Shape | Literal["segment_pairs"]
    first: Mapping[str, int] | None = None

    @property
    def name(self) -> str:
        """Name of the part in messages: its files and tasks, and its shape if it is not packed."""
        texts = ", ".join([*(Path(file).name for file in self.section.files), *self.section.tasks])
        return texts if self.shape == "packed" else f"{texts} ({self.shape})"


def parts_of(corpus: Corpus, tasks: Mapping[str, Task]) -> list[CorpusPart]:
    """Returns the parts of a corpus.

    Args:
        corpus: The corpus section of the recipe.
        tasks: The tasks that it names.
    """
    if not corpus.sources:
        plain: Shape = "packed" if corpus.pack else "texts"
        own = {name: tasks[name] for name in corpus.tasks}
        return [CorpusPart("corpus", corpus, own, "segment_pairs" if corpus.pairs else plain)]
    places = dict.fromkeys([*(f"tasks.{name}" for name in corpus.all_tasks), *corpus.all_files])
    first = {name: number for number, name in enumerate(places)}
    return [
        CorpusPart(f"corpus.sources.{n}", s, {name: tasks[name] for name in s.tasks}, s.shape, first)
        for n, s in enumerate(corpus.sources)
    ]


def texts_of(part: CorpusPart) -> Iterator[tuple[int, bool, str]]:
    """Yields the texts of a part: number of the document in the part, whether it is for validation, and a paragraph.

    Raises:
        UserError: A file is missing or damaged, or contains no text.
    """
    document = -1
    for name, task in part.tasks.items():
        seen, last = set[str](), -1
        for number, row in _numbered(task):
            for text in row.texts:
                if EXAMPLES[task.kind].texts_repeat and text in seen:
                    continue
                seen.add(text)
                document += part.first is None or number != last
                last = number
                yield document, _is_valid(part, f"tasks.{name}", document, number), text
    for file in part.section.files:
        for number, paragraphs in enumerate(documents(file, part.section.column)):
            document += 1
            valid = _is_valid(part, file, document, number)
            yield from ((document, valid, paragraph) for paragraph in paragraphs)


def rows_of(part: CorpusPart, name: str) -> Iterator[tuple[bool, TaskRow]]:
    """Yields the training rows of a task of a part of a mix, and whether each is for validation.

    Raises:
        UserError: A file of the task is missing or damaged.
    """
    for number, row in _numbered(part.tasks[name]):
        yield _is_valid(part, f"tasks.{name}", 0, number), row


def require_documents(part: CorpusPart, train: int, valid: int) -> None:
    """Checks that a part of a corpus has text for both splits.

    Args:
        part: The part.
        train: Number of its documents that are for training.
        valid: Number of its documents that are for validation.

    Raises:
        UserError: One of them is 0.
    """
    if train and valid:
        return
    least, half = ("four", "two") if part.shape == "segment_pairs" else ("two", "one")
    needed = f"at least {least} documents are needed, {half} for training and {half} for validation"
    if part.first is not None:
        needed = f"{VALID_EVERY} documents are needed, of which one is for validation"
    raise UserError(
        f"too little text: {needed}",
        where=part.where,
        instead="more text, with blank lines between the documents of a file",
    )


def _is_valid(part: CorpusPart, source: str, document: int, number: int) -> bool:
    """Returns whether a document is for validation: by its number in the part, or in its file or task of a mix."""
    return (document if part.first is None else part.first[source] + number) % VALID_EVERY == 0


def _numbered(task: Task) -> Iterator[tuple[int, TaskRow]]:
    """Numbers the training rows of a task as documents; rows with the same longer text are one document."""
    numbers: dict[str, int] = {}
    for row in read_train(task):
        yield numbers.setdefault(max(row.texts, key=len), len(numbers)), row
