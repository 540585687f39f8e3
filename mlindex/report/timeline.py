"""When items were done: the time that jobs worked, without the pauses between them, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from mlindex.report.census import Census

BINS = 48
_PAUSE = 120.0  # seconds without a job that are left out, if they are also the following share of the time worked
_SHARE = 0.02
_WIDTHS = (0.01, 0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)  # s


@dataclass(frozen=True)
class Span:
    """One job: from when to when it is known to have worked (s since 1970)."""

    job: str
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """Items by time worked: `counts` (k, 3) between `edges` (k + 1,), s since the first job began, pauses left out.

    `pauses` has the place (s worked) and the length (s) of each pause; `worked` is the whole time (s) without them;
    `start` and `end` (s since 1970) are those of the run.
    """

    start: float
    end: float
    worked: float
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    pauses: tuple[tuple[float, float], ...]


def job_start(job: str) -> float | None:
    """When a job began, from the time at the head of its name; None where there is none."""
    try:
        return datetime.strptime(job[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def spans(census: Census) -> list[Span]:
    """The jobs that committed something, in the order in which they began."""
    job_of = np.array([writer.job for writer in census.writers], object)[census.writer]
    found = []
    for job in dict.fromkeys(writer.job for writer in census.writers):
        rows = np.flatnonzero(job_of == job)
        if not rows.size:
            continue
        start, end = float((census.time[rows] - census.seconds[rows]).min()), float(census.time[rows].max())
        named = job_start(job)
        found.append(Span(job, start if named is None else min(start, named), end))
    return sorted(found, key=lambda span: (span.start, span.job))


def _merged(jobs: list[Span]) -> list[tuple[float, float]]:
    """The times at which some job worked, short gaps closed."""
    periods: list[list[float]] = []
    for span in jobs:
        if periods and span.start <= periods[-1][1]:
            periods[-1][1] = max(periods[-1][1], span.end)
        else:
            periods.append([span.start, span.end])
    worked = sum(end - start for start, end in periods)
    closed: list[list[float]] = []
    for start, end in periods:
        if closed and start - closed[-1][1] <= max(_PAUSE, _SHARE * worked):
            closed[-1][1] = end
        else:
            closed.append([start, end])
    return [(start, end) for start, end in closed]


def _edges(total: float) -> NDArray[np.float64]:
    """Edges from 0 past `total` (s), at most BINS + 1 of them, of a width that has a round name."""
    width = next((w for w in _WIDTHS if w * BINS >= total), 86400.0 * np.ceil(total / BINS / 86400))
    return float(width) * np.arange(int(total / width) + 2, dtype=float)


def timeline(census: Census) -> Timeline | None:
    """The timeline of a run; None where nothing was done."""
    periods = _merged(spans(census))
    if not periods:
        return None
    clock = np.array([t for period in periods for t in period])
    lengths = [end - start for start, end in periods]
    ends = np.cumsum(lengths)
    worked = np.array([x for end, length in zip(ends, lengths, strict=True) for x in (end - length, end)])
    at = np.interp(census.time, clock, worked)
    total = max(float(ends[-1]), 1e-3)
    edges = _edges(total)
    counts = np.stack([np.histogram(at[census.status == s], edges)[0] for s in range(3)], 1).astype(np.int64)
    gaps = zip(ends[:-1], periods[:-1], periods[1:], strict=True)
    pauses = tuple((float(place), after[0] - before[1]) for place, before, after in gaps)
    return Timeline(periods[0][0], periods[-1][1], float(ends[-1]), edges, counts, pauses)
