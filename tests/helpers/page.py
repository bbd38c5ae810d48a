"""A report as a browser sees it."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Resources that a browser would fetch, the text that it would show, and the elements.

    Attributes:
        fetched: Addresses of resources; links within the page do not count.
        identifiers: Values of `id`.
        elements: Names and attributes of all elements.
        shown: The text.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.identifiers: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""
        self._hidden = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag in ("script", "style")
        self.elements.append((tag, dict(attrs)))
        links = [str(v) for k, v in attrs if k in ("src", "href", "srcset", "poster", "data", "action")]
        self.fetched += [link for link in links if not link.startswith("#")]
        self.identifiers += [str(v) for k, v in attrs if k == "id"]

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.shown += "" if self._hidden else data
