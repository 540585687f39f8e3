"""HTML that cannot be broken by what is put into it: everything is escaped unless it was made here."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

_VOID = {"meta", "img", "br", "col", "link"}
# control characters, and those that reorder the text around them, in a file name
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


class Markup(str):
    """Text that is HTML already."""


def text(value: Any) -> Markup:
    """`value` as HTML text: escaped, and with characters that no page can show written as escapes."""
    if isinstance(value, Markup):
        return value
    shown = _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), str(value))
    return Markup(html.escape(shown))


def join(children: Iterable[Any], between: str = "") -> Markup:
    """The children one after another; those that are None are left out."""
    return Markup(text(between).join(text(child) for child in children if child is not None))


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element; a trailing underscore of an attribute's name is dropped, other underscores become hyphens.

    Attributes that are None or False are left out, those that are True have no value.
    """
    shown = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        shown += f" {key}" if value is True else f' {key}="{text(str(value))}"'
    if name in _VOID:
        return Markup(f"<{name}{shown}>")
    return Markup(f"<{name}{shown}>{join(children)}</{name}>")


def table(
    head: Sequence[Any], rows: Iterable[Sequence[Any]], left: Iterable[int] = (0,), id: str = "", caption: str = ""
) -> Markup:
    """A table in a frame that scrolls where it is too wide; the columns in `left` are text, the others numbers."""
    words = set(left)

    def cells(kind: str, row: Sequence[Any]) -> Markup:
        scope = {"scope": "col"} if kind == "th" else {}
        return join(
            element(kind, "" if value is None else value, class_="word" if n in words else None, **scope)
            for n, value in enumerate(row)
        )

    body = element(
        "table",
        element("caption", caption) if caption else None,
        element("thead", element("tr", cells("th", head))),
        element("tbody", join(element("tr", cells("td", row)) for row in rows)),
        id=id or None,
    )
    return element("div", body, class_="frame")
