"""Checks of the pre-training text before a run: every local file is read completely."""

from collections.abc import Mapping
from pathlib import Path

from toolkit.core.errors import UserError
from toolkit.core.files import file_hash, json_hash
from toolkit.data.corpus.parts import CorpusPart, parts_of, require_documents, texts_of
from toolkit.data.documents import as_read, documents
from toolkit.data.files import cached_file, fetch_file
from toolkit.recipe import Corpus, Reconstruction, Task
from toolkit.recipe.references import is_hub, table_format, train_files
from toolkit.recipe.task import settings_for_keys


def check_corpus(section: Corpus, tasks: Mapping[str, Task], cache: Path | None = None) -> str:
    """Reads every local file of a corpus completely, and returns the number of paragraphs as text.

    Args:
        section: The corpus section of the recipe.
        tasks: The tasks of the recipe.
        cache: Folder that records the hashes of valid files. Those are neither read again nor counted.

    Raises:
        UserError: A file is missing, `documents` rejects its content, or a source of a mix has too few documents.
    """
    count = 0
    for part in parts_of(section, tasks):
        if part.first is not None:
            count += _check_source(part, cache)
            continue
        for spec in part.section.files:
            if is_hub(spec):
                continue
            content = as_read(spec, file_hash(fetch_file(spec)))
            key = json_hash([content, section.column]) if table_format(spec) else content
            if not _marked(cache, key):
                count += sum(len(document) for document in documents(spec, section.column))
                _mark(cache, key)
    return f"{count:,} paragraphs" if count else ""


def _check_source(part: CorpusPart, cache: Path | None) -> int:
    """Reads a source of a mix completely, if no part of it is on the hub; returns the number of its paragraphs."""
    tables = [file for task in part.tasks.values() for file in train_files(task)]
    found = [None if is_hub(spec) else cached_file(spec) for spec in (*part.section.files, *tables)]
    files = [file for file in found if file is not None]
    if len(files) < len(found):
        return 0
    values = part.section.model_dump(mode="json", exclude={"files", "weight"})
    tasks = [settings_for_keys(task, texts_only=True) for task in part.tasks.values()]
    key = json_hash([part.where, values, tasks, [*map(str, files)], [*map(file_hash, files)]])
    if _marked(cache, key):
        return 0
    documents_of: dict[bool, set[int]] = {True: set(), False: set()}
    count = 0
    for document, is_valid, _ in texts_of(part):
        documents_of[is_valid].add(document)
        count += 1
    require_documents(part, len(documents_of[False]), len(documents_of[True]))
    _mark(cache, key)
    return count


def _marked(cache: Path | None, key: str) -> bool:
    return cache is not None and (cache / f"text-{key[:16]}").exists()


def _mark(cache: Path | None, key: str) -> None:
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        (cache / f"text-{key[:16]}").touch()


def check_calibration(section: Reconstruction, corpus: Corpus | None, shapes: dict[str, tuple[int, int]]) -> None:
    """Checks that the text which calibrates can have as many tokens as the widest matrix has columns."""
    assert corpus is not None, "a student needs a corpus"
    widest, most = max(columns for _, columns in shapes.values()), section.calibration.sequences * corpus.longest
    if most < widest:
        raise UserError(
            f"at most {most:,} tokens calibrate, but the widest matrix has {widest:,} columns, which need as many",
            where="student.pruning.reconstruction.calibration.sequences",
            instead=f"at least {-(-widest // corpus.longest):,} sequences, or several times as many",
        )
