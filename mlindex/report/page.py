"""The page: headline, sections and style sheet as one HTML file, without scripts or references to elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import mlindex
from mlindex.report.bloch_section import bloch_sections
from mlindex.report.canvas import Picture, figure_element, render
from mlindex.report.census import Census
from mlindex.report.clusters import TOLERANCE
from mlindex.report.failure_section import failure_section
from mlindex.report.laue_section import laue_sections
from mlindex.report.markup import Markup, element, join, text
from mlindex.report.powder_section import powder_sections
from mlindex.report.progress_section import progress_section
from mlindex.report.provenance_section import provenance_section, settings_of
from mlindex.report.quantities import clock, count, duration, percent, rate, stopwatch
from mlindex.report.section import Section
from mlindex.report.style import CSS
from mlindex.report.timeline import Timeline, timeline
from mlindex.report.timing_section import timing_section

# what a stage adds to the report, from (census, tolerance of the clusters)
METHODS = {"powder": powder_sections, "laue": laue_sections, "bloch": bloch_sections}
# nothing is loaded and nothing runs, whatever a file name tries
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Source:
    """What a report is about: `census` what the results hold, `status` what the journal tells (None: there is none).

    `place` is the run's directory or file; `problems` has a sentence for anything that could not be read; `now` is
    when it was read (s since 1970).
    """

    place: str
    census: Census
    status: Mapping[str, Any] | None
    now: float
    problems: Sequence[str] = ()
    name: str = ""
    pictures: str = "report"  # folder of the PNGs, relative to the page
    tolerance: float = TOLERANCE
    sections: Sequence[Section] = ()  # that are made from more than the census


def _state(left: int, active: bool) -> tuple[str, str]:
    if active:
        return "running", f"running, {count(left)} left"
    return ("complete", "complete") if not left else ("unfinished", f"unfinished, {count(left)} left")


def _tile(kind: str, name: str, value: str, remark: str = "") -> Markup:
    small = element("small", remark) if remark else None
    return element(
        "dl", element("dt", name), element("dd", element("span", value, id=f"n-{kind}"), small), class_=f"tile {kind}"
    )


def _bar(counts: Sequence[int], total: int) -> Markup:
    """The share of each status as a bar, as SVG so that it prints."""
    at, parts = 0.0, []
    for name, n in zip(("solved", "unsolved", "failed"), counts, strict=True):
        width = 100 * n / max(total, 1)
        parts.append(
            Markup(
                f'<rect class="{name}" x="{at:.3f}" y="0" width="{width:.3f}" height="1"><title>{name}</title></rect>'
            )
        )
        at += width
    said = ", ".join(f"{n} {name}" for name, n in zip(("solved", "unsolved", "failed"), counts, strict=True))
    return Markup(
        f'<svg class="bar" viewBox="0 0 100 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{text(f"{said}, of {total}")}">{join(parts)}</svg>'
    )


def _headline(source: Source, line: Timeline | None) -> Markup:
    census, status = source.census, source.status or {}
    solved, unsolved, failed = census.counts()
    done = len(census)
    total = max(int(status.get("total", done)), done)
    left = total - done
    kind, state = _state(left, bool(status.get("active")))
    name = source.name or next((s["campaign.name"] for s in settings_of(census.attributes) if "campaign.name" in s), "")
    title = f"{name}: " if name and name != "campaign" else ""
    methods = ", ".join(census.stages) or "no stage yet"
    worked = line.worked if line is not None else 0.0
    over = f"{clock(line.start)} – {clock(line.end)}" if line is not None else "not begun"
    pauses = sum(length for _, length in line.pauses) if line is not None else 0.0
    remark = f"and {duration(pauses)} of pauses" if pauses else ""
    eta = status.get("eta")
    now = rate(status["rate_now"]) if status.get("rate_now") else ""
    speed = rate(done / worked) if worked else "–"
    tiles = [
        _tile("done", "Done", count(done), f"of {count(total)}"),
        _tile("solved", "Solved", count(solved), f"{percent(solved, done)} of those done"),
        _tile("unsolved", "Unsolved", count(unsolved), percent(unsolved, done)),
        _tile("failed", "Failed", count(failed), percent(failed, done)),
        _tile("left", "Left", count(left), f"about {duration(eta)} more" if eta and kind == "running" else ""),
        _tile("time", "Wall time", stopwatch(worked) if line else "–", remark),
        _tile("rate", "Rate", speed, f"items; {now} now" if now and kind == "running" else "items, over all"),
    ]
    head = element(
        "header",
        element("h1", f"{title}{methods}", element("span", state, class_=f"state {kind}", id="state")),
        element("p", source.place, " · ", over, " · report of ", clock(source.now), class_="where"),
    )
    return join([head, element("div", join(tiles), class_="tiles"), _bar((solved, unsolved, failed), total)])


def _problems(source: Source) -> Markup | None:
    status = source.status or {}
    said = list(source.problems)
    if lost := int(status.get("lost") or 0):
        said.append(f"{lost} {'worker was' if lost == 1 else 'workers were'} lost; their items were given to others.")
    if missing := status.get("missing"):
        said.append(
            f"Shards that the journal names are gone, a resumed run does their items again: {', '.join(missing)}."
        )
    if not said:
        return None
    return element(
        "div",
        element("b", "Problems"),
        element("ul", join(element("li", s) for s in said)),
        class_="warn",
        id="problems",
    )


def _section(section: Section, folder: str, pictures: dict[str, bytes]) -> Markup:
    parts = []
    for part in section.parts:
        if isinstance(part, Picture):
            svg, png = render(part)
            pictures[f"{part.name}.png"] = png
            parts.append(figure_element(part, svg, quote(f"{folder}/{part.name}.png")))
        else:
            parts.append(part)
    kind = "overview" if section.overview else "detail"
    return element("section", element("h2", section.title), join(parts), id=section.anchor, class_=kind)


def page(source: Source) -> tuple[str, dict[str, bytes]]:
    """The HTML of the report, and its pictures: PNG bytes by file name."""
    census = source.census
    line = timeline(census)
    sections = [progress_section(census, line, source.status)]
    for stage in census.stages:
        if stage in METHODS:
            sections += METHODS[stage](census, source.tolerance)
    sections += source.sections
    sections += [failure_section(census), timing_section(census), provenance_section(census)]
    glance = [sentence for section in sections for sentence in section.glance]
    pictures: dict[str, bytes] = {}
    drawn = {section.anchor: _section(section, source.pictures, pictures) for section in sections}
    body = element(
        "main",
        element(
            "div",
            _headline(source, line),
            _problems(source),
            element("ul", join(element("li", s) for s in glance), class_="glance") if glance else None,
            join(drawn[s.anchor] for s in sections if s.overview),
            element("nav", join(element("a", s.title, href=f"#{s.anchor}") for s in sections if not s.overview)),
            class_="first",
        ),
        join(drawn[s.anchor] for s in sections if not s.overview),
        element("footer", f"Written by mlindex {mlindex.__version__}. Times are those of the machine that wrote it."),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light"),
        element("title", f"mlindex report: {source.name or source.place}"),
        element("link", rel="icon", href="data:,"),
        element("style", Markup(CSS)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', body), lang='en')}\n", pictures
