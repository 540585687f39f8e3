"""Failures by reason, with examples."""

from __future__ import annotations

from mlindex.report.census import Census
from mlindex.report.markup import Markup, element, join, table
from mlindex.report.quantities import count, percent, plural
from mlindex.report.reasons import group, without_name
from mlindex.report.section import Section

SHOWN = 30


def _said(census: Census, row: int) -> Markup:
    return element("span", without_name(census.reason[row], census.source[row]), class_="said")


def failure_section(census: Census) -> Section:
    """A table of the reasons, the most frequent first; a sentence where nothing failed."""
    failures = ((row, census.source[row], sentence) for row, sentence in census.reason.items())
    reasons = group(failures)
    total = len(census.reason)
    if not reasons:
        said = "No item failed." if len(census) else "No item is done yet."
        return Section("failures", "Failures by reason", [element("p", said, class_="quiet")])
    rows = []
    for reason in reasons[:SHOWN]:
        examples = element(
            "ul",
            join(
                element("li", element("code", census.source[row]), " ", _said(census, row)) for row in reason.examples
            ),
            class_="examples",
        )
        rows.append([reason.pattern, count(reason.count), percent(reason.count, total), examples])
    parts: list[Markup] = [table(["Reason", "Items", "Share", "Examples"], rows, left=(0, 3), id="reasons")]
    if len(reasons) > SHOWN:
        parts.append(element("p", f"{plural(len(reasons) - SHOWN, 'rarer reason')} not shown.", class_="quiet"))
    first = reasons[0]
    glance = join(
        [f"{plural(total, 'failure')}; most frequent reason ({count(first.count)}): ", element("i", first.pattern)]
    )
    return Section("failures", "Failures by reason", parts, glance=[glance])
