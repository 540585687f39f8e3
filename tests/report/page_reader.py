"""A page as a reader without a browser sees it: texts by id, tables as rows, and everything that could fetch or run."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "col", "link"}


class Page(HTMLParser):
    """`texts` has the text of each element with an id, `tables` the rows of each table with one."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self._open: list[tuple[str, str | None]] = []
        self._cell: list[str] | None = None
        self.feed(html)
        self.close()
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag in VOID:
            return
        self._open.append((tag, given.get("id")))
        if given.get("id"):
            self.texts[str(given["id"])] = ""
        name = self._table()
        if tag == "table" and name:
            self.tables[name] = []
        elif tag == "tr" and name:
            self.tables[name].append([])
        elif tag in ("td", "th") and name:
            self._cell = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [str(value) for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        name = self._table()
        top, _ = self._open.pop()
        assert top == tag, f"<{top}> is closed by </{tag}>"
        if tag in ("td", "th") and name and self._cell is not None:
            self.tables[name][-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data: str) -> None:
        for _, id in self._open:
            if id:
                self.texts[id] += data
        if self._cell is not None:
            self._cell.append(data)

    def _table(self) -> str:
        return next((id for tag, id in reversed(self._open) if tag == "table" and id), "")

    def rows(self, name: str) -> list[dict[str, str]]:
        """The rows of a table by the names of its columns."""
        head, *body = self.tables[name]
        return [dict(zip(head, row, strict=True)) for row in body]
