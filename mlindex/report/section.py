"""What a part of the report consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlindex.report.canvas import Picture
from mlindex.report.markup import Markup


@dataclass(frozen=True)
class Section:
    """A heading with its anchor, and paragraphs, tables and pictures in order.

    An `overview` stands on the first page; `glance` are sentences that do.
    """

    anchor: str
    title: str
    parts: Sequence[Markup | Picture]
    overview: bool = False
    glance: Sequence[Markup] = ()
