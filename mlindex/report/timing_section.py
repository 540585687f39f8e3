"""Timing: seconds an item, by host and by rank, how busy the ranks were, and the slowest items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlindex.report.canvas import STATUS_COLOURS, Picture, legend_above, log_edges, logarithmic, note, stacked
from mlindex.report.census import FAILED, STATUSES, Census
from mlindex.report.markup import Markup, element, table, text
from mlindex.report.quantities import count, duration, percent, plural
from mlindex.report.section import Section
from mlindex.report.timeline import spans

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLOWEST = 10
RANKS = 40  # rows of the table of ranks


def _sums(census: Census) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """For each writer: items, failed items, seconds of work, and seconds that its job worked."""
    n = len(census.writers)
    items = np.bincount(census.writer, minlength=n)
    failed = np.bincount(census.writer[census.status == FAILED], minlength=n)
    work = np.bincount(census.writer, weights=census.seconds, minlength=n)
    lasted = {span.job: span.end - span.start for span in spans(census)}
    return items, failed, work, np.array([lasted.get(w.job, 0.0) for w in census.writers])


def _busy(work: int | float, lasted: int | float) -> str:
    return percent(min(work, lasted), lasted)


def _median(values: NDArray) -> str:
    return f"{np.median(values):.3g}" if values.size else ""


def _hosts(census: Census) -> Markup:
    items, failed, work, lasted = _sums(census)
    names = np.array([w.host or "unknown" for w in census.writers], object)
    rows: list[list[Any]] = []
    host_of = names[census.writer]
    for host in sorted(set(names.tolist())):
        mine = names == host
        done = int(items[mine].sum())
        if not done:
            continue
        each = f"{work[mine].sum() / done:.3g}"
        middle = _median(census.seconds[host_of == host])
        busy = _busy(float(work[mine].sum()), float(lasted[mine].sum()))
        rows.append([host, int(mine.sum()), count(done), count(int(failed[mine].sum())), each, middle, busy])
    return table(["Host", "Ranks", "Items", "Failed", "Mean (s)", "Median (s)", "Busy"], rows, id="hosts")


def _ranks(census: Census) -> tuple[Markup, int]:
    items, failed, work, lasted = _sums(census)
    share = np.divide(work, lasted, out=np.zeros(len(work)), where=lasted > 0)
    order = [int(i) for i in np.argsort(share, kind="stable") if items[i]]
    by_writer = np.split(np.argsort(census.writer, kind="stable"), np.cumsum(items)[:-1])
    rows = []
    for i in order[:RANKS]:
        who = census.writers[i]
        task = f"{who.part} of {who.parts}" if who.parts > 1 else ""
        middle = _median(census.seconds[by_writer[i]])
        each = f"{work[i] / items[i]:.3g}"
        busy = _busy(float(work[i]), float(lasted[i]))
        rows.append([who.job, task, who.rank, who.host, count(int(items[i])), int(failed[i]), each, middle, busy])
    head = ["Job", "Task", "Rank", "Host", "Items", "Failed", "Mean (s)", "Median (s)", "Busy"]
    return table(head, rows, left=(0, 1, 3), id="ranks"), len(order)


def _picture(census: Census) -> Picture:
    positive = census.seconds > 0
    values = census.seconds[positive]
    edges = log_edges(values, 48) if values.size else np.array([0.0, 1.0])
    status = census.status[positive]
    counts = {s: np.histogram(values[status == k], edges)[0] for k, s in enumerate(STATUSES)}
    items, _, work, lasted = _sums(census)
    some = (items > 0) & (lasted > 0)
    busy = np.sort(100 * np.minimum(work[some] / lasted[some], 1))[::-1]

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        each, ranks = figure.subplots(1, 2, width_ratios=(2, 1))
        if values.size:
            logarithmic(each, edges)
            stacked(each, edges, counts, STATUS_COLOURS)
            each.set(title="Time an item took", xlabel="time (s)", ylabel="items")
        else:
            note(each, "no times")
        if busy.size:
            if len(busy) <= RANKS:
                ranks.bar(np.arange(len(busy)) + 1, busy, width=0.75, color="#9fb3c8")
            else:  # one path
                ranks.stairs(busy, np.arange(len(busy) + 1) + 0.5, baseline=0, fill=True, color="#9fb3c8")
            ranks.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            ranks.set(title="Ranks at work", xlabel="rank of a job, busiest first", ylabel="busy (%)", ylim=(0, 103))
            ranks.set_xlim(0.3, len(busy) + 0.7)
        else:
            note(ranks, "no ranks")
        legend_above(figure, STATUSES, STATUS_COLOURS)

    without = int((~positive).sum())
    caption = "Busy: the time spent on items over the time from the start of the job to its last item" + (
        f". {plural(without, 'item')} without a time (inputs that could not be read) left out." if without else "."
    )
    rows = [
        [f"{edges[i]:.3g}–{edges[i + 1]:.3g}", *(int(c[i]) for c in counts.values())] for i in range(len(edges) - 1)
    ]
    numbers = table(["time (s)", *STATUSES], rows, id="seconds-numbers") if values.size else None
    return Picture("seconds", "Timing", caption, draw, (10.8, 2.6), numbers)


def _slowest(census: Census) -> Markup:
    order = np.argsort(-census.seconds, kind="stable")[:SLOWEST]
    rows = [
        [
            census.id[i],
            census.source[i],
            f"{census.seconds[i]:.2f}",
            STATUSES[census.status[i]],
            census.writers[census.writer[i]].host,
            census.writers[census.writer[i]].rank,
        ]
        for i in order.tolist()
    ]
    return table(["Item", "Input", "Seconds", "Status", "Host", "Rank"], rows, left=(0, 1, 3, 4), id="slowest")


def timing_section(census: Census) -> Section:
    """Pictures and tables of the time that items took and ranks worked."""
    if not len(census):
        return Section("timing", "Timing", [element("p", "No item is done yet.", class_="quiet")])
    ranks, number = _ranks(census)
    parts: list[Markup | Picture] = [
        _picture(census),
        element("h3", "Hosts"),
        _hosts(census),
        element("h3", "Ranks" if number <= RANKS else f"Ranks: the {RANKS} least busy of {number}"),
        ranks,
        element("h3", "Slowest items"),
        _slowest(census),
    ]
    total = float(census.seconds.sum())
    glance = (
        f"Half of the items took less than {duration(float(np.median(census.seconds)))}, the slowest "
        f"{duration(float(census.seconds.max()))}; {duration(total)} of work in all."
    )
    return Section("timing", "Timing", parts, glance=[text(glance)])
