"""Hook of mkdocs: records of `benchmarks/results/` become pages; links to other files of the repository become text.

On the repository's own pages the links work as they are written.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_DOCS, _RECORDS = "docs/", "benchmarks/results/"
_LINK = re.compile(r"\[([^\]\[]*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Adds the records to the site."""
    from mkdocs.structure.files import File

    for record in sorted((_ROOT / _RECORDS).glob("*.md")):
        files.append(File.generated(config, _RECORDS + record.name, abs_src_path=str(record)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Returns a page's text with links that work on the site."""
    return site_links(markdown, page.file.src_uri)


def site_links(markdown: str, page: str) -> str:
    """Returns a text whose relative links are those of the site.

    Args:
        markdown: Text with links as in the repository.
        page: Path of its page in the site.
    """
    place = posixpath.dirname(page if page.startswith(_RECORDS) else _DOCS + page)

    def link(found: re.Match[str]) -> str:
        text, (target, sharp, anchor) = found[1], found[2].partition("#")
        if not target or "://" in target:
            return found[0]
        path = posixpath.normpath(posixpath.join(place, target))
        if (path.startswith(_DOCS) or path.startswith(_RECORDS)) and (_ROOT / path).is_file():
            there = path.removeprefix(_DOCS)
            return f"[{text}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{sharp}{anchor})"
        return f"{text} (`{path}`)" if path not in text else text

    return _LINK.sub(link, markdown)
