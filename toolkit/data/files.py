"""Files of pre-training text, as lines; and a look at all of them before anything is trained. Loads no torch."""

from collections.abc import Iterator
from pathlib import Path

from toolkit.core.artifacts import file_hash
from toolkit.core.errors import UserError
from toolkit.data.hub import is_hub
from toolkit.models import sources
from toolkit.recipe import Corpus


def lines(path: Path) -> Iterator[str]:
    """The lines of a file without white space around them: a paragraph each, and empty ones between documents.

    Raises:
        UserError: The file is damaged or not UTF-8, which says the line; or it was read to its end and has no text.
    """
    empty = True
    for line in sources.lines(path):
        text = line.strip()
        empty = empty and not text
        yield text
    if empty:
        raise UserError("no text in this file", where=str(path), instead="a paragraph a line, or leave it out")


def check(section: Corpus, cache: Path | None = None) -> str:
    """Reads every file that is no data set of the hub from end to end, and says how many paragraphs there are.

    Args:
        section: Names the files.
        cache: Folder that remembers which contents were found good, so that they are not read again: of those
            nothing is counted.

    Raises:
        UserError: As `lines`; or a file is not there.
    """
    paragraphs = 0
    for spec in section.files:
        if is_hub(spec):
            continue
        path = sources.local_file(spec)
        good = cache / f"text-{file_hash(path)[:16]}" if cache else None
        if good is not None and good.exists():
            continue
        paragraphs += sum(1 for text in lines(path) if text)
        if good is not None:
            good.parent.mkdir(parents=True, exist_ok=True)
            good.touch()
    return f"{paragraphs:,} paragraphs" if paragraphs else ""
